"""Route configurations (RDS): virtual hosts, routes and what they do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from meshlib.model.descriptors import LimitRule
from meshlib.model.endpoint import NO_METADATA
from meshlib.model.filters import HeaderFilters, LimitOverrides
from meshlib.model.headers import NO_MUTATION, AppendAction, HeaderAdd, HeaderChange, HeaderMutation
from meshlib.model.local_reply import BodyFormat
from meshlib.model.match_tree import MatchTree
from meshlib.model.matcher import Fraction, HeaderMatcher, PathMatcher, ProxyCondition, QueryMatcher, RuntimeKeys
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.session import MadeCookie, SessionPolicy
from meshlib.model.subset import MatchCriteria

__all__ = [
    "AppendAction",
    "ClusterHeader",
    "ClusterWeight",
    "DirectResponse",
    "FaultAbort",
    "FaultDelay",
    "FaultPolicy",
    "FaultRateLimit",
    "HashPolicy",
    "HeaderAdd",
    "HeaderChange",
    "HeaderMutation",
    "InternalRedirectPolicy",
    "MadeCookie",
    "MirrorPolicy",
    "NonForwarding",
    "Redirect",
    "RegexRewrite",
    "Route",
    "RouteAction",
    "RouteConfiguration",
    "RouteMatcher",
    "SingleCluster",
    "VirtualHost",
    "WeightedClusters",
]


@dataclass(frozen=True, slots=True)
class FaultDelay:
    """Attributes:
    fixed_s: The delay.
    by_header: The request says how long instead (`x-envoy-fault-delay-request`), and how often, up to the share.
    instead_s: What a runtime value makes of any delay that the request wants; None: it stays.
    is_share_fixed: A runtime value says how often, whatever the request wants; so in what follows.
    runtime_keys: Other than Envoy's own (`fault.http...`); so in what follows.
    """

    fixed_s: float
    share: Fraction
    by_header: bool = False
    instead_s: float | None = None
    is_share_fixed: bool = False
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class FaultAbort:
    """Attributes:
    http_status: 200-599, or 0 when `grpc_status` is given.
    by_header: The request says with what instead (`x-envoy-fault-abort-request`, `x-envoy-fault-abort-grpc-request`),
        and how often, up to the share. A status that stands here beside it is a runtime value's, in place of any
        other of its kind.
    """

    share: Fraction
    http_status: int = 0
    grpc_status: int | None = None
    by_header: bool = False
    is_share_fixed: bool = False
    runtime_keys: RuntimeKeys = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class FaultRateLimit:
    """Attributes:
    kib_per_s: Of the response's body.
    by_header: The request says how much instead (`x-envoy-fault-throughput-response`), and how often, up to the share.
    """

    kib_per_s: int
    share: Fraction
    by_header: bool = False
    is_share_fixed: bool = False


def _no_callers() -> "Mapping[str, FaultPolicy]":
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FaultPolicy:
    """`envoy.extensions.filters.http.fault.v3.HTTPFault`.

    Attributes:
        headers: The fault only concerns requests that match all of these.
        max_active: `max_active_faults`; None: no limit.
        upstream_cluster: The fault only concerns requests that go there; empty: any.
        downstream_nodes: And those whose `x-envoy-downstream-service-node` is one of these; empty: any.
        rate_limit: Of the body of the response. Not for gRPC.
        by_caller: By `x-envoy-downstream-service-cluster`: what holds instead, where runtime values name that cluster.
        for_callers: What holds instead for all others that have this header; None: the policy itself.
    """

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None
    headers: tuple[HeaderMatcher, ...] = ()
    max_active: int | None = None
    upstream_cluster: str = ""
    downstream_nodes: tuple[str, ...] = ()
    rate_limit: FaultRateLimit | None = None
    runtime_keys: RuntimeKeys = field(default=(), compare=False)
    by_caller: "Mapping[str, FaultPolicy]" = field(default_factory=_no_callers, hash=False)
    for_callers: "FaultPolicy | None" = None

    def __bool__(self) -> bool:
        return self.delay is not None or self.abort is not None or self.rate_limit is not None


@dataclass(frozen=True, slots=True)
class SingleCluster:
    name: str


@dataclass(frozen=True, slots=True)
class ClusterHeader:
    """The cluster is named by the first value of a request header."""

    header: str


@dataclass(frozen=True, slots=True)
class ClusterWeight:
    """Attributes:
    name: Empty: a request header names the cluster.
    cluster_header: That header.
    fault: Overrides the route's; None: the route's.
    metadata_match: Is merged over the route's, and wins; None: the route's.
    session: Overrides the route's; None: the route's.
    """

    name: str
    weight: int
    cluster_header: str = ""
    mutation: HeaderMutation = NO_MUTATION
    host_rewrite: str = ""
    fault: FaultPolicy | None = None
    limits: LimitOverrides = ()
    header_filters: HeaderFilters = ()
    metadata_match: MatchCriteria | None = None
    session: SessionPolicy | None = None


@dataclass(frozen=True, slots=True)
class WeightedClusters:
    """Attributes:
    header_name: A request header whose number chooses; empty: none.
    runtime_key_prefix: A runtime value of `<prefix>.<cluster>` counts instead of a weight; empty: none does.
    """

    clusters: tuple[ClusterWeight, ...]
    header_name: str = ""
    use_hash_policy: bool = False
    runtime_key_prefix: str = ""


@dataclass(frozen=True, slots=True)
class RegexRewrite:
    """Attributes:
    substitution: With `\\1` references, RE2 style.
    """

    pattern: str
    substitution: str


@dataclass(frozen=True, slots=True)
class HashPolicy:
    """One source of the request's hash.

    Attributes:
        kind: `header`, `cookie`, `source_ip`, `query_parameter` or `filter_state`.
        name: Header, cookie, parameter or key.
        terminal: Stop here if a hash was found so far.
        regex: Rewrites the header's value before hashing.
        made: The cookie to make for a caller that brings none; None: none is made.
    """

    kind: str
    name: str = ""
    terminal: bool = False
    regex: RegexRewrite | None = None
    made: MadeCookie | None = None


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """Attributes:
    cluster: Empty: a request header names the cluster; without that header there is no copy.
    cluster_header: That header.
    keeps_host: The copy names the same host; else `-shadow` is added to it (Envoy's default).
    host_rewrite: The copy's host; empty: as above.
    changes: What happens to the copy's headers, in order.
    """

    cluster: str
    share: Fraction
    keeps_host: bool = False
    cluster_header: str = ""
    host_rewrite: str = ""
    changes: tuple[HeaderChange, ...] = ()


@dataclass(frozen=True, slots=True)
class InternalRedirectPolicy:
    """Redirects that the mesh follows itself (httpx).

    Attributes:
        max_redirects: Of one request.
        codes: Statuses that count.
        allows_cross_scheme: From http to https, or back.
        copied_headers: From the response into the new request, in lower case.
        avoids_previous_routes: Predicate previous_routes: no route twice from the same one.
        allowed_routes: Predicate allow_listed_routes: names; None: it is not there.
        is_safe_cross_scheme: Predicate safe_cross_scheme: never from http to https.
    """

    max_redirects: int = 1
    codes: frozenset[int] = frozenset({302})
    allows_cross_scheme: bool = False
    copied_headers: tuple[str, ...] = ()
    avoids_previous_routes: bool = False
    allowed_routes: frozenset[str] | None = None
    is_safe_cross_scheme: bool = False


@dataclass(frozen=True, slots=True)
class RouteAction:
    """Forward the request.

    Attributes:
        timeout_s: Global timeout; None: Envoy's 15 s; 0: none.
        max_stream_duration_s: None: the message is absent; 0: no limit.
        grpc_timeout_header_max_s: None: absent; 0: no cap.
        hash_policies: In order.
        high_priority: The circuit breaker set is the high priority one.
        metadata_match: In clusters with subsets: which endpoints; None: any, as the cluster's fallback says.
        template_rewrite: A URI template whose variables are those of the route's path template (`path_rewrite_policy`).
        path_format: A substitution format that makes the new path (`path_rewrite`).
        host_rewrite_regex: Makes the host of the path without query (`host_rewrite_path_regex`).
        host_format: A substitution format that makes the host (`host_rewrite`).
        is_trusted: Of a server with the feature `trusted_xds_server`: gRPC calls, too, go by `auto_host_rewrite`.
        limit_rules: What local rate limits count requests by (`rate_limits`).
        includes_host_limits: Those of the virtual host count in any case (`include_vh_rate_limits`).
    """

    cluster: SingleCluster | WeightedClusters | ClusterHeader
    timeout_s: float | None = None
    idle_timeout_s: float | None = None
    retry: RetryPolicy | None = None
    hedge: HedgePolicy | None = None
    internal_redirect: InternalRedirectPolicy | None = None
    max_stream_duration_s: float | None = None
    grpc_timeout_header_max_s: float | None = None
    grpc_timeout_header_offset_s: float = 0.0
    prefix_rewrite: str = ""
    regex_rewrite: RegexRewrite | None = None
    template_rewrite: str = ""
    path_format: str = ""
    host_rewrite_literal: str = ""
    host_rewrite_header: str = ""
    host_rewrite_regex: RegexRewrite | None = None
    host_format: str = ""
    auto_host_rewrite: bool = False
    is_trusted: bool = False
    append_x_forwarded_host: bool = False
    hash_policies: tuple[HashPolicy, ...] = ()
    mirrors: tuple[MirrorPolicy, ...] = ()
    cluster_not_found_status: int = 503
    high_priority: bool = False
    metadata_match: MatchCriteria | None = None
    limit_rules: tuple[LimitRule, ...] = ()
    includes_host_limits: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """Attributes:
    status: 301, 302, 303, 307 or 308.
    """

    status: int = 301
    scheme: str = ""
    https: bool = False
    host: str = ""
    port: int = 0
    path: str = ""
    prefix_rewrite: str = ""
    regex_rewrite: RegexRewrite | None = None
    strip_query: bool = False


@dataclass(frozen=True, slots=True)
class DirectResponse:
    """Attributes:
    form: Makes the body; `%LOCAL_REPLY_BODY%` in it is `body`. None: it is `body`.
    content_type: Of the body, whatever mutations say; empty: theirs, or the default one.
    """

    status: int
    body: bytes = b""
    form: BodyFormat | None = None
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class NonForwarding:
    """For servers: let the request in. In a client it leads nowhere."""


@dataclass(frozen=True, slots=True)
class RouteMatcher:
    """All conditions must hold."""

    path: PathMatcher
    headers: tuple[HeaderMatcher, ...] = ()
    query: tuple[QueryMatcher, ...] = ()
    grpc: bool = False
    fraction: Fraction | None = None
    proxy: tuple[ProxyCondition, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """Attributes:
    fault: This route's override of the fault filter; None: not given here.
    session: Of the filter for stateful sessions, likewise.
    body_limit: Bytes of a request's body up to which it is repeated; None: no limit.
    metadata: filter_metadata by filter name; `meshlib` holds the origin.
    """

    match: RouteMatcher
    action: RouteAction | Redirect | DirectResponse | NonForwarding
    name: str = ""
    mutation: HeaderMutation = NO_MUTATION
    fault: FaultPolicy | None = None
    session: SessionPolicy | None = None
    limits: LimitOverrides = ()
    body_limit: int | None = None
    header_filters: HeaderFilters = ()
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """Attributes:
    requires_tls: Requests over plain http are sent to https (`require_tls: ALL`).
    has_tree: Routes are not tried in order: `tree` says which may take a request; None: it is empty, and none may.
    metadata: filter_metadata by filter name; `meshlib` holds the origin.
    """

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    retry: RetryPolicy | None = None
    hedge: HedgePolicy | None = None
    mutation: HeaderMutation = NO_MUTATION
    fault: FaultPolicy | None = None
    session: SessionPolicy | None = None
    limits: LimitOverrides = ()
    header_filters: HeaderFilters = ()
    include_attempt_count: bool = False
    include_attempt_count_in_response: bool = False
    include_timeout_retry: bool = False
    requires_tls: bool = False
    tree: MatchTree | None = None
    has_tree: bool = False
    limit_rules: tuple[LimitRule, ...] = ()
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class RouteConfiguration:
    """Attributes:
    most_specific_mutations_win: Order of the levels of header mutations (Envoy's flag of that name).
        has_more_hosts: Virtual hosts that are not here are asked for when a request names them (VHDS).
    host_header: The request header that stands for the authority when the virtual host is looked for; empty: none.
    ignores_path_parameters: `;...` of each path segment does not count when paths are matched.
    """

    name: str
    virtual_hosts: tuple[VirtualHost, ...]
    mutation: HeaderMutation = NO_MUTATION
    most_specific_mutations_win: bool = False
    ignore_port_in_host: bool = False
    host_header: str = ""
    ignores_path_parameters: bool = False
    fault: FaultPolicy | None = None
    session: SessionPolicy | None = None
    has_more_hosts: bool = False
    limits: LimitOverrides = ()
    header_filters: HeaderFilters = ()
