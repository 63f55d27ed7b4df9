"""Whether a request may come in, and what it hands on."""

from typing import Any

import pytest

from meshlib.errors import RoutingError
from meshlib.model.request import Headers, RequestHead
from meshlib.model.snapshot import ConfigFault
from meshlib.runtime.context import current_request, remaining_s
from meshlib.servers.inbound import Inbound
from meshlib.servers.peer import ANONYMOUS, peer_of_pem

LOCAL = ("127.0.0.1", 80)


def head(method: str = "GET", **headers: str) -> RequestHead:
    return RequestHead(method, "users", "/users/7", Headers((k.replace("_", "-"), v) for k, v in headers.items()))


def begin(mesh: Any, peer: Any = ANONYMOUS, request: RequestHead | None = None, **options: Any) -> Any:
    inbound = Inbound(mesh, kind="http", service="users")
    return inbound.begin(request or head(), peer, local=LOCAL, remote="127.0.0.1", **options)


def test_nothing_is_let_in_while_the_listener_is_unknown(server_mesh: Any) -> None:
    reply = begin(server_mesh).reply
    assert 503 == reply.status
    assert b"has not been received yet" in reply.body


def test_a_fault_of_the_listener_is_named(server_mesh: Any) -> None:
    server_mesh.inbound("127.0.0.1:80").current = ConfigFault("LDS x", "LDS resource x: does not exist", True)
    reply = begin(server_mesh).reply
    assert 503 == reply.status
    assert b"LDS resource x: does not exist" in reply.body


def test_a_mesh_without_inbound_listeners_lets_everything_in(server_mesh: Any) -> None:
    server_mesh.has_inbound = False
    assert begin(server_mesh).reply is None


def test_a_disabled_mesh_lets_everything_in(server_mesh: Any) -> None:
    server_mesh.is_disabled = True
    assert begin(server_mesh).reply is None


def test_listener_without_rules_lets_in(server_mesh: Any) -> None:
    server_mesh.rules()
    assert begin(server_mesh).reply is None


@pytest.mark.parametrize(("method", "status"), [("GET", None), ("POST", None), ("DELETE", 403)])
def test_rules_decide_by_method(
    server_mesh: Any, gateway_rules: Any, gateway_pem: str, method: str, status: int | None
) -> None:
    server_mesh.rules(gateway_rules("GET", "POST"))
    reply = begin(server_mesh, peer_of_pem(gateway_pem), head(method)).reply
    assert status == (None if reply is None else reply.status)


def test_a_stranger_is_refused_as_envoy_refuses(server_mesh: Any, gateway_rules: Any, stranger_pem: str) -> None:
    server_mesh.rules(gateway_rules("GET"))
    reply = begin(server_mesh, peer_of_pem(stranger_pem)).reply
    assert (403, b"RBAC: access denied", 7) == (reply.status, reply.body, reply.grpc_status)


def test_an_anonymous_caller_is_refused(server_mesh: Any, gateway_rules: Any) -> None:
    server_mesh.rules(gateway_rules("GET"))
    assert 403 == begin(server_mesh).reply.status


def test_strict_listener_refuses_callers_without_certificate(server_mesh: Any, strict: Any) -> None:
    server_mesh.rules(tls=strict)
    reply = begin(server_mesh).reply
    assert (403, "mtls_required") == (reply.status, reply.details)


def test_strict_listener_refuses_foreign_trust_domains(server_mesh: Any, strict: Any, foreign_pem: str) -> None:
    server_mesh.rules(tls=strict)
    reply = begin(server_mesh, peer_of_pem(foreign_pem)).reply
    assert (403, "mtls_wrong_name") == (reply.status, reply.details)


def test_strict_listener_lets_in_its_own(server_mesh: Any, strict: Any, gateway_pem: str) -> None:
    server_mesh.rules(tls=strict)
    assert begin(server_mesh, peer_of_pem(gateway_pem)).reply is None


def test_permissive_listener_takes_anonymous_callers_and_its_own(
    server_mesh: Any, strict: Any, gateway_pem: str, foreign_pem: str
) -> None:
    server_mesh.rules(tls=strict, takes_plaintext=True)
    assert begin(server_mesh).reply is None
    assert begin(server_mesh, peer_of_pem(gateway_pem)).reply is None
    reply = begin(server_mesh, peer_of_pem(foreign_pem)).reply
    assert (403, "mtls_wrong_name") == (reply.status, reply.details)


def test_rules_tell_the_two_kinds_of_callers_of_a_permissive_listener_apart(
    server_mesh: Any, strict: Any, gateway_rules: Any, gateway_pem: str
) -> None:
    server_mesh.rules(gateway_rules("GET"), tls=strict, takes_plaintext=True)
    assert 403 == begin(server_mesh).reply.status
    assert begin(server_mesh, peer_of_pem(gateway_pem)).reply is None


def test_new_rules_apply_to_the_next_request(server_mesh: Any, gateway_rules: Any, gateway_pem: str) -> None:
    inbound = Inbound(server_mesh, kind="http")
    peer = peer_of_pem(gateway_pem)

    def status(method: str) -> int:
        reply = inbound.begin(head(method), peer, local=LOCAL, remote="127.0.0.1").reply
        return 200 if reply is None else reply.status

    server_mesh.rules(gateway_rules("GET"))
    assert (200, 403) == (status("GET"), status("DELETE"))
    server_mesh.rules(gateway_rules("DELETE"))
    assert (403, 200) == (status("GET"), status("DELETE"))


def test_deadline_comes_from_the_callers_header(server_mesh: Any) -> None:
    server_mesh.rules()
    request = begin(server_mesh, request=head(x_envoy_expected_rq_timeout_ms="1500", x_envoy_attempt_count="3"))
    now = server_mesh.clock()
    with request.entered():
        assert 1.5 == remaining_s(now)
        assert 3 == current_request().attempt  # type: ignore[union-attr]
    assert current_request() is None


@pytest.mark.parametrize("value", ["", "-1", "1e9", "abc", "٣"])
def test_a_malformed_deadline_is_no_deadline(server_mesh: Any, value: str) -> None:
    server_mesh.rules()
    assert begin(server_mesh, request=head(x_envoy_expected_rq_timeout_ms=value)).context.deadline is None


def test_the_protocols_own_deadline_comes_first(server_mesh: Any) -> None:
    server_mesh.rules()
    request = begin(server_mesh, request=head(x_envoy_expected_rq_timeout_ms="1500"), remaining_s=0.5)
    assert server_mesh.clock() + 0.5 == request.context.deadline


def test_trace_context_is_current_while_serving(server_mesh: Any) -> None:
    from opentelemetry import trace

    server_mesh.rules()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with begin(server_mesh, request=head(traceparent=parent)).entered():
        assert 0x0AF7651916CD43DD8448EB211C80319C == trace.get_current_span().get_span_context().trace_id
    assert not trace.get_current_span().get_span_context().is_valid


def test_end_is_reported_once(server_mesh: Any, gateway_pem: str) -> None:
    server_mesh.rules()
    request = begin(server_mesh, peer_of_pem(gateway_pem))
    server_mesh.clock.advance(0.25)
    request.finish(201)
    request.finish(500)
    (event,) = server_mesh.served
    assert ("users", 201, 0.25, False) == (event.service, event.status, event.duration_s, event.denied)
    assert "spiffe://cluster.local/ns/default/sa/gateway" == event.principal


def test_first_request_may_wait_for_the_listener(server_mesh: Any) -> None:
    inbound = Inbound(server_mesh, kind="http")
    assert not inbound.is_known(LOCAL)
    server_mesh.inbound("127.0.0.1:80").on_wait = lambda: server_mesh.rules()
    inbound.wait_known(LOCAL)
    assert inbound.is_known(LOCAL)


def test_unknown_local_address_means_the_announced_one(server_mesh: Any) -> None:
    server_mesh.default_inbound_address = "127.0.0.1:9999"
    server_mesh.rules(address="127.0.0.1:9999")
    request = Inbound(server_mesh, kind="grpc").begin(head(), ANONYMOUS, local=("", 0), remote="")
    assert request.reply is None


def test_ipv6_addresses_are_bracketed(server_mesh: Any) -> None:
    server_mesh.rules(address="[::1]:80")
    request = Inbound(server_mesh, kind="http").begin(head(), ANONYMOUS, local=("::1", 80), remote="::1")
    assert request.reply is None


def test_request_that_matches_no_route_of_the_listener_is_refused(server_mesh: Any) -> None:
    server_mesh.rules(prefix="/orders")
    reply = begin(server_mesh).reply
    assert (404, "NR") == (reply.status, reply.flag)


@pytest.mark.parametrize("path", ["/%75sers/7", "//users/7", "/orders/../users/7", "/orders/%2e%2e/users/7"])
def test_a_rule_about_paths_holds_for_every_reading_of_a_path(server_mesh: Any, deny_users: Any, path: str) -> None:
    server_mesh.rules(deny_users)
    reply = begin(server_mesh, request=RequestHead("GET", "users", path, Headers())).reply
    assert 403 == reply.status


def test_grpc_methods_are_taken_as_they_are_sent(server_mesh: Any, deny_users: Any) -> None:
    server_mesh.rules(deny_users)
    request = RequestHead("POST", "users", "/%75sers/7", Headers(), is_grpc=True)
    assert begin(server_mesh, request=request).reply is None


@pytest.mark.parametrize(
    ("method", "target", "status"), [("GET", "http://x/", 400), ("OPTIONS", "*", None), ("GET", "*", 400)]
)
def test_a_target_that_is_no_path_is_refused(server_mesh: Any, method: str, target: str, status: int | None) -> None:
    server_mesh.rules(prefix="")
    reply = begin(server_mesh, request=RequestHead(method, "users", target, Headers())).reply
    assert status == (None if reply is None else reply.status)


def test_only_announced_addresses_count_once_there_are_any(server_mesh: Any) -> None:
    server_mesh.rules(address="10.0.0.9:80")
    server_mesh.announced_addresses["10.0.0.1:80"] = "10.0.0.1:80"
    request = Inbound(server_mesh, kind="http").begin(head(), ANONYMOUS, local=("10.0.0.9", 80), remote="")
    assert 503 == request.reply.status  # type: ignore[union-attr]
    assert b"was not announced by this process" in request.reply.body  # type: ignore[union-attr]


@pytest.mark.parametrize("local", [("10.1.2.3", 80), ("::ffff:10.1.2.3", 80), ("127.0.0.1", 80)])
@pytest.mark.parametrize("listening", ["0.0.0.0:80", "[::]:80"])
def test_a_socket_at_all_addresses_is_guarded_by_what_it_was_announced_as(
    server_mesh: Any, listening: str, local: tuple[str, int]
) -> None:
    server_mesh.rules(address="203.0.113.7:8080")
    server_mesh.announced_addresses[listening] = "203.0.113.7:8080"
    inbound = Inbound(server_mesh, kind="http")
    assert inbound.begin(head(), ANONYMOUS, local=local, remote="").reply is None
    assert 503 == inbound.begin(head(), ANONYMOUS, local=(local[0], 81), remote="").reply.status  # type: ignore[union-attr]


def test_made_up_addresses_do_not_make_subscriptions_without_end(server_mesh: Any) -> None:
    inbound = Inbound(server_mesh, kind="http")
    for port in range(1, 100):
        assert 503 == inbound.begin(head(), ANONYMOUS, local=("127.0.0.1", port), remote="").reply.status  # type: ignore[union-attr]
    assert 16 == len(server_mesh.handles)


def test_waiting_for_a_listener_that_does_not_exist_is_no_error(server_mesh: Any) -> None:
    def absent() -> None:
        raise RoutingError("does not exist")

    server_mesh.inbound("127.0.0.1:80").on_wait = absent
    Inbound(server_mesh, kind="http").wait_known(LOCAL)
