"""What one stream has asked for of one type, and what it has been sent."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from xds_server.collective import covers, is_glob
from xds_server.ordering import DELTA_TYPES, FULL_STATE_TYPES, LEDS
from xds_server.references import Reference


@dataclass(frozen=True, slots=True)
class InFlight:
    """A response that is not answered yet.

    Attributes:
        names: Of the resources in it, and of those it says are gone.
        sent_at: Monotonic seconds.
        only_removals: It has no resources.
        named: What its resources name, by resource, if they or those that they replace name something.
    """

    nonce: str
    version: str
    names: tuple[str, ...]
    sent_at: float
    only_removals: bool = False
    named: Mapping[str, tuple[Reference, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Subscription:
    """State of one (stream, type). The stream's machine changes it; nobody else does.

    Attributes:
        names: Asked for by name; never contains `*`.
        wildcard: Everything of the type is wanted.
        legacy: Nothing has been named on this stream, so an empty list still means "everything" (WC-2).
        known: Name to version that was sent, accepted or not (ACK-4 and ACK-5 follow from that).
        named: What the resources that the client has accepted name, by resource; without those that name nothing.
        doubtful: Likewise of the last version of each that it rejected or never answered: it may have it or not.
        in_flight: The response not yet answered.
        pending: There may be something to send; the machine looks.
        must_answer: An answer is due although nothing may differ (SW-1 and DX-6, added names of a full-state type).
        urgent: The client asked for what is pending, so it is not held back for the sake of order.
        resend: Names to send again though unchanged, because their parent was sent (ORD-4).
        unreported: Named since the last answer; those that do not exist are reported once (ERR-2).
        suspect: Names of rejected responses. A client may have taken over all, some or nothing of one, so when any of
            them changes all are sent again (ACK-5).
        refresh_at: When what expires is to be refreshed, by name; monotonic seconds.
        last_error: Text of the last rejection; None once something is accepted.
        rejected_version: What was rejected last, and when in monotonic seconds; likewise `sent_version`.
    """

    type_url: str
    names: AbstractSet[str] = frozenset()
    wildcard: bool = False
    legacy: bool = True
    known: dict[str, str] = field(default_factory=dict)
    named: dict[str, tuple[Reference, ...]] = field(default_factory=dict)
    doubtful: dict[str, tuple[Reference, ...]] = field(default_factory=dict)
    in_flight: InFlight | None = None
    pending: bool = True
    must_answer: bool = False
    urgent: bool = True
    resend: set[str] = field(default_factory=set)
    unreported: set[str] = field(default_factory=set)
    suspect: set[str] = field(default_factory=set)
    refresh_at: dict[str, float] = field(default_factory=dict)
    sent_version: str = ""
    acked_version: str = ""
    sent_at: float = 0.0
    last_error: str | None = None
    rejected_version: str = ""
    rejected_at: float = 0.0
    nacks: int = 0
    stale_nonces: int = 0

    @property
    def is_full_state(self) -> bool:
        """Whether responses hold everything (state of the world), and the wildcard is known (both variants)."""
        return self.type_url in FULL_STATE_TYPES

    def wants(self, name: str) -> bool:
        if self.wildcard or name in self.names:
            return True
        return self.type_url == LEDS and any(covers(glob, name) for glob in self.globs)

    @property
    def globs(self) -> tuple[str, ...]:
        """Names that stand for all resources below a path."""
        if self.type_url != LEDS:
            return ()
        return tuple(name for name in self.names if is_glob(LEDS, name))

    def is_touched_by(self, names: frozenset[str]) -> bool:
        # What virtual hosts and globs are asked for by is not their own name.
        return self.wildcard or self.type_url in DELTA_TYPES or not self.names.isdisjoint(names)

    def accepted(self, response: InFlight) -> None:
        """Record an ACK."""
        self.acked_version = response.version
        self.last_error = None
        self.suspect.difference_update(response.names)
        for name, references in response.named.items():
            self.doubtful.pop(name, None)
            if references and self.wants(name):
                self.named[name] = references
            else:
                self.named.pop(name, None)

    def rejected(self, response: InFlight, error: str) -> None:
        """Record a NACK. What was sent stays in `known`, so it is not sent again as it is (ACK-4)."""
        self.last_error = error
        self.rejected_version = response.version
        self.nacks += 1
        self.suspect.update(response.names)
        self.doubt(response)

    def doubt(self, response: InFlight) -> None:
        """Record that nobody knows what of a response the client has taken over."""
        self.doubtful.update((name, each) for name, each in response.named.items() if self.wants(name))

    def forget_named(self, names: Iterable[str]) -> None:
        """Take it that the client does not use these resources any more."""
        for name in names:
            self.named.pop(name, None)
            self.doubtful.pop(name, None)

    def references(self) -> Iterator[Reference]:
        """Yield what the resources name that the client may use, or is being sent."""
        in_flight = self.in_flight.named if self.in_flight is not None else {}
        for named in (self.named, self.doubtful, in_flight):
            for references in named.values():
                yield from references


@dataclass(slots=True)
class SotwSubscription(Subscription):
    """A subscription whose requests list all names each time.

    Attributes:
        dropped: Names that a stale request left out: the client may have thrown them away, so if they are wanted after
            all they are sent again.
    """

    dropped: set[str] = field(default_factory=set)

    def accepted(self, response: InFlight) -> None:
        Subscription.accepted(self, response)
        if self.is_full_state:  # what it lacks is deleted
            self.named = {name: each for name, each in response.named.items() if each}
            self.doubtful.clear()

    def update(self, requested: Iterable[str], *, first: bool = False) -> None:
        """Take over the names of a request, and note which answer that asks for.

        Source: management server rules, section 3.1 rows 1, 6, 7 and 8, and section 5 for the wildcard.
        """
        asked = frozenset(requested)
        names = asked - {"*"}
        wildcard = self._is_wildcard(asked)
        if asked:
            self.legacy = False
        added = names - self.names
        # From everything to some names: they are known already (WC-4), so nothing is due.
        narrowed = self.wildcard and not wildcard
        widened = wildcard and not self.wildcard
        self.names, self.wildcard = names, wildcard
        if again := {name for name in self.dropped if self.wants(name)}:
            self.resend |= again
            self.pending = self.urgent = True
        self.dropped.clear()
        if not wildcard:
            for name in self.known.keys() - names:
                del self.known[name]
            self.forget_named((self.named.keys() | self.doubtful.keys()) - names)
            self.resend &= names
        self.unreported = {name for name in (self.unreported | added) if name in names}
        if self.is_full_state and (first or widened or (added and not narrowed)):
            self.must_answer = True
        if first or added or widened:
            self.pending = self.urgent = True
        if not self.suspect <= self.known.keys():
            self.pending = True  # what was rejected is no longer what is wanted

    def note_stale(self, requested: Iterable[str]) -> None:
        """Remember what a request left out that is not taken over, since it crossed a response (row 3)."""
        self.stale_nonces += 1
        asked = frozenset(requested)
        if not self._is_wildcard(asked):
            self.dropped |= self.known.keys() - asked

    def _is_wildcard(self, asked: frozenset[str]) -> bool:
        return self.is_full_state and ("*" in asked or (self.legacy and not asked))
