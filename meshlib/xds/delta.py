"""The client side of one aggregated incremental (delta) stream, as a machine without I/O.

It is driven like the machine of `sotw.py`. What differs:

- Requests carry what changed of a subscription. Each type's first request on a stream names all that is wanted, and the
  versions of what is held, so that a server sends only what differs; it never is the empty one, which would mean
  everything.
- Every resource has a version of its own. One that was refused keeps the version it had, though the others of its
  response move on. Versions are those that this server gave over such streams: never one from disk, of another server,
  or of the other variant.
- Each response is answered by itself, with its nonce and nothing else in the request: servers have ignored a change of
  subscription that came with a NACK. Changes go out in requests without a nonce, and coalesce while one is under way.
- Nothing follows from absence. What is gone is named, of whatever type, and so is what never was; the timer only guards
  against servers that do not say so. `ignore_resource_deletion` keeps what was in use here too.
- A resource that has expired is gone until the server speaks of it, as in Envoy: nothing is asked because of the time
  alone. A heartbeat that comes later shows that the server believes it here, and then it is asked for again; the member
  of a collection by its name, until it came, because the collection would bring all the others too.
- A resource may answer to further names (aliases); a subscription to one of them is served by it.

Source: xDS protocol, "Incremental xDS"; gRFCs A46, A53, A57 and A88 as far as they apply.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from meshlib.ports import Pause, no_pause
from meshlib.xds.bootstrap import DELTA_FEATURE, GRPC_RULES_FEATURE, TRUSTED_FEATURE
from meshlib.xds.cache import Entry, ResourceCache, ResourceState, ResourceValue
from meshlib.xds.commands import Command
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.nack import error_problem, problem, refusal
from meshlib.xds.names import covers, is_collection, normal
from meshlib.xds.resources import TYPE_URLS, VHDS
from meshlib.xds.sotw import SotwMachine
from meshlib.xds.stream_machine import StreamMachine, Taken
from meshlib.xds.verdicts import NOT_FOUND
from meshlib.xds.wire import AnyBytes, DeltaResponse, SendDelta, decode_delta_response

__all__ = ["DeltaMachine", "new_machine"]


@dataclass(frozen=True, slots=True)
class _Held:
    """What the server gave us for a name that we subscribed to.

    Attributes:
        name: Its own name; another than ours if ours is an alias.
        value: As it was put into the cache: where something else is there now, this version is not held any more.
    """

    name: str
    version: str
    value: ResourceValue


@dataclass(slots=True)
class _Type:
    """One sub-stream.

    Attributes:
        held: By the name subscribed to; kept across streams.
        aliases: Those of `held` that bear another name than the one subscribed to: ours, and the server's.
        asked: Names subscribed to by requests made on this stream.
        again: Members of collections to ask for by name, once: they are here no more though the server believes so.
        is_open: A request of this type was made on this stream.
        has_change: `wanted` may differ from `asked`.
        answers: Nonce and error (empty: an ACK) of responses not answered yet.
    """

    wanted: frozenset[str] = frozenset()
    held: dict[str, _Held] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()
    again: frozenset[str] = frozenset()
    is_open: bool = False
    has_change: bool = False
    answers: deque[tuple[str, str]] = field(default_factory=deque)


class DeltaMachine(StreamMachine):
    """The client of one server. Not thread safe: its owner's thread alone touches it and its cache."""

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
        self._sending: SendDelta | None = None

    def wanted(self, type_url: str) -> frozenset[str]:
        return self._types[type_url].wanted

    @property
    def expects_nothing(self) -> bool:
        return self.has_sent and all(
            self._is_held(type_url, state, name) for type_url, state in self._types.items() for name in state.wanted
        )

    def as_sotw(self) -> SotwMachine:
        """Return a machine of the other variant with the same cache and subscriptions, and no stream.

        This one is of no use afterwards.
        """
        result = SotwMachine(self._cache, features=self._features, decode=self._decode, pause=self._pause)
        result._collections = self._collections
        result.want({type_url: state.wanted for type_url, state in self._types.items()})
        result._timers.inherit(self._timers)
        result._verdicts.inherit(self._verdicts)
        result.server_uri = self.server_uri
        return result

    def _asked(self, type_url: str) -> frozenset[str]:
        return self._types[type_url].asked

    # What the shell reports.

    def want(self, wanted: Mapping[str, frozenset[str]]) -> tuple[Command, ...]:
        commands: list[Command] = []
        for type_url, state in self._types.items():
            names = self._wanted_of(type_url, wanted)
            if names is state.wanted or names == state.wanted:
                continue
            self._add_names(type_url, names - state.wanted)
            self._refuse_unserved(type_url, names - state.wanted)
            state.wanted = names
            state.has_change = True
            # What this stream never asked for can be forgotten now; the rest when the server was told.
            self._give_up(type_url, names | state.asked, commands)
        return self._flush(commands)

    def opened(self) -> tuple[Command, ...]:
        self._is_open = True
        self.has_response = self.has_sent = False
        commands = self._timers.expiries()
        for type_url, state in self._types.items():
            # Members that were refused, or have expired, are not among what this stream is told that we hold, so that
            # nobody would say when they are gone. Those that are there still come again.
            for name in self._collections.members(type_url) - state.wanted:
                entry = self._cache.peek(type_url, name)
                if entry is None or entry.value is None:
                    self._collections.leave(type_url, name)
            self._give_up(type_url, state.wanted, commands)
        return self._flush(commands)

    def sent(self) -> tuple[Command, ...]:
        request, self._sending = self._sending, None
        commands: list[Command] = []
        if request is not None and self._is_open:
            self.has_sent = True
            state = self._types[request.type_url]
            if request.unsubscribe:
                self._give_up(request.type_url, state.wanted | state.asked, commands)
            awaited = [name for name in request.subscribe if name in state.wanted]
            self._timers.start(request.type_url, awaited, commands)
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
        state.answers.clear()
        state.asked = state.again = frozenset()
        state.is_open = False
        state.has_change = True
        for name in sorted(state.wanted):
            self._timers.cancel((type_url, name), commands)
        self._give_up(type_url, state.wanted, commands)

    def received_bytes(self, data: bytes, now: float) -> tuple[Command, ...] | None:
        response = decode_delta_response(data, self._pause)
        return None if response is None else self.received(response, now)

    def received(self, response: DeltaResponse, now: float) -> tuple[Command, ...]:
        """A response has arrived."""
        self.has_response = True
        type_url = response.type_url
        state = self._types.get(type_url)
        if state is None or not state.is_open:
            # Unknown, or never asked for on this stream: no answer. An empty first request would be a wildcard.
            return ()
        commands: list[Command] = []
        problems: list[str] = []
        seen: set[str] = set()
        touched: set[str] = set()
        for index, resource in enumerate(response.resources):
            if type_url == VHDS and resource.body is None and resource.ttl_s is None:
                # How a server says of a virtual host that there is none.
                for name in (resource.name, *resource.aliases):
                    self._take_removal(type_url, name, now, commands)
                continue
            taken = self._take_named(type_url, resource, seen, now, commands)
            if taken.errors:
                problems.append(problem("resource", index, taken.name, taken.errors))
            elif resource.body is not None:
                self._hold(state, taken, resource)
            else:
                self._ask_again(type_url, state, taken.name)
            seen.add(taken.name)
        for index, name in enumerate(response.removed):
            if normal(name) in seen:
                problems.append(problem("removed_resources", index, name, ("is in resources too, which counts",)))
            else:
                self._take_removal(type_url, name, now, commands)
                touched.add(normal(name))
        for index, error in enumerate(response.errors):
            fault = error_problem(error)
            if fault:
                problems.append(problem("resource_errors", index, "", (fault,)))
                continue
            for name in self._known_as(type_url, error.name):
                self._take_error(type_url, replace(error, name=name), "", now, commands, deletes=True)
                if error.code == NOT_FOUND:
                    state.held.pop(name, None)
        if self._collections.of(type_url):
            self._settle_collections(type_url, seen | touched, "", now, commands)
        if not seen.isdisjoint(state.asked - state.wanted) or not touched.isdisjoint(state.asked - state.wanted):
            state.has_change = True  # a member that was asked for by name has come, or is gone
        if response.nonce:
            state.answers.append((response.nonce, refusal(problems)))
        return self._flush(commands)

    # Parts of the above.

    def _take_named(
        self, type_url: str, resource: AnyBytes, seen: set[str], now: float, commands: list[Command]
    ) -> Taken:
        """Apply one resource, which has to bear a name outside its bytes too."""
        if not resource.name:
            return Taken("", ("no name",))
        others = (resource.name, *resource.aliases, *self._known_as(type_url, resource.name))
        return self._take(type_url, resource, resource.version, seen, now, commands, others)

    def _hold(self, state: _Type, taken: Taken, resource: AnyBytes) -> None:
        for entry in taken.entries:
            if entry.value is not None:
                state.held[entry.name] = _Held(resource.name, resource.version, entry.value)
                if normal(resource.name) != entry.name:
                    state.aliases[entry.name] = normal(resource.name)

    def _ask_again(self, type_url: str, state: _Type, heartbeat: str) -> None:
        """A heartbeat that came too late: what it keeps alive is gone here. Asked for again, it is sent in full."""
        for name in self._known_as(type_url, heartbeat):
            is_wanted = name in state.wanted
            if not is_wanted and not self._collections.has(type_url, name):
                continue  # given up meanwhile: the server is still to be told so
            entry = self._cache.peek(type_url, name)
            if entry is not None and entry.value is None and entry.state is ResourceState.DOES_NOT_EXIST:
                if is_wanted:
                    state.asked -= {name}
                else:
                    state.again |= {name}
                state.has_change = True

    def _take_removal(self, type_url: str, removed: str, now: float, commands: list[Command]) -> None:
        state = self._types[type_url]
        if is_collection(removed):
            # It has no members, or no more.
            for name in self._collections.members(type_url):
                if covers(normal(removed), name):
                    self._take_removal(type_url, name, now, commands)
            return
        for name in self._known_as(type_url, removed):
            entry = self._cache.get(type_url, name)
            if entry is None:
                continue
            state.held.pop(name, None)
            self._timers.cancel((type_url, name), commands)
            self._cache.drop_spare(type_url, name)
            if entry.value is not None and not entry.is_spare:
                if entry.state is not ResourceState.DOES_NOT_EXIST:
                    self._remove(entry, "", now, commands)
            else:
                self._say_absent(entry, now)
            if self._collections.has(type_url, name):
                self._drop_member(type_url, name, commands)

    def _say_absent(self, entry: Entry, now: float) -> None:
        """The server does not have what we asked for."""
        entry.value, entry.body, entry.unused = None, b"", ()
        entry.is_spare, entry.is_absent = False, True
        if entry.state is not ResourceState.DOES_NOT_EXIST:
            entry.state, entry.error, entry.failed_at = ResourceState.DOES_NOT_EXIST, "does not exist", now

    def _known_as(self, type_url: str, name: str) -> tuple[str, ...]:
        """Return the names under which we subscribed to what the server calls by this one."""
        name = normal(name)
        state = self._types[type_url]
        return self._matching(type_url, (name, *(mine for mine, other in state.aliases.items() if other == name)))

    def _give_up(self, type_url: str, keep: frozenset[str], commands: list[Command]) -> None:
        state = self._types[type_url]
        keep = self._collections.retain(type_url, keep)
        self._forget(type_url, keep, commands)
        for name in [name for name in state.held if name not in keep]:
            del state.held[name]
            state.aliases.pop(name, None)

    def _versions(self, type_url: str, state: _Type) -> tuple[tuple[str, str], ...]:
        """Return name and version of everything that is still in use as this server gave it."""
        found = {}
        for mine, held in state.held.items():
            entry = self._cache.peek(type_url, mine)
            is_wanted = mine in state.wanted or self._collections.has(type_url, mine)
            if entry is not None and entry.value is held.value and is_wanted:
                found[held.name] = held.version
        return tuple(sorted(found.items()))

    def _is_held(self, type_url: str, state: _Type, name: str) -> bool:
        entry, held = self._cache.peek(type_url, name), state.held.get(name)
        if entry is None:
            return False
        if is_collection(name):
            return entry.is_answered
        return entry.state is ResourceState.DOES_NOT_EXIST or (held is not None and entry.value is held.value)

    def _flush(self, commands: list[Command]) -> tuple[Command, ...]:
        if self._is_open and self._sending is None:
            for type_url, state in self._types.items():
                request = self._next(type_url, state)
                if request is not None:
                    self._sending = request
                    commands.append(request)
                    break
        return tuple(commands)

    def _next(self, type_url: str, state: _Type) -> SendDelta | None:
        if state.answers and not self.is_patient:
            nonce, error = state.answers.popleft()
            return SendDelta(type_url, nonce=nonce, error=error, with_node=self._introduce(type_url))
        if not state.has_change or type_url in self._unserved or type_url in self._paused:
            return None
        state.has_change = False
        again = state.again - state.wanted - state.asked
        added, dropped = sorted((state.wanted - state.asked) | again), sorted(state.asked - state.wanted - again)
        if not added and not dropped:
            return None
        held = () if state.is_open else self._versions(type_url, state)
        state.is_open, state.asked, state.again = True, state.wanted | again, frozenset()
        return SendDelta(type_url, tuple(added), tuple(dropped), held, with_node=self._introduce(type_url))


def new_machine(
    cache: ResourceCache,
    features: frozenset[str],
    *,
    pause: Pause = no_pause,
    providers: frozenset[str] | None = None,
) -> DeltaMachine | SotwMachine:
    """Return the machine for a server, by its `server_features`: state of the world, unless it asks for delta.

    The features choose the profile of validation too, and whether the server is trusted.

    Args:
        pause: Called now and then while much is decoded.
        providers: Names of the bootstrap's certificate providers; None: any will do.
    """
    kind = DeltaMachine if DELTA_FEATURE in features else SotwMachine
    is_strict, is_trusted = GRPC_RULES_FEATURE in features, TRUSTED_FEATURE in features

    def decode(type_url: str, body: bytes) -> Decoded:
        return decode_resource(
            type_url, body, pause, with_grpc_rules=is_strict, is_trusted=is_trusted, providers=providers
        )

    return kind(cache, features=features, decode=decode, pause=pause)
