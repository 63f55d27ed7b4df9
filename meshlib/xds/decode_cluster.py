"""Clusters (CDS)."""

from dataclasses import replace
from typing import Any, Final

from meshlib.model.cluster import (
    AggregateDiscovery,
    AuthorityNames,
    CircuitBreakers,
    Cluster,
    DnsDiscovery,
    EdsDiscovery,
    LoadReports,
    OutlierDetection,
    StaticDiscovery,
    TransportSocketMatch,
)
from meshlib.model.dialling import DialOrder
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.model.secret import ClientTls
from meshlib.xds.decode_cluster_http import decode_protocol
from meshlib.xds.decode_cluster_lb import decode_balancing, override_statuses
from meshlib.xds.decode_cluster_type import (
    AGGREGATE_TYPE,
    CUSTOM,
    DNS_TYPE,
    LOGICAL_DNS,
    STRICT_DNS,
    configuration_of,
    kind_of,
    type_of,
)
from meshlib.xds.decode_common import (
    any_type,
    check_source,
    cover,
    duration,
    is_discovered_by_ads,
    join,
    read_metadata,
    struct,
    wrapped,
)
from meshlib.xds.decode_dns import CLUSTER_FIELDS, decode_dns_cluster, dns_by_type
from meshlib.xds.decode_endpoint import decode_assignment
from meshlib.xds.decode_health_check import health_check
from meshlib.xds.decode_matcher import percent
from meshlib.xds.decode_probation import with_probation
from meshlib.xds.decode_tls import client_socket
from meshlib.xds.problems import Problems

__all__ = ["decode_cluster"]

EDS: Final = 3
_TYPE_NAMES: Final = {4: "ORIGINAL_DST"}

_USED: Final = frozenset(
    {
        "name",
        "type",
        "cluster_type",
        "eds_cluster_config",
        "load_assignment",
        "connect_timeout",
        "circuit_breakers",
        "outlier_detection",
        "transport_socket",
        "transport_socket_matches",
        "metadata",
        "lrs_server",
        "lrs_report_endpoint_metrics",
        "health_checks",
        "ignore_health_on_host_removal",
        "upstream_connection_options",
        # Read by decode_balancing.
        "lb_policy",
        "load_balancing_policy",
        "common_lb_config",
        "lb_subset_config",
        "ring_hash_lb_config",
        "maglev_lb_config",
        "original_dst_lb_config",
        "least_request_lb_config",
        "round_robin_lb_config",
        # Read by decode_protocol.
        "typed_extension_protocol_options",
        "http2_protocol_options",
        "common_http_protocol_options",
        "upstream_http_protocol_options",
        "max_requests_per_connection",
    }
)
_HARMLESS: Final = frozenset(
    {
        # Statistics and reports.
        "alt_stat_name",
        "track_timeout_budgets",
        "track_cluster_stats",
        # How connections are kept; none of it decides where a request goes.
        "per_connection_buffer_limit_bytes",
        "http_protocol_options",
        "protocol_selection",
        "preconnect_policy",
        "connection_pool_per_downstream_connection",
        "cleanup_interval",
        "close_connections_on_host_health_failure",  # an endpoint that is out gets no requests; its connections idle
    }
)

_CONNECTION_HARMLESS: Final = frozenset({"tcp_keepalive", "set_local_interface_name_on_upstream_connections"})
_VERSIONS: Final = {1: 4, 2: 6}
"""Of `FirstAddressFamilyVersion`."""
_OUTLIER_INTEGERS: Final = (
    "consecutive_5xx",
    "enforcing_consecutive_5xx",
    "consecutive_gateway_failure",
    "enforcing_consecutive_gateway_failure",
    "consecutive_local_origin_failure",
    "enforcing_consecutive_local_origin_failure",
    "max_ejection_percent",
    "success_rate_minimum_hosts",
    "success_rate_request_volume",
    "success_rate_stdev_factor",
    "enforcing_success_rate",
    "enforcing_local_origin_success_rate",
    "failure_percentage_threshold",
    "failure_percentage_minimum_hosts",
    "failure_percentage_request_volume",
    "enforcing_failure_percentage",
    "enforcing_failure_percentage_local_origin",
)
_OUTLIER_USED: Final = frozenset(
    {
        *_OUTLIER_INTEGERS,
        "split_external_local_origin_errors",
        "interval",
        "base_ejection_time",
        "max_ejection_time",
        "max_ejection_time_jitter",
        "always_eject_one_host",
        "successful_active_health_check_uneject_host",
    }
)
_PER_HOST_USED: Final = frozenset({"priority", "max_connections"})
_PER_HOST_HARMLESS: Final = frozenset({"track_remaining"})
_THRESHOLDS_USED: Final = frozenset(
    {"priority", "max_connections", "max_pending_requests", "max_requests", "max_retries", "retry_budget"}
)
DEFAULT_MAX_EJECTION_S: Final = 300.0
_POOLS: Final = frozenset(
    f"envoy.extensions.upstreams.http.{kind}ConnectionPoolProto" for kind in ("http.v3.Http", "generic.v3.Generic")
)
"""What Envoy does by itself: the kind of connection that a request needs, and of HTTP for one of HTTP."""


def decode_cluster(message: Any, path: str, problems: Problems) -> Cluster:
    """Decode a Cluster."""
    kind = kind_of(message)
    used = _USED
    if kind in (STRICT_DNS, LOGICAL_DNS):
        used |= CLUSTER_FIELDS
    elif kind == CUSTOM and type_of(message.cluster_type) == DNS_TYPE:
        used |= {"wait_for_warm_on_init"}
    if message.HasField("upstream_config") and _is_usual_pool(message.upstream_config.typed_config):
        used |= {"upstream_config"}
    cover(message, path, problems, used=used, harmless=_HARMLESS | CLUSTER_FIELDS)
    if kind != CUSTOM and message.cluster_type.HasField("typed_config"):
        problems.unused(join(path, "cluster_type.typed_config"), "the name says all")
    discovery = _discovery(message, kind, path, problems)
    balancing = decode_balancing(message, path, problems, is_aggregate=isinstance(discovery, AggregateDiscovery))
    tls = None
    if message.HasField("transport_socket"):
        tls = client_socket(message.transport_socket, join(path, "transport_socket"), problems)
    matches = _socket_matches(message, path, problems)
    has_tls = tls is not None or any(match.tls is not None for match in matches)
    is_all_tls = tls is not None and all(match.tls is not None for match in matches)
    protocol = decode_protocol(message, path, problems, has_tls=has_tls, is_all_tls=is_all_tls)
    connect_s = duration(message, "connect_timeout", path, problems)
    place = join(path, "circuit_breakers")
    default, high = _circuit_breakers(message.circuit_breakers, place, problems, http2=protocol.http2)
    outlier = None
    if message.HasField("outlier_detection"):
        outlier = _outlier_detection(message.outlier_detection, join(path, "outlier_detection"), problems)
    described = read_metadata(message.metadata, join(path, "metadata"), problems)
    outlier = with_probation(outlier, described, path, problems)
    return Cluster(
        name=message.name,
        discovery=discovery,
        lb_policy=balancing.policy,
        connect_timeout_s=5.0 if connect_s is None else connect_s,
        circuit_breakers=default,
        high_priority_circuit_breakers=high,
        outlier_detection=outlier,
        tls=tls,
        socket_matches=matches,
        panic_threshold_percent=balancing.panic_threshold_percent,
        locality_weighted=balancing.locality_weighted,
        http2=protocol.http2,
        max_requests_per_connection=protocol.max_requests_per_connection,
        idle_timeout_s=protocol.idle_timeout_s,
        max_stream_duration_s=protocol.max_stream_duration_s,
        retry=protocol.retry,
        hash_policies=protocol.hash_policies,
        mirrors=protocol.mirrors,
        load_reports=_load_reports(message, path, problems),
        subsets=balancing.subsets,
        fails_on_panic=balancing.fails_on_panic,
        authority_names=_authority_names(protocol.authority_names, tls, matches, path, problems),
        override_statuses=override_statuses(message.common_lb_config),
        named_by=balancing.named_by,
        zone_aware=balancing.zone_aware,
        health_check=health_check(message, path, problems, may_be_http2=protocol.may_be_http2),
        counts_new_hosts=not message.common_lb_config.ignore_new_hosts_until_first_hc,
        keeps_passing_hosts=not message.ignore_health_on_host_removal,
        dial_order=_dial_order(
            message.upstream_connection_options, join(path, "upstream_connection_options"), problems
        ),
        metadata=described,
    )


def _authority_names(
    names: AuthorityNames | None,
    tls: ClientTls | None,
    matches: tuple[TransportSocketMatch, ...],
    path: str,
    problems: Problems,
) -> AuthorityNames | None:
    sockets = (tls, *(match.tls for match in matches))
    if names is not None and names.is_san and any(one is not None and one.trust is None for one in sockets):
        problems.error(join(path, "upstream_http_protocol_options"), "auto_san_validation needs a trusted CA")
    return names


def _dial_order(options: Any, path: str, problems: Problems) -> DialOrder:
    cover(options, path, problems, used=frozenset({"happy_eyeballs_config"}), harmless=_CONNECTION_HARMLESS)
    config = options.happy_eyeballs_config
    return DialOrder(
        _VERSIONS.get(config.first_address_family_version), wrapped(config, "first_address_family_count") or 1
    )


def _load_reports(message: Any, path: str, problems: Problems) -> LoadReports | None:
    if not message.HasField("lrs_server"):
        return None
    if check_source(message.lrs_server, join(path, "lrs_server"), problems) != "self":
        problems.error(join(path, "lrs_server"), "only `self` is supported")
    return LoadReports(tuple(message.lrs_report_endpoint_metrics))


def _is_usual_pool(packed: Any) -> bool:
    return any_type(packed) in _POOLS


def _discovery(
    message: Any, kind: int, path: str, problems: Problems
) -> EdsDiscovery | StaticDiscovery | DnsDiscovery | AggregateDiscovery:
    place = join(path, "load_assignment")
    if kind != EDS and message.HasField("eds_cluster_config"):
        problems.error(join(path, "eds_cluster_config"), "is only for a cluster of type EDS")
    match kind:
        case -1:  # CUSTOM
            return _custom(message, path, problems)
        case 3:  # EDS
            return _eds(message, path, problems)
        case 0:  # STATIC
            if not message.HasField("load_assignment"):
                return StaticDiscovery(ClusterLoadAssignment(message.name))
            return StaticDiscovery(decode_assignment(message.load_assignment, place, problems, keep_duplicates=True))
        case 1 | 2:  # STRICT_DNS, LOGICAL_DNS
            return decode_dns_cluster(message, path, problems, is_logical=kind == LOGICAL_DNS)
        case _:
            problems.error(join(path, "type"), f"{_TYPE_NAMES.get(kind, kind)} is not supported")
            return StaticDiscovery(ClusterLoadAssignment(message.name))


def _eds(message: Any, path: str, problems: Problems) -> EdsDiscovery:
    if message.HasField("load_assignment"):
        problems.unused(join(path, "load_assignment"))
    place = join(path, "eds_cluster_config")
    config = message.eds_cluster_config
    if not config.HasField("eds_config"):
        problems.error(join(place, "eds_config"), "is required")
    else:
        is_discovered_by_ads(config.eds_config, join(place, "eds_config"), problems)
    if message.name.startswith("xdstp:") and not config.service_name:
        problems.error(join(place, "service_name"), "is required because the cluster's name is an xdstp name")
    return EdsDiscovery(config.service_name or message.name)


def _custom(message: Any, path: str, problems: Problems) -> AggregateDiscovery | DnsDiscovery:
    extension, place = message.cluster_type, join(path, "cluster_type")
    kind = type_of(extension)
    if kind not in (DNS_TYPE, AGGREGATE_TYPE):
        name = kind or extension.name or "an empty cluster type"
        problems.error(place, f"{name} is not supported")
        return AggregateDiscovery(())
    config = configuration_of(extension, place, problems)
    if kind == DNS_TYPE and config is not None:
        return dns_by_type(message, config, path, join(place, "typed_config"), problems)
    if message.HasField("load_assignment"):
        problems.unused(join(path, "load_assignment"))
    return AggregateDiscovery(() if config is None else tuple(config.clusters))


def _socket_matches(message: Any, path: str, problems: Problems) -> tuple[TransportSocketMatch, ...]:
    result = []
    for index, item in enumerate(message.transport_socket_matches):
        place = f"{join(path, 'transport_socket_matches')}[{index}]"
        tls: ClientTls | None = None
        if not item.HasField("transport_socket"):
            problems.error(join(place, "transport_socket"), "is required")
        else:
            tls = client_socket(item.transport_socket, join(place, "transport_socket"), problems)
        result.append(TransportSocketMatch(item.name, tuple(sorted(struct(item.match).items())), tls))
    return tuple(result)


def _circuit_breakers(
    message: Any, path: str, problems: Problems, *, http2: bool
) -> tuple[CircuitBreakers, CircuitBreakers]:
    """Return the limits of the default and of the high priority; the first entry of a priority counts."""
    used = frozenset({"thresholds", "per_host_thresholds"})
    cover(message, path, problems, used=used, harmless=frozenset())
    found: dict[int, CircuitBreakers] = {}
    for index, item in enumerate(message.thresholds):
        place = f"{join(path, 'thresholds')}[{index}]"
        harmless = frozenset({"track_remaining", "max_connection_pools"})
        cover(item, place, problems, used=_THRESHOLDS_USED, harmless=harmless)
        if http2:
            _report_connection_limits(item, place, problems)
        if item.priority in found:
            problems.unused(place, "is not the first of its priority")
            continue
        found[item.priority] = _thresholds(item, place, problems)
    per_host = _per_host(message, path, problems, http2=http2)
    default, high = (
        replace(found.get(priority, CircuitBreakers()), max_connections_per_host=per_host.get(priority))
        for priority in (0, 1)
    )
    return default, high


def _per_host(message: Any, path: str, problems: Problems, *, http2: bool) -> dict[int, int]:
    """Return the limits of one endpoint's connections, by priority; the first entry of a priority counts."""
    found: dict[int, int] = {}
    for index, item in enumerate(message.per_host_thresholds):
        place = f"{join(path, 'per_host_thresholds')}[{index}]"
        # As in Envoy nothing else may be limited per endpoint.
        cover(item, place, problems, used=_PER_HOST_USED, harmless=_PER_HOST_HARMLESS)
        limit = wrapped(item, "max_connections")
        if item.priority in found:
            problems.unused(place, "is not the first of its priority")
        elif limit is not None:
            found[item.priority] = limit
            if http2:
                problems.unused(join(place, "max_connections"), "connections are only limited where HTTP/1.1 is spoken")
    return found


def _report_connection_limits(message: Any, path: str, problems: Problems) -> None:
    """Requests share HTTP/2 connections, whose number is the transport's own affair (and in gRPC core's, A32)."""
    default = CircuitBreakers()
    for name in ("max_connections", "max_pending_requests"):
        limit = wrapped(message, name)
        if limit is not None and limit < getattr(default, name):
            problems.unused(join(path, name), "connections are only limited where HTTP/1.1 is spoken")


def _thresholds(message: Any, path: str, problems: Problems) -> CircuitBreakers:
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    given: dict[str, Any] = {name: value for name in names if (value := wrapped(message, name)) is not None}
    if message.HasField("retry_budget"):
        # The message alone, even empty, puts the budget in the place of max_retries.
        budget = message.retry_budget
        has_share = budget.HasField("budget_percent")
        given["retry_budget_percent"] = percent(budget.budget_percent) if has_share else 20.0
        if (least := wrapped(budget, "min_retry_concurrency")) is not None:
            given["min_retry_concurrency"] = least
    return CircuitBreakers(**given)


def _outlier_detection(message: Any, path: str, problems: Problems) -> OutlierDetection:
    cover(message, path, problems, used=_OUTLIER_USED, harmless=frozenset())
    given: dict[str, Any] = {name: value for name in _OUTLIER_INTEGERS if (value := wrapped(message, name)) is not None}
    for name in ("interval", "base_ejection_time", "max_ejection_time_jitter"):
        if (seconds := duration(message, name, path, problems)) is not None:
            given[f"{name}_s"] = seconds
    base_s = given.get("base_ejection_time_s", 30.0)
    max_s = duration(message, "max_ejection_time", path, problems)
    if max_s is not None and max_s < base_s:
        problems.error(join(path, "max_ejection_time"), "must be at least base_ejection_time")
    return OutlierDetection(
        **given,
        max_ejection_time_s=max(DEFAULT_MAX_EJECTION_S, base_s) if max_s is None else max_s,
        split_external_local_origin_errors=message.split_external_local_origin_errors,
        always_eject_one_host=bool(wrapped(message, "always_eject_one_host")),
        check_unejects=wrapped(message, "successful_active_health_check_uneject_host") is not False,
    )
