"""What formats say of the clock and of this machine, over the life of a call."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshlib.call import Attempt, Done, Sleep
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.headers import AppendAction, HeaderAdd, HeaderMutation
from meshlib.model.listener import ClientListener
from meshlib.model.local_reply import BodyFormat, ReplyRules
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.request import Headers
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import DirectResponse
from meshlib.model.snapshot import Snapshot, TargetConfig
from meshlib.testing import service

MakeDriver = Callable[..., Any]
BEGAN = 1_700_000_000.0
CONNECT = Failure(FailureKind.CONNECT, False)


def add(name: str, value: str) -> HeaderAdd:
    return HeaderAdd(name, value, AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, False)


BOTH = (add("x-start", "%START_TIME(%s.%3f)%"), add("x-emit", "%EMIT_TIME(%s)%"), add("x-who", "%HOSTNAME%"))


def with_route(snapshot: Snapshot, **changes: Any) -> Snapshot:
    config = snapshot.targets["a"]
    assert isinstance(config, TargetConfig)
    host = config.routes.virtual_hosts[0]
    route = replace(host.routes[0], **changes)
    routes = replace(config.routes, virtual_hosts=(replace(host, routes=(route,)),))
    return replace(snapshot, targets={"a": replace(config, routes=routes)})


def prepared(make: MakeDriver, snapshot: Snapshot) -> Any:
    d = make(snapshot)
    d.target.wall_offset_s = BEGAN - 1000.0
    d.target.hostname = "vm"
    return d


def test_a_request_says_when_it_began_and_a_response_when_it_came(driver: MakeDriver) -> None:
    retry = RetryPolicy(frozenset({"connect-failure"}), num_retries=1)
    snapshot = with_route(
        service("a", "h:1", retry=retry), mutation=HeaderMutation(request_add=BOTH, response_add=BOTH)
    )
    call = prepared(driver, snapshot).call()
    step = call.start(1000.25)
    assert isinstance(step, Attempt)
    sent = step.head.headers
    assert ("1700000000.250", "1700000000", "vm") == (sent.get("x-start"), sent.get("x-emit"), sent.get("x-who"))
    step = call.finished(CONNECT, 1002.0)
    step = call.slept(1003.0) if isinstance(step, Sleep) else step
    assert isinstance(step, Attempt)
    assert "1700000000" == step.head.headers.get("x-emit")  # written once, for all attempts
    assert isinstance(call.finished(Response(200), 1005.5), Done)
    got = call.response_headers(Headers())
    assert ("1700000000.250", "1700000005", "vm") == (got.get("x-start"), got.get("x-emit"), got.get("x-who"))


def test_an_answer_of_the_mesh_says_it_too(driver: MakeDriver) -> None:
    snapshot = with_route(
        service("a", "h:1"), action=DirectResponse(200, b"hi"), mutation=HeaderMutation(response_add=BOTH)
    )
    step = prepared(driver, snapshot).call().start(1000.25)
    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    assert "1700000000.250" == Headers(step.result.headers).get("x-start")


def test_calls_have_a_moment_only_where_a_format_speaks_of_it(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1")).call()
    call.start(1000.0)
    assert call.head.moment is None
    assert not driver(service("a", "h:1")).target.routes.needs_moment


def test_two_calls_with_one_head_have_each_their_own(driver: MakeDriver) -> None:
    snapshot = with_route(service("a", "h:1"), mutation=HeaderMutation(response_add=BOTH))
    d = prepared(driver, snapshot)
    first, second = d.call(), d.call()
    second.head = first.head
    first.start(1000.0)
    second.start(1001.0)
    assert first.head.moment is not second.head.moment


def test_the_wall_clock_is_followed(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1"))
    d.mesh.view.keep_time(5.0)
    assert 5.0 == d.mesh.view.targets["a"].wall_offset_s


def test_listeners_formats_count(driver: MakeDriver) -> None:
    snapshot = service("a", "h:1")
    config = snapshot.targets["a"]
    assert isinstance(config, TargetConfig)
    listener: ClientListener = replace(config.listener, reply_rules=ReplyRules((), BodyFormat("%START_TIME(%s)%")))
    snapshot = replace(snapshot, targets={"a": replace(config, listener=listener)})
    snapshot = with_route(snapshot, action=DirectResponse(200, b"hi"))
    step = prepared(driver, snapshot).call().start(1000.0)
    assert isinstance(step.result, LocalReply)
    assert b"1700000000" == step.result.body


def test_the_id_of_a_call_stays_with_it(driver: MakeDriver) -> None:
    retry = RetryPolicy(frozenset({"5xx"}), num_retries=3)
    formats = HeaderMutation(response_add=(add("x-hosts", "%UPSTREAM_HOSTS_ATTEMPTED%"), add("x-id", "%STREAM_ID%")))
    call = driver(with_route(service("a", "h:1", retry=retry), mutation=formats)).call()
    step = call.start(1000.0)
    for outcome in (Response(503), CONNECT, Response(200)):
        while isinstance(step, Sleep):
            step = call.slept(1001.0)
        assert isinstance(step, Attempt)
        step = call.finished(outcome, 1001.0)
    assert isinstance(step, Done)
    headers = call.response_headers(Headers())
    assert headers.get("x-hosts") == "h:1"
    assert headers.get("x-id") == call.response_headers(Headers()).get("x-id") != ""


def test_the_host_that_a_limit_kept_a_call_from_is_told(driver: MakeDriver) -> None:
    full = Cluster("", EdsDiscovery(""), circuit_breakers=CircuitBreakers(max_requests=0))
    formats = HeaderMutation(response_add=(add("x-host", "%UPSTREAM_HOST%"),))
    call = driver(with_route(service("a", "h:1", template=full), mutation=formats)).call()
    step = call.start(1000.0)
    assert isinstance(step, Done) and isinstance(step.result, LocalReply)
    assert ("x-host", "h:1") in step.result.headers
    assert call.endpoint is None
