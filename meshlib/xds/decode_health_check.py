"""Active health checks of clusters, and where endpoints want to be checked."""

from collections.abc import Set
from typing import Any, Final

from meshlib.model.headers import AppendAction
from meshlib.model.health import CheckTarget, GrpcProbe, HealthCheck, HttpProbe, Probe, TcpProbe
from meshlib.xds.decode_common import cover, duration, join, struct, wrapped
from meshlib.xds.decode_headers import header_additions
from meshlib.xds.decode_matcher import string_matcher
from meshlib.xds.problems import Problems

__all__ = ["check_target", "health_check"]

MAX_BUFFER_BYTES: Final = 1024 * 1024
MAX_PORT: Final = 65535

_USED: Final = frozenset(
    {
        "timeout",
        "interval",
        "initial_jitter",
        "interval_jitter",
        "interval_jitter_percent",
        "unhealthy_threshold",
        "healthy_threshold",
        "alt_port",
        "http_health_check",
        "tcp_health_check",
        "grpc_health_check",
        "no_traffic_interval",
        "no_traffic_healthy_interval",
        "unhealthy_interval",
        "unhealthy_edge_interval",
        "healthy_edge_interval",
        "always_log_health_check_failures",
        "always_log_health_check_success",
        "tls_options",
        "transport_socket_match_criteria",
    }
)
_HARMLESS: Final = frozenset(
    {
        "reuse_connection",  # each check has a connection of its own
        # Where events go; here they go to the hooks.
        "event_log_path",
        "event_logger",
        "event_service",
    }
)
_HTTP_USED: Final = frozenset(
    {
        "host",
        "path",
        "send",
        "receive",
        "response_buffer_size",
        "request_headers_to_add",
        "request_headers_to_remove",
        "expected_statuses",
        "retriable_statuses",
        "codec_client_type",
        "service_name_matcher",
        "method",
    }
)
_METHODS: Final = {1: "GET", 2: "HEAD", 3: "POST", 4: "PUT", 5: "DELETE", 7: "OPTIONS", 8: "TRACE", 9: "PATCH"}
_HTTP2, _HTTP3, _CONNECT = 1, 2, 6
_AGENT: Final = "user-agent"
_OF_GRPC: Final = frozenset({_AGENT, "content-type", "te"})
"""Headers that checks have without being told, by which additions go."""
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "OPTIONS"})


def health_check(message: Any, path: str, problems: Problems, *, may_be_http2: bool) -> HealthCheck | None:
    """Decode the `health_checks` of a Cluster; None: there are none.

    Args:
        message: The cluster.
        path: Its field path.
        problems: Takes the errors.
        may_be_http2: Requests to it may go by HTTP/2.
    """
    if not message.health_checks:
        return None
    place = join(path, "health_checks")
    if len(message.health_checks) > 1:
        problems.error(place, "only one is supported")
    for index, item in enumerate(message.health_checks):
        if item.HasField("grpc_health_check") and not may_be_http2:
            problems.error(f"{place}[{index}].grpc_health_check", "needs a cluster that speaks HTTP/2")
    return _check(message.health_checks[0], f"{place}[0]", problems)


def check_target(message: Any, path: str, problems: Problems, address: str) -> CheckTarget:
    """Decode an Endpoint.HealthCheckConfig.

    Args:
        address: What its own address comes to; empty: it has none.
    """
    used = frozenset({"port_value", "hostname", "address", "disable_active_health_check"})
    cover(message, path, problems, used=used, harmless=frozenset())
    if message.port_value > MAX_PORT:
        problems.error(join(path, "port_value"), f"must be at most {MAX_PORT}")
    return CheckTarget(address, message.port_value, message.hostname, is_off=message.disable_active_health_check)


def _check(message: Any, path: str, problems: Problems) -> HealthCheck | None:
    cover(message, path, problems, used=_USED, harmless=_HARMLESS)
    if message.reuse_connection.value:
        problems.unused(join(path, "reuse_connection"), "each check has a connection of its own")
    probe = _probe(message, path, problems)

    def seconds(name: str, default: float) -> float:
        given = duration(message, name, path, problems)
        return default if given is None else given

    interval_s = seconds("interval", 0.0)
    unhealthy_s = seconds("unhealthy_interval", interval_s)
    no_traffic_s = seconds("no_traffic_interval", 60.0)
    if probe is None:
        return None
    alt_port = wrapped(message, "alt_port") or 0
    if alt_port > MAX_PORT:
        problems.error(join(path, "alt_port"), f"must be at most {MAX_PORT}")
    match = None
    if message.HasField("transport_socket_match_criteria"):
        match = tuple(sorted(struct(message.transport_socket_match_criteria).items()))
    return HealthCheck(
        probe,
        timeout_s=seconds("timeout", 0.0),
        interval_s=interval_s,
        unhealthy_threshold=message.unhealthy_threshold.value,
        healthy_threshold=message.healthy_threshold.value,
        initial_jitter_s=seconds("initial_jitter", 0.0),
        interval_jitter_s=seconds("interval_jitter", 0.0),
        interval_jitter_percent=message.interval_jitter_percent,
        no_traffic_interval_s=no_traffic_s,
        no_traffic_healthy_interval_s=seconds("no_traffic_healthy_interval", no_traffic_s),
        unhealthy_interval_s=unhealthy_s,
        unhealthy_edge_interval_s=seconds("unhealthy_edge_interval", unhealthy_s),
        healthy_edge_interval_s=seconds("healthy_edge_interval", interval_s),
        alt_port=alt_port,
        always_log_failures=message.always_log_health_check_failures,
        always_log_success=message.always_log_health_check_success,
        alpn=tuple(message.tls_options.alpn_protocols),
        socket_match=match,
    )


def _probe(message: Any, path: str, problems: Problems) -> Probe | None:
    kind = message.WhichOneof("health_checker")
    place = join(path, kind or "health_checker")
    match kind:
        case "http_health_check":
            return _http(message.http_health_check, place, problems)
        case "tcp_health_check":
            tcp = message.tcp_health_check
            cover(tcp, place, problems, used=frozenset({"send", "receive"}), harmless=frozenset())
            return TcpProbe(_payload(tcp.send, join(place, "send"), problems), _parts(tcp, place, problems))
        case "grpc_health_check":
            grpc = message.grpc_health_check
            used = frozenset({"service_name", "authority", "initial_metadata"})
            cover(grpc, place, problems, used=used, harmless=frozenset())
            metadata, replaced = _headers(grpc, "initial_metadata", place, problems, _OF_GRPC)
            return GrpcProbe(grpc.service_name, grpc.authority, metadata, replaced)
        case _:
            return None  # reported by the constraints and the coverage


def _http(message: Any, path: str, problems: Problems) -> HttpProbe:
    cover(message, path, problems, used=_HTTP_USED, harmless=frozenset())
    if message.codec_client_type == _HTTP3:
        problems.error(join(path, "codec_client_type"), "HTTP3 is not supported")
    if message.method == _CONNECT:
        problems.error(join(path, "method"), "must not be CONNECT")
    method = _METHODS.get(message.method, "GET")
    send = _payload(message.send, join(path, "send"), problems)
    if send and method not in _WITH_BODY:
        problems.error(join(path, "send"), f"is not for the method {method}")
    size = wrapped(message, "response_buffer_size")
    if size is not None and size > MAX_BUFFER_BYTES:
        problems.unused(join(path, "response_buffer_size"), f"{MAX_BUFFER_BYTES} bytes are looked at")
    expected = _ranges(message, "expected_statuses", path, problems)
    # What is taken away goes before anything is added, as in Envoy.
    removed = tuple(name.lower() for name in message.request_headers_to_remove)
    headers, replaced = _headers(message, "request_headers_to_add", path, problems, {_AGENT}.difference(removed))
    matcher = None
    if message.HasField("service_name_matcher"):
        matcher = string_matcher(message.service_name_matcher, join(path, "service_name_matcher"), problems)
    return HttpProbe(
        path=message.path,
        host=message.host,
        method=method,
        send=send,
        receive=_parts(message, path, problems),
        # 0 is the whole of it.
        buffer_size=1024 if size is None else min(size or MAX_BUFFER_BYTES, MAX_BUFFER_BYTES),
        headers=headers,
        removed_headers=removed + replaced,
        expected=expected or ((200, 201),),
        retriable=_ranges(message, "retriable_statuses", path, problems),
        http2=message.codec_client_type == _HTTP2,
        service_name=matcher,
    )


def _ranges(message: Any, name: str, path: str, problems: Problems) -> tuple[tuple[int, int], ...]:
    for index, item in enumerate(getattr(message, name)):
        if not 100 <= item.start < item.end <= 600:
            problems.error(f"{join(path, name)}[{index}]", "must be a range of statuses within 100 to 600, not empty")
    return tuple((item.start, item.end) for item in getattr(message, name))


def _parts(message: Any, path: str, problems: Problems) -> tuple[bytes, ...]:
    place = join(path, "receive")
    return tuple(_payload(item, f"{place}[{index}]", problems) for index, item in enumerate(message.receive))


def _payload(message: Any, path: str, problems: Problems) -> bytes:
    """Decode a Payload: hexadecimal text, or bytes."""
    if message.WhichOneof("payload") != "text":
        return bytes(message.binary)
    try:
        return bytes.fromhex(message.text)
    except ValueError:
        problems.error(join(path, "text"), "must be hexadecimal")
        return b""


def _headers(
    message: Any, name: str, path: str, problems: Problems, present: Set[str]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Return what is added, and which of the headers that are there it replaces.

    Args:
        message: Has the additions.
        name: Of their field.
        path: Of the message.
        problems: Takes the errors.
        present: Headers that there are without them; each addition looks at these alone, as in Envoy.
    """
    replacing: dict[str, str] = {}
    added: list[tuple[str, str]] = []
    for index, add in enumerate(header_additions(message, name, path, problems)):
        if "%" in add.value.replace("%%", ""):
            problems.error(f"{join(path, name)}[{index}].header.value", "substitutions are not supported here")
        value = add.value.replace("%%", "%")
        if not value and not add.keep_empty:
            continue
        match add.action:
            case AppendAction.APPEND_IF_EXISTS_OR_ADD:
                added.append((add.name, value))
            case AppendAction.ADD_IF_ABSENT:
                added += [] if add.name in present else [(add.name, value)]
            case AppendAction.OVERWRITE_IF_EXISTS:
                replacing |= {add.name: value} if add.name in present else {}
            case AppendAction.OVERWRITE_IF_EXISTS_OR_ADD:
                replacing[add.name] = value
    return (*replacing.items(), *added), tuple(replacing)
