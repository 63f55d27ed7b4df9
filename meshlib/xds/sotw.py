"""The client side of one aggregated state-of-the-world stream, as a machine without I/O.

The shell tells it what happened (a stream opened, a request was taken by the transport, a response came, a timer is
due, the stream ended, other names are wanted) and carries out the commands that it returns. Rules that shape it:

- Each type is a sub-stream of its own: list, version and nonce. The version of what was accepted last is kept across
  streams, the nonce belongs to one stream.
- One request is under way at a time. What is owed (an answer to a response, a changed list) is remembered per type, and
  the request is made of the list as it is at the moment of sending, so changes coalesce.
- A timer for a resource that may not exist starts when a request naming it was really taken by the transport, and dies
  with the stream: a server that cannot be reached says nothing about what exists.
- The good resources of a response are applied although others are bad (A46); a resource that is refused keeps the value
  it had, unless the server asked for `fail_on_data_errors`.
- A listener or cluster that a response leaves out is deleted, unless the server has `ignore_resource_deletion` (this is
  what gRPC does by default today). What no server has sent yet is left to its timer: the response may be older than the
  subscription. Where a response holds an entry whose name cannot be read, nothing is deleted.

Source: xDS protocol; gRFCs A40, A46, A53, A57, A88.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from meshlib.events import ResourceAccepted, ResourceRejected
from meshlib.xds.cache import Entry, Key, ResourceCache, ResourceState
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import TYPE_URLS, is_full_state, short_name
from meshlib.xds.wire import AnyBytes, DiscoveryResponse, ResourceError, SendRequest, peek_name

__all__ = ["CancelTimer", "Command", "Report", "SotwMachine", "StartTimer"]

DOES_NOT_EXIST_S: Final = 15.0
"""Envoy's `initial_fetch_timeout` and gRPC's timer (A57)."""
TRANSIENT_S: Final = 30.0
"""With `resource_timer_is_transient_error` (A88)."""
NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7
MAX_ERROR_CHARS: Final = 16_384
"""A NACK is for people; a hundred thousand of the same error help nobody."""


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Command: call `timer_fired` for this resource in `delay_s` seconds."""

    key: Key
    delay_s: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Command: that timer is not needed any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class Report:
    """Command: tell the hooks."""

    event: ResourceAccepted | ResourceRejected


Command = SendRequest | StartTimer | CancelTimer | Report


@dataclass(slots=True)
class _Type:
    """One sub-stream.

    Attributes:
        version: Last accepted; kept across streams.
        nonce: Of the newest response on this stream.
        sent: The list of the last request on this stream; None: the type has not been asked for on it.
        owes_answer: A response is neither acknowledged nor refused.
        error: Why it will be refused; empty: it will be acknowledged.
    """

    wanted: frozenset[str] = frozenset()
    version: str = ""
    nonce: str = ""
    sent: frozenset[str] | None = None
    owes_answer: bool = False
    error: str = ""


class SotwMachine:
    """The client of one server. Not thread safe: its owner's thread alone touches it and its cache."""

    def __init__(
        self,
        cache: ResourceCache,
        *,
        features: frozenset[str] = frozenset(),
        decode: Callable[[str, bytes], Decoded] = decode_resource,
    ) -> None:
        """Make a machine without a stream.

        Args:
            cache: Where it keeps what it learns.
            features: `server_features` of the bootstrap.
            decode: Turns the bytes of a resource into a value.
        """
        self._cache = cache
        self._decode = decode
        self._types = {type_url: _Type() for type_url in TYPE_URLS}
        self._timers: set[Key] = set()
        self._sending: SendRequest | None = None
        self._is_open = False
        self._node_sent = False
        self._fails_on_data_errors = "fail_on_data_errors" in features
        self._ignores_deletion = "ignore_resource_deletion" in features
        self._timer_is_transient = "resource_timer_is_transient_error" in features
        self.has_response = False
        """The open stream, or the last one, has delivered a response."""

    def version(self, type_url: str) -> str:
        """Return the version of the last response accepted of a type, or empty."""
        return self._types[type_url].version

    def wanted(self, type_url: str) -> frozenset[str]:
        return self._types[type_url].wanted

    # What the shell reports.

    def want(self, wanted: Mapping[str, frozenset[str]]) -> tuple[Command, ...]:
        """Set what we subscribe to: the complete set of names by type URL. Types left out become empty."""
        commands: list[Command] = []
        for type_url, state in self._types.items():
            names = wanted.get(type_url, frozenset())
            if names == state.wanted:
                continue
            for name in names - state.wanted:
                self._cache.add(type_url, name)
            for name in state.wanted - names:
                self._cancel((type_url, name), commands)
            state.wanted = names
            # What no request on this stream names can be forgotten now; the rest when a request without it was sent.
            self._cache.retain(type_url, names | (state.sent or frozenset()))
        return self._flush(commands)

    def opened(self) -> tuple[Command, ...]:
        """A new stream is there (the transport may still be connecting)."""
        self._is_open = True
        self.has_response = False
        return self._flush([])

    def sent(self) -> tuple[Command, ...]:
        """The transport has taken the request under way."""
        request, self._sending = self._sending, None
        commands: list[Command] = []
        if request is not None and self._is_open:
            state = self._types[request.type_url]
            # Names may have come and gone since: only what was in this very request can be given up or waited for.
            self._cache.retain(request.type_url, state.wanted | frozenset(request.names))
            for name in request.names:
                key = (request.type_url, name)
                entry = self._cache.get(*key)
                if name in state.wanted and entry is not None and key not in self._timers and _is_open_question(entry):
                    self._timers.add(key)
                    commands.append(StartTimer(key, TRANSIENT_S if self._timer_is_transient else DOES_NOT_EXIST_S))
        return self._flush(commands)

    def closed(self) -> tuple[Command, ...]:
        """The stream ended. What is known stays in use."""
        self._is_open = self._node_sent = False
        self._sending = None
        commands: list[Command] = [CancelTimer(key) for key in self._timers]
        self._timers.clear()
        for type_url, state in self._types.items():
            state.nonce = state.error = ""
            state.sent = None
            state.owes_answer = False
            self._cache.retain(type_url, state.wanted)
        return tuple(commands)

    def timer_fired(self, key: Key, now: float) -> tuple[Command, ...]:
        """The time for a resource to arrive is over. It stays subscribed, and is used if it arrives later."""
        if key not in self._timers:
            return ()
        self._timers.discard(key)
        entry = self._cache.get(*key)
        if entry is None or not _is_open_question(entry):
            return ()
        entry.failed_at = now
        if self._timer_is_transient:
            entry.state, entry.error = ResourceState.TIMEOUT, "timeout obtaining resource from the management server"
        else:
            self._drop_value(entry)
            entry.state, entry.error, entry.is_absent = ResourceState.DOES_NOT_EXIST, "does not exist", True
        self._cache.drop_spare(*key)
        return ()

    def received(self, response: DiscoveryResponse, now: float) -> tuple[Command, ...]:
        """A response has arrived."""
        self.has_response = True
        state = self._types.get(response.type_url)
        if state is None or state.sent is None:
            # Unknown, or never asked for on this stream: no answer. An answer with an empty list would be a wildcard.
            return ()
        state.nonce = response.nonce
        commands: list[Command] = []
        problems: list[str] = []
        seen: set[str] = set()
        has_valid = has_nameless = False
        for index, resource in enumerate(response.resources):
            name, errors = self._take(response, resource, seen, now, commands)
            if errors:
                problems.append(f"resource index {index}: {f'{name}: ' if name else ''}{'; '.join(errors)}")
                has_nameless = has_nameless or not name
            else:
                has_valid = True
            seen.add(name)
        for index, error in enumerate(response.errors):
            if error.name and error.code:
                seen.add(error.name)
                self._take_error(response, error, now, commands)
            else:
                problems.append(f"resource_errors index {index}: {'no name' if not error.name else 'code OK'}")
                has_nameless = has_nameless or not error.name
        if is_full_state(response.type_url) and not has_nameless:
            self._delete_missing(response, seen, now, commands)
        if has_valid or not problems:
            state.version = response.version
        state.owes_answer = True
        state.error = f"xDS response validation errors: [{'; '.join(problems)}]"[:MAX_ERROR_CHARS] if problems else ""
        return self._flush(commands)

    def adopt_spares(self, now: float) -> bool:
        """While no server answers: let copies from disk stand in for what is wanted and unknown.

        Returns:
            Whether there was any.
        """
        adopted = False
        for entry in list(self._cache):
            spare = self._cache.spare(entry.type_url, entry.name)
            if spare is None or entry.is_answered:
                continue
            decoded = self._decoded(entry.type_url, spare.body)
            if decoded.value is None or decoded.name != entry.name:
                self._cache.drop_spare(entry.type_url, entry.name)
                continue
            entry.value, entry.body, entry.version = decoded.value, spare.body, spare.version
            entry.unused, entry.updated_at, entry.is_spare = decoded.unused, now, True
            adopted = True
        return adopted

    # Parts of the above.

    def _take(
        self, response: DiscoveryResponse, resource: AnyBytes, seen: set[str], now: float, commands: list[Command]
    ) -> tuple[str, tuple[str, ...]]:
        """Apply one resource; return its name, as far as known, and what is wrong with it."""
        type_url, body = response.type_url, resource.body
        if body is None:
            return resource.name, ("resource missing",)
        if resource.type_url != type_url:
            return resource.name, (f"is of type {resource.type_url!r} instead of {short_name(type_url)}",)
        entry = self._cache.get(type_url, peek_name(body))
        if entry is not None and entry.value is not None and entry.body == body:
            decoded = Decoded(entry.name, entry.value, (), entry.unused)
        else:
            decoded = self._decoded(type_url, body)
        name, value, errors = decoded.name or resource.name, decoded.value, decoded.errors
        entry = self._cache.get(type_url, name)
        if name in seen:
            return name, ("appears twice in the response; the first is kept",)
        if entry is None or name not in self._types[type_url].wanted:
            return name, errors
        self._cancel((type_url, name), commands)
        self._cache.drop_spare(type_url, name)
        if value is None:
            self._refuse(entry, ResourceState.NACKED, "; ".join(errors), response.version, now)
            commands.append(Report(ResourceRejected(type_url, name, response.version, entry.error)))
            return name, errors
        if entry.value is not value or entry.is_spare or entry.state is not ResourceState.ACKED:
            commands.append(Report(ResourceAccepted(type_url, name, response.version)))
        if entry.value is not value:
            entry.updated_at = now
        entry.value, entry.body, entry.version, entry.unused = value, body, response.version, decoded.unused
        entry.state, entry.error, entry.failed_version = ResourceState.ACKED, "", ""
        entry.is_absent = entry.is_spare = False
        return name, ()

    def _take_error(
        self, response: DiscoveryResponse, error: ResourceError, now: float, commands: list[Command]
    ) -> None:
        entry = self._cache.get(response.type_url, error.name)
        if entry is None or error.name not in self._types[response.type_url].wanted:
            return
        self._cancel((entry.type_url, entry.name), commands)
        self._cache.drop_spare(entry.type_url, entry.name)
        if entry.is_spare:
            self._drop_value(entry)
        text = error.message or ("does not exist" if error.code == NOT_FOUND else f"error code {error.code}")
        final = error.code in (NOT_FOUND, PERMISSION_DENIED)
        self._refuse(entry, ResourceState.RECEIVED_ERROR, text, response.version, now, drops=final)
        entry.is_absent = error.code == NOT_FOUND
        if entry.is_absent and is_full_state(entry.type_url) and not self._ignores_deletion:
            # The same as leaving it out, said aloud.
            self._drop_value(entry)
        commands.append(Report(ResourceRejected(entry.type_url, entry.name, response.version, text)))

    def _delete_missing(self, response: DiscoveryResponse, seen: set[str], now: float, commands: list[Command]) -> None:
        for name in sorted(self._types[response.type_url].wanted - seen):
            entry = self._cache.get(response.type_url, name)
            if entry is None or entry.value is None or entry.is_spare:
                continue
            if entry.state is ResourceState.DOES_NOT_EXIST:
                continue
            entry.state, entry.error, entry.failed_at = ResourceState.DOES_NOT_EXIST, "was removed", now
            entry.failed_version = response.version
            if not self._ignores_deletion or self._fails_on_data_errors:
                self._drop_value(entry)
                entry.is_absent = True
            commands.append(Report(ResourceRejected(entry.type_url, name, response.version, "was removed")))

    def _refuse(
        self, entry: Entry, state: ResourceState, error: str, version: str, now: float, *, drops: bool = True
    ) -> None:
        entry.state, entry.error, entry.failed_version, entry.failed_at = state, error, version, now
        entry.is_spare = entry.is_absent = False
        if self._fails_on_data_errors and drops:
            self._drop_value(entry)

    @staticmethod
    def _drop_value(entry: Entry) -> None:
        entry.value, entry.body, entry.is_spare, entry.unused = None, b"", False, ()

    def _decoded(self, type_url: str, body: bytes) -> Decoded:
        try:
            return self._decode(type_url, body)
        except Exception as error:
            # A gap in a decoder must cost one resource, never the stream and with it every other resource.
            return Decoded("", None, (f"cannot be decoded: {type(error).__name__}: {error}",), ())

    def _cancel(self, key: Key, commands: list[Command]) -> None:
        if key in self._timers:
            self._timers.discard(key)
            commands.append(CancelTimer(key))

    def _flush(self, commands: list[Command]) -> tuple[Command, ...]:
        """Add the next request, if one is owed and none is under way."""
        if self._is_open and self._sending is None:
            for type_url, state in self._types.items():
                has_change = state.wanted != (state.sent if state.sent is not None else frozenset())
                if not (state.owes_answer or has_change):
                    continue
                self._sending = SendRequest(
                    type_url,
                    tuple(sorted(state.wanted)),
                    state.version,
                    state.nonce,
                    state.error if state.owes_answer else "",
                    with_node=not self._node_sent,
                )
                self._node_sent = True
                state.sent, state.owes_answer, state.error = state.wanted, False, ""
                commands.append(self._sending)
                break
        return tuple(commands)


def _is_open_question(entry: Entry) -> bool:
    """No server has answered for it: there is nothing, or only a copy from disk."""
    return not entry.is_answered or entry.is_spare
