"""Clusters (CDS)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshlib.model.dialling import DEFAULT_ORDER, DialOrder
from meshlib.model.dns import DnsLookup, DnsPace
from meshlib.model.endpoint import NO_METADATA, ClusterLoadAssignment, HealthStatus
from meshlib.model.health import HealthCheck
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    CustomPolicy,
    LbPolicy,
    LeastRequest,
    Maglev,
    PeakEwma,
    PickFirst,
    Random,
    RandomSubsetting,
    RingHash,
    RingHashFunction,
    RoundRobin,
    SlowStart,
    ZoneAware,
)
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import HashPolicy, MirrorPolicy
from meshlib.model.secret import ClientTls
from meshlib.model.subset import SubsetConfig

__all__ = [
    "AggregateDiscovery",
    "AuthorityNames",
    "CircuitBreakers",
    "ClientSideWeightedRoundRobin",
    "Cluster",
    "CustomPolicy",
    "DnsDiscovery",
    "EdsDiscovery",
    "LbPolicy",
    "LeastRequest",
    "LoadReports",
    "Maglev",
    "OutlierDetection",
    "PeakEwma",
    "PickFirst",
    "Probation",
    "Random",
    "RandomSubsetting",
    "RingHash",
    "RingHashFunction",
    "RoundRobin",
    "SlowStart",
    "StaticDiscovery",
    "TransportSocketMatch",
    "ZoneAware",
]

UNLIMITED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class EdsDiscovery:
    """Attributes:
    service_name: EDS resource name.
    """

    service_name: str


@dataclass(frozen=True, slots=True)
class StaticDiscovery:
    assignment: ClusterLoadAssignment


@dataclass(frozen=True, slots=True)
class DnsDiscovery:
    """Attributes:
    assignment: Endpoints whose addresses are names to resolve.
    logical: LOGICAL_DNS (one connection target) instead of STRICT_DNS (every address is an endpoint).
    lookup: How.
    pace: When again.
    waits: The cluster is not ready before its names have been looked up (`wait_for_warm_on_init`).
    """

    assignment: ClusterLoadAssignment
    logical: bool = False
    lookup: DnsLookup = field(default_factory=DnsLookup)
    pace: DnsPace = field(default_factory=DnsPace)
    waits: bool = True


@dataclass(frozen=True, slots=True)
class AggregateDiscovery:
    clusters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CircuitBreakers:
    """Thresholds of one priority. Envoy's defaults: 1024 each, and 3 retries.

    Attributes:
        max_connections_per_host: Open to one endpoint (`per_host_thresholds`); None: no limit.
        retry_budget_percent: When given, retries are limited to this share of active requests instead of `max_retries`.
    """

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_requests: int = 1024
    max_retries: int = 3
    max_connections_per_host: int | None = None
    retry_budget_percent: float | None = None
    min_retry_concurrency: int = 3


@dataclass(frozen=True, slots=True)
class Probation:
    """What an endpoint whose time out is over has to do to come back (ours; Envoy lets it in at once).

    Attributes:
        successes: So many in a row; a failure before takes it out again at once. At least 1.
        max_requests: Under way to it at the same time. At least 1.
        interval_s: Between two of them, at least; more than 0.
    """

    successes: int = 3
    max_requests: int = 1
    interval_s: float = 0.1


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """Envoy's fields and defaults (`envoy.config.cluster.v3.OutlierDetection`). Percentages are 0-100.

    Attributes:
        success_rate_stdev_factor: In thousandths.
        check_unejects: A passing active health check brings an endpoint back at once.
        probation: None: it comes back when its time is over.
    """

    consecutive_5xx: int = 5
    enforcing_consecutive_5xx: int = 100
    consecutive_gateway_failure: int = 5
    enforcing_consecutive_gateway_failure: int = 0
    consecutive_local_origin_failure: int = 5
    enforcing_consecutive_local_origin_failure: int = 100
    split_external_local_origin_errors: bool = False
    interval_s: float = 10.0
    base_ejection_time_s: float = 30.0
    max_ejection_time_s: float = 300.0
    max_ejection_time_jitter_s: float = 0.0
    max_ejection_percent: int = 10
    always_eject_one_host: bool = False
    success_rate_minimum_hosts: int = 5
    success_rate_request_volume: int = 100
    success_rate_stdev_factor: int = 1900
    enforcing_success_rate: int = 100
    enforcing_local_origin_success_rate: int = 100
    failure_percentage_threshold: int = 85
    failure_percentage_minimum_hosts: int = 5
    failure_percentage_request_volume: int = 50
    enforcing_failure_percentage: int = 0
    enforcing_failure_percentage_local_origin: int = 0
    check_unejects: bool = True
    probation: Probation | None = None


@dataclass(frozen=True, slots=True)
class LoadReports:
    """The cluster's load is reported to the management server that it came from (`lrs_server`).

    Attributes:
        metrics: What of the endpoints' own reports goes along (`lrs_report_endpoint_metrics`).
    """

    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AuthorityNames:
    """What TLS takes from the authority of a request (`upstream_http_protocol_options`), without its port.

    Attributes:
        is_sni: It is sent as SNI, unless it is an IP address (`auto_sni`).
        is_san: The peer's certificate must have it (`auto_san_validation`).
        header: Whose value stands for the authority where a request has it; empty: none.
    """

    is_sni: bool = False
    is_san: bool = False
    header: str = ""


@dataclass(frozen=True, slots=True)
class TransportSocketMatch:
    """Attributes:
    match: Must be contained in the endpoint's `envoy.transport_socket_match` metadata; empty matches all.
    tls: None: plaintext.
    """

    name: str
    match: tuple[tuple[str, object], ...]
    tls: ClientTls | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """One upstream service.

    Attributes:
        connect_timeout_s: Envoy's default is 5 s.
        tls: For endpoints that no `socket_matches` entry takes.
        panic_threshold_percent: `healthy_panic_threshold`; Envoy's default is 50; 0: no panic.
        fails_on_panic: A priority in panic takes no requests, instead of giving them to all its hosts.
        locality_weighted: Locality weights are honoured.
        zone_aware: Counts where locality weights do not.
        http2: The endpoints are spoken to over HTTP/2.
        max_requests_per_connection: None: no limit.
        idle_timeout_s: None: Envoy's 1 h.
        max_stream_duration_s: How long one attempt may take, response body included; None: no limit. Not for gRPC.
        retry: Takes the place of the policies of routes and virtual hosts; None: those count.
        hash_policies: Take the place of the route's; empty: the route's count.
        mirrors: Likewise.
        load_reports: None: nobody wants to know.
        maintenance_percent: Requests in a hundred that are answered with 503 instead, by a runtime value.
        override_statuses: Endpoints of stateful sessions are used while they are one of these; None: the resource does
            not say.
        named_by: Headers, in lower case, by which a request names the endpoints of its attempts before the policy is
            asked (the `override_host` policy).
        subsets: None: requests choose among all endpoints, whatever their criteria.
        health_check: None: endpoints are not checked.
        counts_new_hosts: An endpoint counts before its first check, as one that is out.
        keeps_passing_hosts: An endpoint that the resource names no more stays while it passes its checks.
        authority_names: None: TLS takes nothing from requests.
        dial_order: Of the addresses of an endpoint that has several.
    """

    name: str
    discovery: EdsDiscovery | StaticDiscovery | DnsDiscovery | AggregateDiscovery
    lb_policy: LbPolicy = field(default_factory=RoundRobin)
    connect_timeout_s: float = 5.0
    circuit_breakers: CircuitBreakers = field(default_factory=CircuitBreakers)
    high_priority_circuit_breakers: CircuitBreakers = field(default_factory=CircuitBreakers)
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    socket_matches: tuple[TransportSocketMatch, ...] = ()
    panic_threshold_percent: float = 50.0
    fails_on_panic: bool = False
    locality_weighted: bool = False
    zone_aware: ZoneAware = field(default_factory=ZoneAware)
    http2: bool = False
    max_requests_per_connection: int | None = None
    idle_timeout_s: float | None = None
    max_stream_duration_s: float | None = None
    retry: RetryPolicy | None = None
    hash_policies: tuple[HashPolicy, ...] = ()
    mirrors: tuple[MirrorPolicy, ...] = ()
    load_reports: LoadReports | None = None
    maintenance_percent: int = 0
    subsets: SubsetConfig | None = None
    authority_names: AuthorityNames | None = None
    override_statuses: frozenset[HealthStatus] | None = None
    named_by: tuple[str, ...] = ()
    health_check: HealthCheck | None = None
    counts_new_hosts: bool = True
    keeps_passing_hosts: bool = True
    dial_order: DialOrder = DEFAULT_ORDER
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, hash=False, repr=False)
