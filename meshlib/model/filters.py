"""HTTP filters that limit what goes out: rates, admission, concurrency."""

from dataclasses import dataclass, field

from meshlib.model.descriptors import HostLimits, LimitRule
from meshlib.model.headers import HeaderAdd, HeaderChange
from meshlib.model.matcher import Fraction, RuntimeKeys

__all__ = [
    "AdaptiveConcurrency",
    "AdmissionControl",
    "DescriptorLimit",
    "HeaderFilter",
    "HeaderFilters",
    "LimitFilter",
    "LimitOverrides",
    "ListedHeaderFilter",
    "ListedLimit",
    "LocalRateLimit",
    "TokenBucket",
]

GRPC_FAULTS = frozenset({4, 8, 10, 13, 14, 15})
"""DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE, DATA_LOSS."""
HTTP_SUCCESS = ((100, 500),)


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """Attributes:
    max_tokens: Capacity; 0: nothing ever passes, and responses say nothing of the limit.
    tokens_per_fill: How many come per `fill_interval_s`; they come continuously. Envoy's default is 1.
    fill_interval_s: At least 0.05.
    """

    max_tokens: int
    tokens_per_fill: int
    fill_interval_s: float


@dataclass(frozen=True, slots=True)
class DescriptorLimit:
    """A bucket for requests with a descriptor.

    Attributes:
        entries: Keys and values, in order; an empty value stands for any, each of which has a bucket of its own.
    """

    entries: tuple[tuple[str, str], ...]
    bucket: TokenBucket


@dataclass(frozen=True, slots=True)
class LocalRateLimit:
    """Attributes:
    bucket: Of all requests; None: there is none.
    enabled: Share of requests that take a token; Envoy's default is none.
    enforced: Share of those without a token that are refused; Envoy's default is none.
    status: Of the refusal; at least 400.
    response_headers: Of the refusal.
    unenforced_headers: Added to a request that found no token and passes all the same.
    is_exhaustion: A refused gRPC call gets RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    tells_limits: Responses carry `x-ratelimit-limit`, `-remaining` and `-reset`.
    descriptors: Requests with one of these take from its bucket first.
    rules: Make descriptors; without any, those of the route and the virtual host do.
    stage: Of the rules of routes and virtual hosts those count.
    host_limits: Whether those of the virtual host count.
    always_takes: Requests with a descriptor take from `bucket` too.
    max_dynamic: Buckets of one entry of `descriptors` at most, those used last.
    is_per_connection: Each connection of a caller has its own buckets; in a client the process is the caller.
    """

    bucket: TokenBucket | None
    enabled: Fraction
    enforced: Fraction
    status: int = 429
    response_headers: tuple[HeaderAdd, ...] = ()
    unenforced_headers: tuple[HeaderAdd, ...] = ()
    is_exhaustion: bool = False
    tells_limits: bool = False
    descriptors: tuple[DescriptorLimit, ...] = ()
    rules: tuple[LimitRule, ...] = ()
    stage: int = 0
    host_limits: HostLimits = HostLimits.OVERRIDDEN
    always_takes: bool = True
    max_dynamic: int = 20
    is_per_connection: bool = False


@dataclass(frozen=True, slots=True)
class AdmissionControl:
    """Refuse at random what a failing service would fail anyway. Envoy's fields and defaults.

    Attributes:
        is_enabled: Else the filter only passes requests on.
        window_s: How long results count.
        aggression: Above 0; 1.0 is linear, more refuses earlier.
        threshold: Success rate from which on all pass, above 0.0, up to 1.0.
        rps_threshold: Requests per second below which all pass.
        max_rejection: Probability of a refusal at most, 0.0-1.0.
        http_success: Ranges of statuses that are successes, `start <= status < end`.
        grpc_success: Codes that are successes; None: all but `GRPC_FAULTS`.
        runtime_keys: Fields that a runtime value may stand for.
    """

    is_enabled: bool = True
    window_s: float = 30.0
    aggression: float = 1.0
    threshold: float = 0.95
    rps_threshold: int = 0
    max_rejection: float = 0.8
    http_success: tuple[tuple[int, int], ...] = HTTP_SUCCESS
    grpc_success: frozenset[int] | None = None
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class AdaptiveConcurrency:
    """Find out by latency how many requests may be under way. Envoy's gradient controller, fields and defaults.

    Attributes:
        is_enabled: Else the filter only passes requests on.
        status: Of the refusal; at least 400.
        percentile: Which of the latencies of a window counts, 0-100.
        max_limit: Highest limit.
        update_interval_s: Time between updates of the limit.
        min_rtt_interval_s: Time between measurements of the least latency; None: it is `min_rtt_s`, never measured.
        min_rtt_s: Fixed least latency.
        min_rtt_requests: Samples of one measurement.
        min_rtt_jitter_percent: Longest delay of a measurement, in percent of its interval.
        min_limit: Limit during a measurement, and lowest limit.
        buffer_percent: How much longer than the least a latency may be before the limit shrinks.
        runtime_keys: Fields that a runtime value may stand for.
    """

    is_enabled: bool = True
    status: int = 503
    percentile: float = 50.0
    max_limit: int = 1000
    update_interval_s: float = 0.1
    min_rtt_interval_s: float | None = 60.0
    min_rtt_s: float = 0.0
    min_rtt_requests: int = 50
    min_rtt_jitter_percent: float = 15.0
    min_limit: int = 3
    buffer_percent: float = 25.0
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


LimitFilter = LocalRateLimit | AdmissionControl | AdaptiveConcurrency

LimitOverrides = tuple[tuple[str, LimitFilter | None], ...]
"""What a level above or below says about filters, by their names; None: the filter is switched off there."""


@dataclass(frozen=True, slots=True)
class ListedLimit:
    """One such filter in a listener's chain.

    Attributes:
        name: By which routes refer to it.
        config: None: switched off, unless a route has a configuration for it.
        is_after_fault: It stands behind the fault filter: what is delayed or aborted there has not come to it yet.
    position: In a server: number of filters for authorization before it.
    """

    name: str
    config: LimitFilter | None
    is_after_fault: bool = False
    position: int = 0


@dataclass(frozen=True, slots=True)
class HeaderFilter:
    """What a header mutation filter does, by its own configuration or by that of a level: changes, in order."""

    request: tuple[HeaderChange, ...] = ()
    response: tuple[HeaderChange, ...] = ()


HeaderFilters = tuple[tuple[str, HeaderFilter | None], ...]
"""What a level says about filters, by their names; None: the filter is switched off there."""


@dataclass(frozen=True, slots=True)
class ListedHeaderFilter:
    """A header mutation filter in the chain of a listener.

    Attributes:
        is_disabled: Only a level that configures it switches it on.
        most_specific_wins: The changes of the most specific level come last.
        is_after_fault: A fault filter comes first, and sees the request as it was.
    """

    name: str
    own: HeaderFilter
    is_disabled: bool = False
    most_specific_wins: bool = False
    is_after_fault: bool = False
