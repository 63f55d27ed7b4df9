"""Load reports (LRS): what is counted of each cluster, and when it is told, as machines without I/O.

What is told are differences: every number but that of requests in progress starts at zero again when it was read, also
those of clusters that the server did not ask for, so nothing piles up. While there is no stream they add up.

Source: gRFCs A27, A64, A85; C-core's `lrs_client`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from meshlib.model.endpoint import Locality
from meshlib.ports import Lock

__all__ = [
    "ClusterLoad",
    "ClusterReport",
    "Demand",
    "LoadReporting",
    "LocalityLoad",
    "LocalityReport",
    "MetricSum",
    "propagated_metrics",
]

MIN_INTERVAL_S: Final = 1.0
"""C-core's floor: a server that asks for less would have us report all the time."""
UTILIZATIONS: Final = ("cpu_utilization", "mem_utilization", "application_utilization")
NAMED: Final = "named_metrics."
MAX_METRICS: Final = 1000
"""Names per locality and report: services that make up names must not have us grow."""


@dataclass(frozen=True, slots=True)
class MetricSum:
    """One metric that endpoints reported with their answers.

    Attributes:
        count: Requests whose answers had it.
        total: Sum of its values.
    """

    count: int
    total: float


@dataclass(frozen=True, slots=True)
class LocalityReport:
    """Attributes:
    in_progress: Now; the other numbers are of the time since the report before.
    metrics: By name: `cpu_utilization`, `mem_utilization`, `application_utilization` or `named_metrics.<key>`.
    """

    locality: Locality
    issued: int = 0
    succeeded: int = 0
    failed: int = 0
    in_progress: int = 0
    metrics: Mapping[str, MetricSum] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def is_zero(self) -> bool:
        return not (self.issued or self.succeeded or self.failed or self.in_progress or self.metrics)


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """Attributes:
    service: EDS service name, or empty.
    dropped: Requests by category of drops.
    total_dropped: The same together with those that the circuit breaker refused.
    interval_s: Since the report before, in seconds.
    """

    cluster: str
    service: str
    localities: tuple[LocalityReport, ...]
    dropped: tuple[tuple[str, int], ...]
    total_dropped: int
    interval_s: float

    @property
    def is_zero(self) -> bool:
        return not self.total_dropped and all(locality.is_zero for locality in self.localities)


class LocalityLoad:
    """The counts of one locality. To be changed with the lock of its cluster held."""

    __slots__ = ("failed", "in_progress", "issued", "metrics", "succeeded")

    def __init__(self) -> None:
        self.issued = self.succeeded = self.failed = self.in_progress = 0
        self.metrics: dict[str, MetricSum] = {}

    def begin(self) -> None:
        """A request goes out."""
        self.issued += 1
        self.in_progress += 1

    def end(self, *, is_success: bool) -> None:
        """A request has ended."""
        self.in_progress -= 1
        if is_success:
            self.succeeded += 1
        else:
            self.failed += 1

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Count what an answer reported, by the names that go into the report."""
        for name, value in metrics.items():
            before = self.metrics.get(name, _NO_METRIC)
            if before is _NO_METRIC and len(self.metrics) >= MAX_METRICS:
                continue
            self.metrics[name] = MetricSum(before.count + 1, before.total + value)


_NO_METRIC: Final = MetricSum(0, 0.0)


class ClusterLoad:
    """The counts of one cluster (and EDS service) for its management server."""

    def __init__(self, cluster: str, service: str, now: float, *, lock: Lock, metrics: tuple[str, ...] = ()) -> None:
        """Start from zero.

        Args:
            service: EDS service name, or empty.
            now: Monotonic seconds.
            lock: Of whoever changes the localities' counts.
            metrics: What of the endpoints' own reports goes into ours (`lrs_report_endpoint_metrics`).
        """
        # Fixed at creation.
        self.cluster = cluster
        self.service = service
        self.metrics = metrics
        # Guards all that follows, and the localities' counts.
        self._lock = lock
        self._localities: dict[Locality, LocalityLoad] = {}
        self._current: frozenset[Locality] = frozenset()
        self._dropped: dict[str, int] = {}
        self._refused = 0
        self._read_at = now

    def use(self, localities: Iterable[Locality]) -> Mapping[Locality, LocalityLoad]:
        """Set the localities that there are, with the lock held; the counts of others are told until they are zero."""
        self._current = frozenset(localities)
        return {locality: self._localities.setdefault(locality, LocalityLoad()) for locality in self._current}

    def drop(self, category: str = "") -> None:
        """Count a request that was not sent: a category of EDS, or empty for the circuit breaker."""
        with self._lock:
            if category:
                self._dropped[category] = self._dropped.get(category, 0) + 1
            else:
                self._refused += 1

    @property
    def is_idle(self) -> bool:
        """Nothing is in progress, and nothing was counted since the last report."""
        with self._lock:
            return not (self._refused or self._dropped) and not any(
                load.issued or load.succeeded or load.failed or load.in_progress or load.metrics
                for load in self._localities.values()
            )

    def take(self, now: float) -> ClusterReport:
        """Read the counts and start from zero again."""
        with self._lock:
            localities = []
            for locality, load in sorted(self._localities.items()):
                report = LocalityReport(
                    locality, load.issued, load.succeeded, load.failed, load.in_progress, MappingProxyType(load.metrics)
                )
                if locality not in self._current and report.is_zero:
                    del self._localities[locality]
                    continue
                localities.append(report)
                load.issued = load.succeeded = load.failed = 0
                load.metrics = {}
            dropped, self._dropped = self._dropped, {}
            refused, self._refused = self._refused, 0
            interval_s, self._read_at = now - self._read_at, now
        total = sum(dropped.values()) + refused
        return ClusterReport(
            self.cluster, self.service, tuple(localities), tuple(sorted(dropped.items())), total, interval_s
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """What a server wants to hear.

    Attributes:
        send_all: Of every cluster; `clusters` does not count then.
        interval_s: Between reports.
    """

    send_all: bool
    clusters: frozenset[str]
    interval_s: float


class LoadReporting:
    """When to report what, on one stream after another to one server."""

    def __init__(self) -> None:
        self._demand: Demand | None = None
        self._was_zero = False
        self.has_response = False
        """The open stream, or the last one, has delivered a response."""

    def opened(self) -> None:
        """A stream is there. Its first message says who we are, and nothing more."""
        self._demand = None
        self._was_zero = False
        self.has_response = False

    def received(self, demand: Demand) -> float | None:
        """A response came: it replaces the one before.

        Returns:
            Seconds to the next report, when the time of that changed; None: as it was.
        """
        self.has_response = True
        demand = Demand(
            demand.send_all,
            frozenset() if demand.send_all else demand.clusters,
            max(demand.interval_s, MIN_INTERVAL_S),
        )
        before, self._demand = self._demand, demand
        return None if before is not None and before.interval_s == demand.interval_s else demand.interval_s

    def due(self, reports: Sequence[ClusterReport]) -> tuple[ClusterReport, ...] | None:
        """It is time to report; all counts were read.

        Returns:
            What to send (the time to the next one begins when the transport has taken it); None: nothing this time.
        """
        demand = self._demand
        if demand is None:
            return None
        asked = tuple(report for report in reports if demand.send_all or report.cluster in demand.clusters)
        is_zero = all(report.is_zero for report in asked)
        was_zero, self._was_zero = self._was_zero, is_zero
        # One report of zeros follows activity, so that the server need not guess.
        return None if is_zero and was_zero else asked

    @property
    def interval_s(self) -> float | None:
        """Seconds between reports; None: the server has not said yet."""
        return None if self._demand is None else self._demand.interval_s


def propagated_metrics(
    utilizations: Mapping[str, float], named: Mapping[str, float], wanted: tuple[str, ...]
) -> dict[str, float]:
    """Return what of an endpoint's own report goes into ours, by the names there.

    Args:
        utilizations: By field name.
        named: `named_metrics`.
        wanted: `lrs_report_endpoint_metrics`; words that mean nothing are passed over.

    Source: gRFC A85.
    """
    found: dict[str, float] = {}
    for word in wanted:
        if word in UTILIZATIONS:
            if utilizations.get(word):
                found[word] = utilizations[word]
        elif word == f"{NAMED}*":
            found.update({NAMED + name: value for name, value in named.items()})
        elif word.startswith(NAMED) and word.removeprefix(NAMED) in named:
            found[word] = named[word.removeprefix(NAMED)]
    return found
