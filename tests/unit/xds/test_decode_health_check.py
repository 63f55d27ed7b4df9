from typing import Any

import pytest

from meshlib.model.cluster import Cluster, OutlierDetection
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.model.health import CheckTarget, GrpcProbe, HealthCheck, HttpProbe, TcpProbe
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.protos import from_dict
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import CDS, EDS

BASE: dict[str, Any] = {"timeout": "1s", "interval": "5s", "unhealthy_threshold": 3, "healthy_threshold": 2}
HTTP = {"http_health_check": {"path": "/healthz"}}


def cluster(*checks: dict[str, Any], **fields: Any) -> Decoded:
    message = {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}, **fields}
    packed = from_dict("envoy.config.cluster.v3.Cluster", {**message, "health_checks": list(checks)})
    return decode_resource(CDS, packed.SerializeToString())


def accepted(*checks: dict[str, Any], **fields: Any) -> Cluster:
    decoded = cluster(*checks, **fields)
    assert isinstance(decoded.value, Cluster), decoded.errors
    return decoded.value


def check(**fields: Any) -> HealthCheck:
    found = accepted({**BASE, **fields}).health_check
    assert found is not None
    return found


def test_a_cluster_without_checks() -> None:
    found = accepted()
    assert found.health_check is None
    assert found.counts_new_hosts
    assert found.keeps_passing_hosts


def test_defaults_follow_from_the_interval() -> None:
    found = check(**HTTP)
    assert (1.0, 5.0, 3, 2) == (
        found.timeout_s,
        found.interval_s,
        found.unhealthy_threshold,
        found.healthy_threshold,
    )
    assert (5.0, 5.0, 5.0) == (
        found.unhealthy_interval_s,
        found.unhealthy_edge_interval_s,
        found.healthy_edge_interval_s,
    )
    assert (60.0, 60.0) == (found.no_traffic_interval_s, found.no_traffic_healthy_interval_s)
    assert HttpProbe("/healthz") == found.probe


def test_every_time() -> None:
    times = {
        "initial_jitter": "1s",
        "interval_jitter": "2s",
        "interval_jitter_percent": 30,
        "no_traffic_interval": "4s",
        "no_traffic_healthy_interval": "5s",
        "unhealthy_interval": "6s",
        "unhealthy_edge_interval": "7s",
        "healthy_edge_interval": "8s",
    }
    found = check(**HTTP, **times, alt_port=81, always_log_health_check_failures=True)
    assert (1.0, 2.0, 30, 4.0, 5.0, 6.0, 7.0, 8.0) == (
        found.initial_jitter_s,
        found.interval_jitter_s,
        found.interval_jitter_percent,
        found.no_traffic_interval_s,
        found.no_traffic_healthy_interval_s,
        found.unhealthy_interval_s,
        found.unhealthy_edge_interval_s,
        found.healthy_edge_interval_s,
    )
    assert 81 == found.alt_port
    assert found.always_log_failures
    assert not found.always_log_success


def test_http_probe() -> None:
    http = {
        "path": "/h",
        "host": "svc",
        "method": "POST",
        "send": {"text": "6869"},
        "receive": [{"text": "6f6b"}, {"binary": "IQ=="}],
        "response_buffer_size": 99,
        "request_headers_to_add": [{"header": {"key": "X-A", "value": "100%%"}}],
        "request_headers_to_remove": ["User-Agent"],
        "expected_statuses": [{"start": 200, "end": 300}],
        "retriable_statuses": [{"start": 500, "end": 504}],
        "codec_client_type": "HTTP2",
        "service_name_matcher": {"prefix": "svc"},
    }
    expected = HttpProbe(
        "/h",
        host="svc",
        method="POST",
        send=b"hi",
        receive=(b"ok", b"!"),
        buffer_size=99,
        headers=(("x-a", "100%"),),
        removed_headers=("user-agent",),
        expected=((200, 300),),
        retriable=((500, 504),),
        http2=True,
        service_name=StringMatcher(StringKind.PREFIX, "svc"),
    )
    assert expected == check(http_health_check=http).probe


def test_tcp_and_grpc_probes() -> None:
    tcp = check(tcp_health_check={"send": {"text": "00ff"}, "receive": [{"text": "01"}]})
    assert TcpProbe(b"\x00\xff", (b"\x01",)) == tcp.probe
    assert TcpProbe() == check(tcp_health_check={}).probe
    metadata = [{"header": {"key": "k", "value": "v"}}]
    probe = {"grpc_health_check": {"service_name": "a.B", "authority": "b", "initial_metadata": metadata}}
    grpc = accepted({**BASE, **probe}, http2_protocol_options={}).health_check
    assert grpc is not None
    assert GrpcProbe("a.B", "b", (("k", "v"),)) == grpc.probe
    assert ("health_checks[0].grpc_health_check: needs a cluster that speaks HTTP/2",) == cluster(
        {**BASE, **probe}
    ).errors


def test_tls_of_checks() -> None:
    found = check(**HTTP, tls_options={"alpn_protocols": ["h2"]}, transport_socket_match_criteria={"tlsMode": "istio"})
    assert ("h2",) == found.alpn
    assert (("tlsMode", "istio"),) == found.socket_match


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "health_checker"),
        ({"custom_health_check": {"name": "redis"}}, "custom_health_check"),
        ({"http_health_check": {}}, "path"),
        ({"http_health_check": {"path": "/", "method": "CONNECT"}}, "method"),
        ({"http_health_check": {"path": "/", "codec_client_type": "HTTP3"}}, "codec_client_type"),
        ({"http_health_check": {"path": "/", "send": {"text": "00"}}}, "send"),
        ({"http_health_check": {"path": "/", "expected_statuses": [{"start": 300, "end": 200}]}}, "expected_statuses"),
        ({"http_health_check": {"path": "/", "retriable_statuses": [{"start": 1, "end": 200}]}}, "retriable_statuses"),
        ({"tcp_health_check": {"send": {"text": "xy"}}}, "send.text"),
        ({"tcp_health_check": {"proxy_protocol_config": {}}}, "proxy_protocol_config"),
        (
            {
                "http_health_check": {
                    "path": "/",
                    "request_headers_to_add": [{"header": {"key": "a", "value": "%REQ(b)%"}}],
                }
            },
            "request_headers_to_add",
        ),
        ({**HTTP, "timeout": "0s"}, "timeout"),
        ({**HTTP, "alt_port": 70000}, "alt_port"),
    ],
)
def test_checks_that_are_refused(fields: dict[str, Any], path: str) -> None:
    decoded = cluster({**BASE, **fields})
    assert decoded.value is None
    assert any(path in error for error in decoded.errors), decoded.errors


def test_thresholds_are_required() -> None:
    for name in ("timeout", "interval", "unhealthy_threshold", "healthy_threshold"):
        decoded = cluster({key: value for key, value in (BASE | HTTP).items() if key != name})
        assert any(name in error for error in decoded.errors), decoded.errors


def test_more_than_one_check_is_refused() -> None:
    assert any("only one" in error for error in cluster(BASE | HTTP, BASE | HTTP).errors)


def test_options_of_the_cluster() -> None:
    found = accepted(
        BASE | HTTP,
        ignore_health_on_host_removal=True,
        common_lb_config={"ignore_new_hosts_until_first_hc": True},
        outlier_detection={"successful_active_health_check_uneject_host": False},
    )
    assert not found.keeps_passing_hosts
    assert not found.counts_new_hosts
    assert OutlierDetection(check_unejects=False) == found.outlier_detection


def test_where_an_endpoint_is_checked() -> None:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 80}}
    config = {
        "port_value": 81,
        "hostname": "h",
        "address": {"socket_address": {"address": "127.0.0.2", "port_value": 82}},
        "disable_active_health_check": True,
    }
    message = {
        "cluster_name": "c",
        "endpoints": [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": address, "health_check_config": config}},
                    {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 90}}}},
                ]
            }
        ],
    }
    packed = from_dict("envoy.config.endpoint.v3.ClusterLoadAssignment", message).SerializeToString()
    decoded = decode_resource(EDS, packed)
    assert isinstance(decoded.value, ClusterLoadAssignment), decoded.errors
    first, second = decoded.value.localities[0].endpoints
    assert CheckTarget("127.0.0.2:82", 81, "h", is_off=True) == first.check
    assert second.check is None


@pytest.mark.parametrize(
    ("additions", "removed", "expected"),
    [
        ([("user-agent", "a", "APPEND_IF_EXISTS_OR_ADD")], [], ([("user-agent", "a")], ())),
        ([("user-agent", "a", "ADD_IF_ABSENT")], [], ([], ())),
        ([("user-agent", "a", "ADD_IF_ABSENT")], ["User-Agent"], ([("user-agent", "a")], ("user-agent",))),
        ([("user-agent", "a", "OVERWRITE_IF_EXISTS_OR_ADD")], [], ([("user-agent", "a")], ("user-agent",))),
        ([("x-a", "a", "OVERWRITE_IF_EXISTS")], [], ([], ())),
        ([("user-agent", "a", "OVERWRITE_IF_EXISTS")], [], ([("user-agent", "a")], ("user-agent",))),
        # Each looks at the headers before any is added.
        ([("x-a", "1", "ADD_IF_ABSENT"), ("x-a", "2", "ADD_IF_ABSENT")], [], ([("x-a", "1"), ("x-a", "2")], ())),
        ([("x-a", "1", "APPEND_IF_EXISTS_OR_ADD")], ["x-a"], ([("x-a", "1")], ("x-a",))),
        ([("x-a", "", "APPEND_IF_EXISTS_OR_ADD")], [], ([], ())),
    ],
)
def test_headers_of_checks_are_added_as_envoy_adds_them(
    additions: list[tuple[str, str, str]], removed: list[str], expected: tuple[list[tuple[str, str]], tuple[str, ...]]
) -> None:
    options = [{"header": {"key": key, "value": value}, "append_action": action} for key, value, action in additions]
    probe = check(
        http_health_check={"path": "/", "request_headers_to_add": options, "request_headers_to_remove": removed}
    ).probe
    assert isinstance(probe, HttpProbe)
    assert expected == (list(probe.headers), probe.removed_headers)


def test_an_empty_header_is_added_where_it_is_kept() -> None:
    options = [{"header": {"key": "x-a"}, "keep_empty_value": True}]
    probe = check(http_health_check={"path": "/", "request_headers_to_add": options}).probe
    assert isinstance(probe, HttpProbe)
    assert (("x-a", ""),) == probe.headers


def test_metadata_of_grpc_checks_may_replace_what_there_is() -> None:
    options = [{"header": {"key": "user-agent", "value": "mine"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
    found = accepted({**BASE, "grpc_health_check": {"initial_metadata": options}}, http2_protocol_options={})
    assert found.health_check is not None
    assert GrpcProbe(metadata=(("user-agent", "mine"),), removed_headers=("user-agent",)) == found.health_check.probe


def test_a_buffer_of_more_than_is_looked_at() -> None:
    decoded = cluster({**BASE, "http_health_check": {"path": "/", "response_buffer_size": 2**31 - 1}})
    assert isinstance(decoded.value, Cluster)
    assert isinstance(decoded.value.health_check, HealthCheck)
    assert isinstance(decoded.value.health_check.probe, HttpProbe)
    assert 1024 * 1024 == decoded.value.health_check.probe.buffer_size
    assert ("health_checks[0].http_health_check.response_buffer_size: 1048576 bytes are looked at",) == decoded.unused
