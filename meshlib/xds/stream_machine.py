"""What both variants of the protocol have in common: what one stream's words do to the cache.

A resource is taken, refused, removed, expires, or does not come in time; copies from disk stand in meanwhile. The
variants (`sotw.py`, `delta.py`) decide what is requested and acknowledged, and what a response says of resources that it
does not hold.

- A timer for a resource that may not exist starts when a request naming it was really taken by the transport, and dies
  with the stream: a server that cannot be reached says nothing about what exists.
- A resource with a time to live is dropped when it has passed, whether the stream is up or not: that is what a server
  gives it for. A heartbeat (a `Resource` with a time to live and nothing in it) only begins the time anew.

Source: xDS protocol; gRFCs A40, A46, A47, A53, A57, A88.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple

from meshlib.events import ResourceRejected
from meshlib.model.discovery import Collection
from meshlib.ports import Pause, no_pause
from meshlib.xds.bootstrap import SEPARATE_FEATURE, WILDCARD_CDS_FEATURE, WILDCARD_LDS_FEATURE
from meshlib.xds.cache import Entry, Key, ResourceCache, ResourceState
from meshlib.xds.collections import Collections
from meshlib.xds.commands import Command, Report
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.names import WILDCARD, covers, is_collection, normal
from meshlib.xds.resource_timers import ResourceTimers
from meshlib.xds.resources import CDS, LDS, short_name
from meshlib.xds.verdicts import Verdicts
from meshlib.xds.wire import AnyBytes, ResourceError, peek_name

__all__ = ["DOES_NOT_EXIST_S", "StreamMachine", "Taken", "has_expired"]

DOES_NOT_EXIST_S: Final = 15.0
"""Envoy's `initial_fetch_timeout` and gRPC's timer (A57)."""
TRANSIENT_S: Final = 30.0
"""With `resource_timer_is_transient_error` (A88)."""
EXPIRED: Final = "its time to live has passed"


class Taken(NamedTuple):
    """What became of one resource of a response.

    Attributes:
        name: As far as known.
        errors: Why it is refused.
        entries: The cache entries that hold it now.
    """

    name: str
    errors: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()


class StreamMachine(ABC):
    """The client of one server, without I/O. Not thread safe: its owner's thread alone touches it and its cache."""

    NEVER_SERVED: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Types that the variant does not carry, and what to say of them."""

    def __init__(
        self,
        cache: ResourceCache,
        *,
        features: frozenset[str] = frozenset(),
        decode: Callable[[str, bytes], Decoded] = decode_resource,
        pause: Pause = no_pause,
    ) -> None:
        """Make a machine without a stream.

        Args:
            cache: Where it keeps what it learns.
            features: `server_features` of the bootstrap.
            decode: Turns the bytes of a resource into a value.
            pause: Called now and then while a response is read.
        """
        self._cache = cache
        self._features = features
        self._decode = decode
        self._pause = pause
        self._collections = Collections(cache)
        self._wildcards = frozenset(
            type_url
            for type_url, feature in ((LDS, WILDCARD_LDS_FEATURE), (CDS, WILDCARD_CDS_FEATURE))
            if feature in features
        )
        self._is_open = False
        self._is_separate = SEPARATE_FEATURE in features
        self._introduced: set[str] = set()
        self._timer_is_transient = "resource_timer_is_transient_error" in features
        self._timers = ResourceTimers(cache, TRANSIENT_S if self._timer_is_transient else DOES_NOT_EXIST_S)
        self._verdicts = Verdicts(features)
        self._unserved: dict[str, str] = dict(self.NEVER_SERVED)  # by type, why: nothing is asked of these
        self._paused: set[str] = set()  # types whose streams have ended by themselves
        self.server_uri = ""
        """For texts; set by the shell."""
        self.is_patient = False
        """Answers to responses wait until `answer`; set by the shell."""
        self.has_response = False
        """The open stream, or the last one, has delivered a response."""
        self.has_sent = False
        """The transport has taken a request on the open stream."""

    # What the variants do each in their way.

    @abstractmethod
    def wanted(self, type_url: str) -> frozenset[str]:
        """Return the names subscribed to."""

    @abstractmethod
    def _asked(self, type_url: str) -> frozenset[str]:
        """Return the names that the server was asked for last on this stream. Those not wanted any more count on: they
        may be wanted again before the server hears that they were not."""

    @abstractmethod
    def want(self, wanted: Mapping[str, frozenset[str]]) -> tuple[Command, ...]:
        """Set what we subscribe to: the complete set of names by type URL. Types left out become empty."""

    @abstractmethod
    def opened(self) -> tuple[Command, ...]:
        """A new stream is there (the transport may still be connecting)."""

    @abstractmethod
    def sent(self) -> tuple[Command, ...]:
        """The transport has taken the request under way."""

    def answer(self) -> tuple[Command, ...]:
        """Answers are not to wait any longer."""
        self.is_patient = False
        return self._flush([])

    def unserved(self, type_url: str, reason: str) -> tuple[Command, ...]:
        """The server has no service for a type, as far as this stream goes: what is wanted of it cannot be had.

        Args:
            reason: For people.
        """
        self._unserved[type_url] = f"the management server has no {short_name(type_url)}: {reason}"
        commands: list[Command] = []
        self._drop_stream(type_url, commands)
        self._refuse_unserved(type_url, self.wanted(type_url))
        return self._flush(commands)

    def paused(self, type_url: str) -> tuple[Command, ...]:
        """The stream of a type has ended, where each has one of its own: nothing is asked of it until `resumed`."""
        self._paused.add(type_url)
        self._introduced.discard(type_url)
        commands: list[Command] = []
        self._drop_stream(type_url, commands)
        return self._flush(commands)

    def resumed(self, type_url: str) -> tuple[Command, ...]:
        """The stream of a type may begin anew."""
        self._paused.discard(type_url)
        return self._flush([])

    @abstractmethod
    def _drop_stream(self, type_url: str, commands: list[Command]) -> None:
        """What was sent for a type, and is to be sent, is void; what is known of it stays in use."""

    @abstractmethod
    def _flush(self, commands: list[Command]) -> tuple[Command, ...]:
        """Add the next request, if one is owed and none is under way."""

    @abstractmethod
    def closed(self) -> tuple[Command, ...]:
        """The stream ended. What is known stays in use."""

    @abstractmethod
    def received_bytes(self, data: bytes, now: float) -> tuple[Command, ...] | None:
        """A message has arrived; None: it cannot be read, and is ignored."""

    # What time does.

    def timer_fired(self, key: Key, now: float) -> tuple[Command, ...]:
        """The time for a resource to arrive is over. It stays subscribed, and is used if it arrives later."""
        if not self._timers.take(key):
            return ()
        entry = self._cache.get(*key)
        if entry is None or not entry.is_open_question:
            return ()
        entry.failed_at = now
        if self._timer_is_transient:
            entry.state, entry.error = (
                ResourceState.TIMEOUT,
                f"timeout obtaining resource from xDS server {self.server_uri}",
            )
        else:
            entry.drop_value()
            entry.state, entry.error, entry.is_absent = ResourceState.DOES_NOT_EXIST, "does not exist", True
        self._cache.drop_spare(*key)
        return ()

    def expired(self, key: Key, now: float) -> tuple[Command, ...]:
        """The time to live of a resource is over: it is gone as if the server had removed it."""
        entry = self._cache.get(*key)
        if entry is None or not self._timers.take_expiry(entry, now) or entry.value is None:
            return ()
        # Not a matter of `ignore_resource_deletion`: the server itself said when it must not be used any more.
        entry.drop_value()
        entry.state, entry.error, entry.failed_at = ResourceState.DOES_NOT_EXIST, EXPIRED, now
        entry.is_absent = True
        self._collections.renew(*key)
        return (Report(ResourceRejected(entry.type_url, entry.name, entry.version, entry.error)),)

    def adopt_spares(self, now: float) -> bool:
        """While no server answers: let copies from disk stand in for what is wanted and unknown.

        Returns:
            Whether there was any.
        """
        adopted = False
        entries = list(self._cache)
        opened = [entry for entry in entries if is_collection(entry.name) and not entry.is_answered]
        for type_url, name in tuple(self._cache.spares) if opened else ():
            if any(entry.type_url == type_url and covers(entry.name, name) for entry in opened):
                self._collections.join(type_url, name)
                entries.append(self._cache.add(type_url, name))
        for entry in entries:
            spare = self._cache.spare(entry.type_url, entry.name)
            if spare is None or entry.is_answered:
                continue
            decoded = self._decoded(entry.type_url, spare.body)
            if decoded.value is None or (decoded.name and decoded.name != entry.name):
                self._cache.drop_spare(entry.type_url, entry.name)
                continue
            entry.value, entry.body, entry.version = decoded.value, spare.body, spare.version
            entry.unused, entry.updated_at, entry.is_spare = decoded.unused, now, True
            adopted = True
        for type_url in {entry.type_url for entry in opened} if adopted else ():
            self._collections.adopt(type_url, now)
        return adopted

    @property
    def expects_nothing(self) -> bool:
        """Requests are with the server, and it has no reason to answer: all that is wanted is held as it knows."""
        return False

    # Parts for the variants.

    def _refuse_unserved(self, type_url: str, names: Iterable[str]) -> None:
        """Say of resources of a type that nobody is asked for that they are not to be had."""
        reason = self._unserved.get(type_url)
        for name in names if reason else ():
            entry = self._cache.get(type_url, name)
            if entry is not None and entry.value is None:
                entry.state, entry.error = ResourceState.RECEIVED_ERROR, reason or ""

    def _introduce(self, type_url: str) -> bool:
        """Return whether the next request of a type has to say who we are; the one after that has not."""
        stream = type_url if self._is_separate else ""
        if stream in self._introduced:
            return False
        self._introduced.add(stream)
        return True

    def _wanted_of(self, type_url: str, wanted: Mapping[str, frozenset[str]]) -> frozenset[str]:
        """Return what to subscribe to: what is wanted, and everything where the bootstrap asks for that."""
        names = wanted.get(type_url, frozenset())
        return names | {WILDCARD} if type_url in self._wildcards else names

    def _add_names(self, type_url: str, names: Iterable[str]) -> None:
        for name in names:
            self._cache.add(type_url, name)
            self._collections.begin(type_url, name)

    def _matching(self, type_url: str, names: Sequence[str]) -> tuple[str, ...]:
        """Return under which names a resource that the server calls by these is subscribed to, or held."""
        wanted, asked = self.wanted(type_url), self._asked(type_url)
        if len(names) == 1:
            name = normal(names[0])
            is_known = name in wanted or name in asked or self._collections.has(type_url, name)
            return (name,) if is_known else ()
        return tuple(
            dict.fromkeys(
                name
                for name in map(normal, names)
                if name in wanted or name in asked or self._collections.has(type_url, name)
            )
        )

    def _settle_collections(
        self, type_url: str, touched: set[str], version: str, now: float, commands: list[Command]
    ) -> None:
        """After a response: bring the collections of its type up to date, without what only the disk knew of."""
        wanted = self.wanted(type_url)
        for name in self._collections.members(type_url) - wanted:
            entry = self._cache.peek(type_url, name)
            if entry is not None and entry.is_spare:
                entry.drop_value()
                self._drop_member(type_url, name, commands)
        for entry in self._collections.settle(type_url, frozenset(touched), version, now):
            self._timers.cancel((type_url, entry.name), commands)

    def _drop_member(self, type_url: str, name: str, commands: list[Command]) -> None:
        """A member of a collection is gone, unless the server's word is not to count (`ignore_resource_deletion`)."""
        entry = self._cache.peek(type_url, name)
        if entry is None or entry.value is not None:
            return
        self._collections.leave(type_url, name)
        if name not in self.wanted(type_url) and name not in self._asked(type_url):
            self._timers.set_expiry(entry, None, 0.0, commands)
            self._cache.drop(type_url, name)

    def _take(
        self,
        type_url: str,
        resource: AnyBytes,
        version: str,
        seen: set[str],
        now: float,
        commands: list[Command],
        known_as: tuple[str, ...] = (),
    ) -> Taken:
        """Apply one resource.

        Args:
            version: Of the resource, or of the response that has no other.
            seen: Names of the response so far.
            known_as: The names that the response itself gives it, which count then; its bytes must bear one of them.
        """
        body = resource.body
        if body is None:
            return self._take_heartbeat(type_url, resource, seen, now, commands)
        if resource.type_url != type_url:
            return Taken(resource.name, (f"is of type {resource.type_url!r} instead of {short_name(type_url)}",))
        known = self._cache.peek(type_url, peek_name(body))
        if known is not None and not isinstance(known.value, Collection | None) and known.body == body:
            decoded = Decoded(known.name, known.value, (), known.unused)
        else:
            decoded = self._decoded(type_url, body)
        names = tuple(map(normal, known_as or (decoded.name or resource.name,)))
        if known_as and decoded.name and normal(decoded.name) not in names:
            decoded = Decoded(names[0], None, (f"is called {decoded.name!r} inside",))
        name, errors = names[0], decoded.errors
        if name in seen:
            return Taken(name, ("appears twice in the response; the first is kept",))
        if self._collections.join(type_url, name):
            self._cache.add(type_url, name)
        entries = []
        for match in self._matching(type_url, names):
            entry = self._cache.get(type_url, match)
            if entry is None:
                continue
            entries.append(entry)
            self._timers.cancel((type_url, match), commands)
            self._cache.drop_spare(type_url, match)
            if decoded.value is None:
                self._verdicts.refuse(entry, "; ".join(errors), version, now, commands)
            else:
                self._verdicts.accept(entry, decoded, body, version, now, commands)
                self._timers.set_expiry(entry, resource.ttl_s, now, commands)
        return Taken(name, errors, () if errors else tuple(entries))

    def _take_heartbeat(
        self, type_url: str, resource: AnyBytes, seen: set[str], now: float, commands: list[Command]
    ) -> Taken:
        if resource.ttl_s is None or not resource.name:
            return Taken(resource.name, ("resource missing",))
        if normal(resource.name) in seen:
            return Taken(resource.name, ("appears twice in the response; the first is kept",))
        for name in self._matching(type_url, (resource.name, *resource.aliases)):
            entry = self._cache.get(type_url, name)
            # Of what was refused there may be an older form in use; the server vouches for the name again, so it lives.
            if entry is not None and entry.value is not None and not entry.is_spare:
                self._timers.set_expiry(entry, resource.ttl_s, now, commands)
        return Taken(normal(resource.name))

    def _take_error(
        self,
        type_url: str,
        error: ResourceError,
        version: str,
        now: float,
        commands: list[Command],
        *,
        deletes: bool = False,
    ) -> None:
        """Apply one entry of `resource_errors`.

        Args:
            deletes: NOT_FOUND means that a resource in use was removed. Else it is an error beside the value (A88), and
                the resource is not deleted for being left out either.
        """
        for name in self._matching(type_url, (error.name,)):
            entry = self._cache.get(type_url, name)
            if entry is None:
                continue
            self._timers.cancel((type_url, name), commands)
            self._cache.drop_spare(type_url, name)
            self._verdicts.report(entry, error, version, now, commands, deletes=deletes)

    def _remove(self, entry: Entry, version: str, now: float, commands: list[Command]) -> None:
        """The server does not have a resource that is in use any more."""
        self._timers.set_expiry(entry, None, now, commands)
        self._verdicts.remove(entry, version, now, commands)

    def _decoded(self, type_url: str, body: bytes) -> Decoded:
        try:
            return self._decode(type_url, body)
        except Exception as error:
            # A gap in a decoder must cost one resource, never the stream and with it every other resource.
            return Decoded("", None, (f"cannot be decoded: {type(error).__name__}: {error}",), ())

    def _forget(self, type_url: str, keep: frozenset[str], commands: list[Command]) -> None:
        """Drop what is known of all other resources of a type."""
        keep = self._collections.retain(type_url, keep)
        self._cache.retain(type_url, keep)
        self._timers.retain(type_url, keep, commands)
        self._verdicts.retain(type_url, keep, commands)


def has_expired(entry: Entry | None) -> bool:
    """Whether a resource is gone because its time to live has passed, and the server has not spoken of it since."""
    return entry is not None and entry.state is ResourceState.DOES_NOT_EXIST and entry.error == EXPIRED
