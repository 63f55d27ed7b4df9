"""The standard metrics, aggregated in plain arrays as calls end; exporters read them when they are asked.

Names and labels are Istio's (`istio_requests_total`, `istio_request_duration_milliseconds`), so that dashboards made for
a sidecar mesh show this one too. Recording costs about a microsecond; an OpenTelemetry SDK instrument costs eight.

Label values come from configuration and from peers, so their number is bounded: beyond `max_series` everything new is
counted under the value `other`, and a warning in the log says so once.
"""

import logging
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from meshlib.events import AttemptFinished, CallFinished, Event, HostEjected, RequestMirrored, RequestServed
from meshlib.ports import Lock

__all__ = ["BUCKETS_MS", "LABELS", "Histogram", "Sample", "StandardMetrics"]

BUCKETS_MS = (
    0.5,
    1,
    5,
    10,
    25,
    50,
    100,
    250,
    500,
    1000,
    2500,
    5000,
    10000,
    30000,
    60000,
    300000,
    600000,
    1800000,
    3600000,
)
"""Upper bounds of the duration histogram in milliseconds: Envoy's defaults."""

LABELS = (
    "reporter",
    "source_app",
    "source_version",
    "source_workload_namespace",
    "source_principal",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_version",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
)
_LOG = logging.getLogger(__name__)

UNKNOWN = "unknown"
_CLASSES = {number: f"{number}xx" for number in range(6)}
_GRPC = {number: f"grpc_{number}" for number in range(17)}
OTHER = "other"
MAX_SERIES = 5000
DOMAIN = "svc.cluster.local"
"""Of a server's own service name when it is given without one: Kubernetes' default."""


class Histogram:
    """Counts by upper bound; the last bucket is unbounded."""

    __slots__ = ("buckets", "count", "sum")

    def __init__(self, size: int) -> None:
        self.buckets = [0] * (size + 1)
        self.count = 0
        self.sum = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The requests of one set of labels, as of now.

    Attributes:
        labels: In the order of `LABELS`.
        buckets: Requests per bucket of `BUCKETS_MS`, not cumulated; the last one is unbounded.
        sum_ms: Sum of all durations.
    """

    labels: tuple[str, ...]
    count: int
    buckets: tuple[int, ...]
    sum_ms: float


class StandardMetrics:
    """A hook on events that keeps the standard metrics of one process."""

    def __init__(
        self,
        *,
        app: str = UNKNOWN,
        version: str = UNKNOWN,
        namespace: str = UNKNOWN,
        buckets_ms: tuple[float, ...] = BUCKETS_MS,
        max_series: int = MAX_SERIES,
    ) -> None:
        """
        Args:
            app: Name of this workload; `identify` can say it later.
            version: Its version.
            namespace: Its namespace.
            buckets_ms: Upper bounds of the duration histogram, ascending.
            max_series: Most sets of labels that are kept apart.
        """
        self.buckets_ms = buckets_ms
        self._max_series = max_series
        self._lock = Lock()
        # Guarded by the lock.
        self._source = (app, version, namespace)
        self._is_full = False
        self._requests: dict[tuple[str, ...], Histogram] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._ejections: dict[tuple[str, str], int] = {}
        self._mirrored: dict[tuple[str, str], int] = {}
        # A call's labels repeat: the long tuple is built once for each distinct short key.
        self._labels: dict[tuple[object, ...], tuple[str, ...]] = {}
        # Where gRPC calls that go well are counted, by cluster, target and security.
        self._good: dict[tuple[str, str, bool], tuple[tuple[str, str], Histogram]] = {}

    def identify(self, *, app: str = "", version: str = "", namespace: str = "") -> None:
        """Say who this workload is. What is known already stays, and what is empty is left open."""
        with self._lock:
            known = zip(self._source, (app, version, namespace), strict=True)
            first, second, third = (found if found != UNKNOWN else said or UNKNOWN for found, said in known)
            self._source = (first, second, third)
            self._labels.clear()
            self._good.clear()

    def __call__(self, event: Event) -> None:
        """Take over one event."""
        if isinstance(event, CallFinished):
            self.ended(
                event.kind,
                event.cluster,
                event.target,
                event.status,
                event.grpc_status,
                event.flag,
                event.secure,
                event.duration_s,
            )
        elif isinstance(event, AttemptFinished):
            self.attempted(event.cluster, event.status, event.grpc_status, event.failure, event.will_retry)
        elif isinstance(event, RequestServed):
            caller = (event.kind, event.service, event.principal, event.status, event.grpc_status, event.denied)
            labels = self._labels.get(caller) or self._remember(caller, self._inbound(event))
            self._record(labels, event.duration_s * 1000)
        elif isinstance(event, HostEjected):
            self._count(self._ejections, (event.cluster, event.reason))
        elif isinstance(event, RequestMirrored):
            self._count(self._mirrored, (event.cluster, event.failure or f"{event.status // 100}xx"))

    def attempted(self, cluster: str, status: int, grpc_status: int | None, failure: str, will_retry: bool) -> None:
        """As `Meter.attempted`."""
        if will_retry:
            outcome = "retried"
        elif failure:
            outcome = failure
        elif grpc_status is not None:
            outcome = _GRPC.get(grpc_status) or f"grpc_{grpc_status}"
        else:
            outcome = _CLASSES.get(status // 100) or f"{status // 100}xx"
        key = (cluster, outcome)
        with self._lock:
            if key in self._attempts:
                self._attempts[key] += 1
                return
        self._count(self._attempts, key)

    def ended(
        self,
        kind: str,
        cluster: str,
        target: str,
        status: int,
        grpc_status: int | None,
        flag: str,
        secure: bool,
        duration_s: float,
    ) -> None:
        """As `Meter.ended`."""
        key = (kind, cluster, target, status, grpc_status, flag, secure)
        labels = self._labels.get(key) or self._remember(
            key, self._outbound(kind, cluster, target, status, grpc_status, flag)
        )
        milliseconds = duration_s * 1000
        index = bisect_left(self.buckets_ms, milliseconds)
        with self._lock:
            histogram = self._requests.get(labels)
            if histogram is None:
                histogram = self._requests[labels] = Histogram(len(self.buckets_ms))
            histogram.buckets[index] += 1
            histogram.count += 1
            histogram.sum += milliseconds

    def succeeded(self, cluster: str, target: str, secure: bool, duration_s: float) -> None:
        """As `Meter.succeeded`."""
        key = (cluster, target, secure)
        found = self._good.get(key)
        if found is None:
            self.attempted(cluster, 200, 0, "", False)
            self.ended("grpc", cluster, target, 200, 0, "-", secure, duration_s)
            self._keep_good(key)
            return
        milliseconds = duration_s * 1000
        index = bisect_left(self.buckets_ms, milliseconds)
        attempt, histogram = found
        with self._lock:
            self._attempts[attempt] += 1
            histogram.buckets[index] += 1
            histogram.count += 1
            histogram.sum += milliseconds

    def _keep_good(self, key: tuple[str, str, bool]) -> None:
        """Note where such calls are counted, unless that is together with others, as there are too many series."""
        cluster, target, secure = key
        attempt = (cluster, _GRPC[0])
        with self._lock:
            labels = self._labels.get(("grpc", cluster, target, 200, 0, "-", secure))
            histogram = None if labels is None else self._requests.get(labels)
            if histogram is not None and attempt in self._attempts:
                self._good[key] = (attempt, histogram)

    def _remember(self, key: tuple[object, ...], labels: tuple[str, ...]) -> tuple[str, ...]:
        with self._lock:
            if len(self._labels) < self._max_series:
                self._labels[key] = labels
                return labels
        self._warn("requests")
        return (labels[0], *(OTHER,) * (len(LABELS) - 1))

    def _warn(self, what: str) -> None:
        with self._lock:
            was_full, self._is_full = self._is_full, True
        if not was_full:
            _LOG.warning(
                "metrics: there are %d sets of labels of %s; whatever is new is counted under %r from now on",
                self._max_series,
                what,
                OTHER,
            )

    def _record(self, labels: tuple[str, ...], milliseconds: float) -> None:
        index = bisect_left(self.buckets_ms, milliseconds)
        with self._lock:
            histogram = self._requests.get(labels)
            if histogram is None:
                histogram = self._requests[labels] = Histogram(len(self.buckets_ms))
            histogram.buckets[index] += 1
            histogram.count += 1
            histogram.sum += milliseconds

    def _count(self, counters: dict[tuple[str, str], int], key: tuple[str, str]) -> None:
        with self._lock:
            if key in counters:
                counters[key] += 1
                return
            is_over = len(counters) >= self._max_series
            if is_over:
                key = (OTHER, OTHER)
            counters[key] = counters.get(key, 0) + 1
        if is_over:
            self._warn("attempts and ejections")

    def _outbound(
        self, kind: str, cluster: str, target: str, status: int, grpc_status: int | None, flag: str
    ) -> tuple[str, ...]:
        app, version, namespace = self._source
        service, name, destination_namespace, destination_version = destination_of(cluster, target)
        return (
            *("source", app, version, namespace, UNKNOWN),
            *(service, name, destination_namespace, destination_version),
            *(kind, str(status), "" if grpc_status is None else str(grpc_status), flag or "-"),
            # Istio's rule: the client's proxy does not judge the connection's security.
            UNKNOWN,
        )

    def _inbound(self, event: RequestServed) -> tuple[str, ...]:
        app, version, namespace = self._source
        caller = event.principal.rpartition("/sa/")[2] or UNKNOWN
        caller_namespace = event.principal.partition("/ns/")[2].partition("/")[0] or UNKNOWN
        service = event.service or app
        name, _, rest = service.partition(".")
        if not rest and UNKNOWN not in (name, namespace):
            service = f"{name}.{namespace}.{DOMAIN}"  # as the callers' side names it
        return (
            *("destination", caller, UNKNOWN, caller_namespace, event.principal or UNKNOWN),
            *(service, name, namespace, version),
            *(event.kind, str(event.status), "" if event.grpc_status is None else str(event.grpc_status), "-"),
            "mutual_tls" if event.principal else "none",
        )

    def requests(self) -> tuple[Sample, ...]:
        """Return the requests so far, a sample for each set of labels."""
        with self._lock:
            return tuple(
                Sample(labels, histogram.count, tuple(histogram.buckets), histogram.sum)
                for labels, histogram in self._requests.items()
            )

    def attempts(self) -> Mapping[tuple[str, str], int]:
        """Return the attempts so far by (cluster, outcome)."""
        with self._lock:
            return dict(self._attempts)

    def mirrored(self) -> Mapping[tuple[str, str], int]:
        """Return the copies of requests so far by (cluster of the mirror, outcome)."""
        with self._lock:
            return dict(self._mirrored)

    def ejections(self) -> Mapping[tuple[str, str], int]:
        """Return the ejections so far by (cluster, reason)."""
        with self._lock:
            return dict(self._ejections)


def destination_of(cluster: str, target: str) -> tuple[str, str, str, str]:
    """Return service (FQDN), its name, its namespace and the subset of a cluster.

    Clusters named otherwise than Istio's `outbound|port|subset|fqdn` are their own service.
    """
    parts = cluster.split("|")
    if len(parts) != 4 or parts[0] != "outbound":
        service = cluster or target or UNKNOWN
        return service, service, UNKNOWN, UNKNOWN
    _, _, subset, fqdn = parts
    name, _, rest = fqdn.partition(".")
    namespace = rest.partition(".")[0] if rest.partition(".")[2].startswith("svc") else ""
    return fqdn, name if namespace else fqdn, namespace or UNKNOWN, subset or UNKNOWN
