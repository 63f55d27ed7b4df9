"""How load is spread over priorities, and when a priority panics.

Each priority gets load according to its health: with an overprovisioning factor of 140 % it may lose 28 % of its hosts
before anything goes to the next one. When hardly anyone is healthy, believing the health data would crush the rest, so
a priority in panic uses all its hosts.

Source: Envoy, "Priority levels", "Degraded endpoints" and "Panic threshold".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import HostPicker
from meshlib.ports import Rng

__all__ = [
    "HashPriorityPicker",
    "PriorityHealth",
    "PriorityLoad",
    "PriorityPart",
    "PriorityPicker",
    "load_of_part",
    "load_without",
    "priority_load",
]


@dataclass(frozen=True, slots=True)
class PriorityHealth:
    """Attributes:
    hosts: All hosts.
    count: Hosts that count: all but the draining ones.
    overprovisioning_factor: Per cent; None: as given for all.
    weights: Of the healthy, the degraded, and those that count, together; they decide about load, as the numbers do about
        panic. None: the numbers decide about both.
    """

    healthy: int
    degraded: int
    count: int
    hosts: int
    overprovisioning_factor: int | None = None
    weights: tuple[int, int, int] | None = None

    @property
    def is_whole(self) -> bool:
        """Every host is healthy and counts; the case that is decided without computing."""
        return (
            self.healthy == self.count == self.hosts > 0
            and not self.degraded
            and self.weights is None
            and self.overprovisioning_factor is None
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What of it is healthy, what degraded, and the whole."""
        return (self.healthy, self.degraded, self.count) if self.weights is None else self.weights


@dataclass(frozen=True, slots=True)
class PriorityLoad:
    """Per cent of the load by priority. The two sum to 100 together, or to 0 when nothing can be used."""

    healthy: tuple[int, ...]
    degraded: tuple[int, ...]
    is_panicking: tuple[bool, ...]


_ALL_TO_THE_ONE: Final = PriorityLoad((100,), (0,), (False,))


def _availability(part: int, count: int, overprovisioning_factor: int) -> int:
    return min(100, overprovisioning_factor * part // count) if count else 0


def _shares(availability: Sequence[int], total: int, left: int) -> tuple[list[int], int]:
    loads = []
    for value in availability:
        load = min(left, value * 100 // total)
        loads.append(load)
        left -= load
    return loads, left


def _total_panic(priorities: Sequence[PriorityHealth]) -> list[int]:
    total = sum(priority.hosts for priority in priorities)
    if total == 0:
        return [0] * len(priorities)
    loads = [100 * priority.hosts // total for priority in priorities]
    first = next(index for index, priority in enumerate(priorities) if priority.hosts)
    loads[first] += 100 - sum(loads)
    return loads


def priority_load(
    priorities: Sequence[PriorityHealth], *, overprovisioning_factor: int = 140, panic_threshold: int = 50
) -> PriorityLoad:
    """Spread 100 per cent of load.

    Args:
        overprovisioning_factor: Per cent.
        panic_threshold: Per cent of usable hosts below which a priority panics; 0: never.
    """
    if len(priorities) == 1 and priorities[0].is_whole and overprovisioning_factor >= 100:
        return _ALL_TO_THE_ONE
    factors = [
        overprovisioning_factor if p.overprovisioning_factor is None else p.overprovisioning_factor for p in priorities
    ]
    sizes = [priority.sizes for priority in priorities]
    healthy = [_availability(part, whole, factor) for (part, _, whole), factor in zip(sizes, factors, strict=True)]
    degraded = [_availability(part, whole, factor) for (_, part, whole), factor in zip(sizes, factors, strict=True)]
    total = min(100, sum(healthy) + sum(degraded))

    # "If normalized total availability is 100 %, no priority is ever in panic."
    panicking = tuple(
        total != 100 and (100 * (p.healthy + p.degraded) / p.count if p.count else 0.0) < panic_threshold
        for p in priorities
    )
    nothing = (0,) * len(priorities)
    if panicking and all(panicking):
        return PriorityLoad(tuple(_total_panic(priorities)), nothing, panicking)
    if total == 0:
        # Without panic the first priority has it all, as in Envoy: a healthy host that does not count may be there.
        return PriorityLoad((100, *nothing[1:]) if nothing else nothing, nothing, panicking)

    healthy_load, left = _shares(healthy, total, 100)
    degraded_load, left = _shares(degraded, total, left)
    if left:
        if any(healthy):
            healthy_load[next(index for index, value in enumerate(healthy) if value)] += left
        else:
            degraded_load[next(index for index, value in enumerate(degraded) if value)] += left
    return PriorityLoad(tuple(healthy_load), tuple(degraded_load), panicking)


def load_without(
    priorities: Sequence[PriorityHealth],
    avoided: frozenset[int],
    *,
    overprovisioning_factor: int = 140,
    panic_threshold: int = 50,
) -> PriorityLoad | None:
    """Spread 100 per cent of load over the priorities that a retry does not avoid; None: they can take nothing.

    Source: Envoy, `PreviousPrioritiesRetryPriority::adjustForAttemptedPriorities`.
    """
    factors = [
        overprovisioning_factor if p.overprovisioning_factor is None else p.overprovisioning_factor for p in priorities
    ]
    healthy, degraded = (
        [
            0 if number in avoided else _availability(p.sizes[part], p.sizes[2], factor)
            for number, (p, factor) in enumerate(zip(priorities, factors, strict=True))
        ]
        for part in (0, 1)
    )
    available = [*healthy, *degraded]
    total = min(100, sum(available))
    if not total:
        return None
    usual = priority_load(priorities, overprovisioning_factor=overprovisioning_factor, panic_threshold=panic_threshold)
    loads, left = [0] * len(available), 100
    while left:  # what rounding leaves goes to the first ones
        more, left = _shares(available, total, left)
        loads = [load + share for load, share in zip(loads, more, strict=True)]
    count = len(priorities)
    return PriorityLoad(tuple(loads[:count]), tuple(loads[count:]), usual.is_panicking)


class PriorityPart(NamedTuple):
    """The healthy, or the degraded, hosts of a priority."""

    priority: int
    is_degraded: bool


def load_of_part(
    priorities: Sequence[PriorityHealth],
    part: PriorityPart,
    *,
    overprovisioning_factor: int = 140,
    panic_threshold: int = 50,
) -> PriorityLoad:
    """Give all load to a part of one priority. Which priorities panic stays as it is.

    Source: Envoy, `AggregateLoadBalancerContext::determinePriorityLoad`.
    """
    usual = priority_load(priorities, overprovisioning_factor=overprovisioning_factor, panic_threshold=panic_threshold)
    nothing = (0,) * len(priorities)
    all_ = tuple(100 if number == part.priority else 0 for number in range(len(priorities)))
    healthy, degraded = (nothing, all_) if part.is_degraded else (all_, nothing)
    return PriorityLoad(healthy, degraded, usual.is_panicking)


class PriorityPicker(HostPicker):
    """Draws one of several sources of hosts, by load."""

    __slots__ = ("_table",)

    def __init__(self, sources: Sequence[tuple[int, HostPicker]]) -> None:
        """Make the picker.

        Args:
            sources: Load in per cent, summing to 100, and where to choose then.
        """
        self._table: tuple[HostPicker, ...] = tuple(source for load, source in sources for _ in range(load))

    def draw(self, rng: Rng) -> HostPicker:
        """Return a source by load."""
        return self._table[int(rng.random() * 100)]

    def choose(self, rng: Rng) -> EndpointState | None:
        # A source without hosts gives None: there is no falling through to the next priority.
        return self._table[int(rng.random() * 100)].choose(rng)


class HashPriorityPicker(HostPicker):
    """Has the request's hash draw the source of hosts too, so that a request stays with its priority."""

    __slots__ = ("_table",)

    uses_hash = True

    def __init__(self, loads: Sequence[tuple[int, HostPicker]]) -> None:
        """Make the picker.

        Args:
            loads: As with `PriorityPicker`, in Envoy's order: the healthy loads of all priorities, then the degraded.
        """
        self._table: tuple[HostPicker, ...] = tuple(source for load, source in loads for _ in range(load))

    def choose(self, rng: Rng) -> EndpointState | None:
        return self.pick(None, rng)

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState | None:
        """As `Picker.pick`; each of the picks is made in the same priority."""
        if hash_ is None:
            hash_ = rng.getrandbits(64)
        return self._table[hash_ % 100].pick(hash_, rng, avoid, attempts)
