"""Active health checks of a cluster, and what its endpoints say about them."""

from dataclasses import dataclass

from meshlib.model.matcher import StringMatcher

__all__ = ["CheckTarget", "GrpcProbe", "HealthCheck", "HttpProbe", "Probe", "TcpProbe"]


@dataclass(frozen=True, slots=True)
class CheckTarget:
    """Where an endpoint is checked, if not where it serves.

    Attributes:
        address: As `Endpoint.address`; empty: the endpoint's own.
        port: 0: that of the check, or of the address.
        hostname: For the `host` header or authority; empty: that of the check.
        is_off: The endpoint is not checked, and counts as passing.
    """

    address: str = ""
    port: int = 0
    hostname: str = ""
    is_off: bool = False


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """One HTTP request.

    Attributes:
        host: Empty: the cluster's name.
        send: The body.
        receive: Parts which the response's body must have, in this order, within its first `buffer_size` bytes.
        headers: To add, names in lower case. The values are literal.
        removed_headers: Of those that every check has.
        expected: Statuses that pass, half-open ranges.
        retriable: Statuses that fail only `unhealthy_threshold` times in a row, half-open ranges.
        http2: Spoken with prior knowledge, or by ALPN over TLS.
        service_name: What the header `x-envoy-upstream-healthchecked-cluster` must say; None: anything.
    """

    path: str
    host: str = ""
    method: str = "GET"
    send: bytes = b""
    receive: tuple[bytes, ...] = ()
    buffer_size: int = 1024
    headers: tuple[tuple[str, str], ...] = ()
    removed_headers: tuple[str, ...] = ()
    expected: tuple[tuple[int, int], ...] = ((200, 201),)
    retriable: tuple[tuple[int, int], ...] = ()
    http2: bool = False
    service_name: StringMatcher | None = None


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """A connection, and what is said on it.

    Attributes:
        send: Empty: nothing.
        receive: Parts that must come, in this order; empty: the connection itself is enough.
    """

    send: bytes = b""
    receive: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class GrpcProbe:
    """`grpc.health.v1.Health/Check`.

    Attributes:
        authority: Empty: the cluster's name.
        metadata: To add, names in lower case.
        removed_headers: Of those that every check has.
    """

    service_name: str = ""
    authority: str = ""
    metadata: tuple[tuple[str, str], ...] = ()
    removed_headers: tuple[str, ...] = ()


Probe = HttpProbe | TcpProbe | GrpcProbe


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """`envoy.config.core.v3.HealthCheck`; its names and defaults.

    Attributes:
        timeout_s: Of one check.
        initial_jitter_s: Before the first check at most.
        interval_jitter_s: Added to each interval at most, and
        interval_jitter_percent: this share of it at most.
        unhealthy_threshold: Failures in a row after which an endpoint is out, if they are of the network or retriable.
        healthy_threshold: Successes in a row after which it is in again.
        no_traffic_interval_s: Between checks while the cluster has had no request.
        no_traffic_healthy_interval_s: The same for endpoints that pass.
        unhealthy_edge_interval_s: After a failure that does not take the endpoint out yet.
        healthy_edge_interval_s: After a success that does not bring it back yet.
        alt_port: 0: the endpoint's.
        always_log_failures: Each failure is an event, not only the first and those that change something.
        alpn: Offered by TLS; empty: as the probe needs.
        min_wait_s: Between two checks at least, whatever the intervals say, and
        max_wait_s: at most; None: no limit. A runtime value, as
        verify_percent: checks in a hundred that look at the service's name.
        socket_match: Chooses among the cluster's `transport_socket_matches` instead of the endpoint's metadata; None:
            that counts.
    """

    probe: Probe
    timeout_s: float
    interval_s: float
    unhealthy_threshold: int
    healthy_threshold: int
    initial_jitter_s: float = 0.0
    interval_jitter_s: float = 0.0
    interval_jitter_percent: int = 0
    no_traffic_interval_s: float = 60.0
    no_traffic_healthy_interval_s: float = 60.0
    unhealthy_interval_s: float = 0.0
    unhealthy_edge_interval_s: float = 0.0
    healthy_edge_interval_s: float = 0.0
    alt_port: int = 0
    always_log_failures: bool = False
    always_log_success: bool = False
    alpn: tuple[str, ...] = ()
    socket_match: tuple[tuple[str, object], ...] | None = None
    min_wait_s: float = 0.0
    max_wait_s: float | None = None
    verify_percent: int = 100
