"""The client side of one aggregated state-of-the-world stream, as a machine without I/O.

The shell tells it what happened (a stream opened, a request was taken by the transport, a response came, a timer is
due, the stream ended, other names are wanted) and carries out the commands that it returns. Rules that shape it, beside
those of `stream_machine.py`:

- Each type is a sub-stream of its own: list, version and nonce. The version of what was accepted last is kept across
  streams, the nonce belongs to one stream.
- One request is under way at a time. What is owed (an answer to a response, a changed list) is remembered per type, and
  the request is made of the list as it is at the moment of sending, so changes coalesce.
- The good resources of a response are applied although others are bad (A46).
- A listener or cluster that a response leaves out is deleted, unless the server has `ignore_resource_deletion` (this is
  what gRPC does by default today). What no server has sent yet is left to its timer: the response may be older than the
  subscription. Where a response holds an entry whose name cannot be read, or nothing but heartbeats, nothing is deleted.

Source: xDS protocol; gRFCs A40, A46, A53, A57, A88.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from meshlib.ports import Pause, no_pause
from meshlib.xds.bootstrap import DELTA_FEATURE
from meshlib.xds.cache import Key, ResourceCache, ResourceState
from meshlib.xds.commands import CancelTimer, Command, Report, StartTimer
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.nack import error_problem, problem, refusal
from meshlib.xds.names import WILDCARD, normal
from meshlib.xds.resources import DELTA_ONLY, TYPE_URLS, is_full_state, short_name
from meshlib.xds.stream_machine import DOES_NOT_EXIST_S, StreamMachine, has_expired
from meshlib.xds.wire import DiscoveryResponse, SendRequest, decode_response

__all__ = ["DOES_NOT_EXIST_S", "CancelTimer", "Command", "Report", "SotwMachine", "StartTimer"]


ONLY_WILDCARD: Final = (WILDCARD,)


@dataclass(slots=True)
class _Type:
    """One sub-stream.

    Attributes:
        version: Last accepted; kept across streams.
        nonce: Of the newest response on this stream.
        listed: `wanted`, sorted.
        sent: The list of the last request on this stream; None: the type has not been asked for on it.
        told: The list of the last request that the transport took on this stream.
        has_named: A request on this stream had names: from then on, an empty list means nothing, before it everything.
        owes_answer: A response is neither acknowledged nor refused.
        error: Why it will be refused; empty: it will be acknowledged.
        dropped: Names that requests with the newest nonce left out. If the server had sent another response by then, it
            passes over such a request, and still has them on its list.
        dropped_before: Those that requests with the nonce before left out.
    """

    wanted: frozenset[str] = frozenset()
    listed: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    sent: frozenset[str] | None = None
    told: frozenset[str] | None = None
    has_named: bool = False
    owes_answer: bool = False
    error: str = ""
    dropped: frozenset[str] = frozenset()
    dropped_before: frozenset[str] = frozenset()


class SotwMachine(StreamMachine):
    """The client of one server. Not thread safe: its owner's thread alone touches it and its cache."""

    NEVER_SERVED = MappingProxyType(
        {
            type_url: f"{short_name(type_url)} needs the incremental variant (server feature {DELTA_FEATURE})"
            for type_url in DELTA_ONLY
        }
    )

    def __init__(
        self,
        cache: ResourceCache,
        *,
        features: frozenset[str] = frozenset(),
        decode: Callable[[str, bytes], Decoded] = decode_resource,
        pause: Pause = no_pause,
    ) -> None:
        super().__init__(cache, features=features, decode=decode, pause=pause)
        self._types = {type_url: _Type() for type_url in TYPE_URLS}
        self._sending: SendRequest | None = None
        self._sending_list: frozenset[str] = frozenset()

    def version(self, type_url: str) -> str:
        """Return the version of the last response accepted of a type, or empty."""
        return self._types[type_url].version

    def wanted(self, type_url: str) -> frozenset[str]:
        return self._types[type_url].wanted

    def _asked(self, type_url: str) -> frozenset[str]:
        return self._types[type_url].sent or frozenset()

    # What the shell reports.

    def want(self, wanted: Mapping[str, frozenset[str]]) -> tuple[Command, ...]:
        commands: list[Command] = []
        for type_url, state in self._types.items():
            names = self._wanted_of(type_url, wanted)
            if names is state.wanted or names == state.wanted:
                continue
            self._add_names(type_url, names - state.wanted)
            self._refuse_unserved(type_url, names - state.wanted)
            state.wanted, state.listed = names, tuple(sorted(names))
            # What no request on this stream names can be forgotten now; the rest when a request without it was sent.
            self._forget(type_url, names | (state.sent or frozenset()), commands)
        return self._flush(commands)

    def opened(self) -> tuple[Command, ...]:
        self._is_open = True
        self.has_response = self.has_sent = False
        for entry in self._cache:
            if has_expired(entry):
                # A version says that all of it is here; a server that believed it would not send the rest again.
                self._types[entry.type_url].version = ""
        return self._flush(self._timers.expiries())

    def sent(self) -> tuple[Command, ...]:
        request, self._sending = self._sending, None
        commands: list[Command] = []
        if request is not None and self._is_open:
            self.has_sent = True
            state = self._types[request.type_url]
            # Most requests are answers with the same list as before, which is not news.
            if self._sending_list is not state.told:
                # Names may have come and gone since: only what was in this very request can be given up or waited for.
                self._forget(request.type_url, state.wanted | self._sending_list, commands)
                self._timers.start(request.type_url, sorted(self._sending_list & state.wanted), commands)
            state.told = self._sending_list
        return self._flush(commands)

    def closed(self) -> tuple[Command, ...]:
        self._is_open = False
        self._introduced.clear()
        self._unserved = dict(self.NEVER_SERVED)
        self._paused.clear()
        commands = self._timers.cancel_all()
        for type_url in self._types:
            self._drop_stream(type_url, commands)
        return tuple(commands)

    def _drop_stream(self, type_url: str, commands: list[Command]) -> None:
        if self._sending is not None and self._sending.type_url == type_url:
            self._sending = None
        state = self._types[type_url]
        state.nonce = state.error = ""
        state.sent = state.told = None
        state.owes_answer = state.has_named = False
        state.dropped = state.dropped_before = frozenset()
        for name in sorted(state.wanted):
            self._timers.cancel((type_url, name), commands)
        self._forget(type_url, state.wanted, commands)

    def received_bytes(self, data: bytes, now: float) -> tuple[Command, ...] | None:
        response = decode_response(data, self._pause)
        return None if response is None else self.received(response, now)

    def received(self, response: DiscoveryResponse, now: float) -> tuple[Command, ...]:
        """A response has arrived."""
        self.has_response = True
        type_url = response.type_url
        state = self._types.get(type_url)
        if state is None or state.sent is None:
            # Unknown, or never asked for on this stream: no answer. An answer with an empty list would be a wildcard.
            return ()
        state.nonce = response.nonce
        commands: list[Command] = []
        problems: list[str] = []
        seen: set[str] = set()
        has_valid = has_nameless = False
        for index, resource in enumerate(response.resources):
            named = (resource.name, *resource.aliases) if resource.name else ()
            taken = self._take(type_url, resource, response.version, seen, now, commands, named)
            if taken.errors:
                problems.append(problem("resource", index, taken.name, taken.errors))
                has_nameless = has_nameless or not taken.name
            else:
                has_valid = True
                if resource.body is None:
                    self._ask_again(type_url, state, taken.name)
            seen.add(taken.name)
        for index, error in enumerate(response.errors):
            fault = error_problem(error)
            if fault:
                problems.append(problem("resource_errors", index, "", (fault,)))
                has_nameless = has_nameless or not error.name
            else:
                seen.add(normal(error.name))
                self._take_error(type_url, error, response.version, now, commands)
        if is_full_state(type_url) and not has_nameless and not _has_only_heartbeats(response):
            self._delete_missing(response, seen, now, commands)
        if self._asked(type_url) and self._collections.of(type_url):
            self._settle_collections(type_url, seen, response.version, now, commands)
        if has_valid or not problems:
            state.version = response.version
        state.owes_answer = True
        state.error = refusal(problems)
        return self._flush(commands)

    def expired(self, key: Key, now: float) -> tuple[Command, ...]:
        commands = super().expired(key, now)
        if commands:
            self._types[key[0]].version = ""  # see `opened`
        return commands

    # Parts of the above.

    def _ask_again(self, type_url: str, state: _Type, heartbeat: str) -> None:
        """A heartbeat that came too late: the server believes what is gone to be here. The answer leaves the name out, and
        the request after that names it anew, so that it is sent."""
        for name in self._matching(type_url, (heartbeat,)):
            if state.sent is None or name not in state.sent or name not in state.wanted:
                continue
            entry = self._cache.peek(type_url, name)
            if entry is not None and entry.value is None and entry.state is ResourceState.DOES_NOT_EXIST:
                state.sent -= {name}
                state.dropped |= {name}

    def _delete_missing(self, response: DiscoveryResponse, seen: set[str], now: float, commands: list[Command]) -> None:
        type_url = response.type_url
        members = self._collections.members(type_url)
        for name in sorted((self.wanted(type_url) | self._asked(type_url) | members) - seen):
            entry = self._cache.get(type_url, name)
            if entry is None or entry.is_spare or entry.is_collection:
                continue
            if entry.value is not None and entry.state is not ResourceState.DOES_NOT_EXIST:
                self._remove(entry, response.version, now, commands)
            if name in members:
                self._drop_member(type_url, name, commands)

    def _flush(self, commands: list[Command]) -> tuple[Command, ...]:
        if self._is_open and self._sending is None:
            for type_url, state in self._types.items():
                sent = frozenset() if state.sent is None else state.sent
                has_change = state.wanted is not sent and state.wanted != sent
                # A refusal does not wait: the answer to a later response would take its place, and nobody hear of it.
                is_due = has_change or (state.owes_answer and (not self.is_patient or bool(state.error)))
                if not is_due or type_url in self._unserved or type_url in self._paused:
                    continue
                wanted, names = state.wanted, state.listed
                if state.owes_answer and has_change:
                    # What was given up and is wanted again may still be on the server's list: then it would not be sent
                    # again. The answer goes without it, and the request after that names it anew.
                    again = (wanted - sent) & (state.dropped | state.dropped_before)
                    if again:
                        wanted = wanted - again
                        names = tuple(sorted(wanted))
                if state.owes_answer:
                    state.dropped_before, state.dropped = state.dropped, frozenset()
                if has_change:
                    state.dropped |= sent - wanted
                if not state.has_named and names == ONLY_WILDCARD:
                    # The older form of the wildcard, which all servers know.
                    names = ()
                state.has_named = state.has_named or bool(names)
                self._sending = SendRequest(
                    type_url,
                    names,
                    state.version,
                    state.nonce,
                    state.error if state.owes_answer else "",
                    with_node=self._introduce(type_url),
                )
                state.sent, state.owes_answer, state.error = wanted, False, ""
                self._sending_list = wanted
                commands.append(self._sending)
                break
        return tuple(commands)


def _has_only_heartbeats(response: DiscoveryResponse) -> bool:
    return bool(response.resources) and all(resource.body is None for resource in response.resources)
