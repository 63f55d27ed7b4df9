"""gRPC servers, synchronous and asyncio."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

GATEWAY = b"spiffe://cluster.local/ns/default/sa/gateway"
KINDS = ("sync", "aio")


@pytest.fixture(scope="module", params=KINDS)
def service(request: Any, server: Any, tmp_path_factory: Any, make_world: Any) -> Iterator[Any]:
    world = make_world(server, tmp_path_factory.mktemp("grpc"))
    process = world.start("greeter", request.param, "guarded")
    (address,) = world.wait_serving("guarded")
    world.kind, world.process, world.address = request.param, process, address
    world.channel = world.mesh("gateway", "guarded").channel("xds:///guarded")
    yield world
    world.channel.close()
    world.close()


def method(name: str) -> str:
    return f"/test.Greeter/{name}"


def ended(world: Any, wait_for: Any, name: str, *codes: int) -> None:
    """Wait until the server has reported the end of a call, with one of these codes."""
    reports = {f"ended {name} {code}" for code in codes}
    wait_for(
        lambda: reports & set(world.process.lines), lambda: f"{name} has ended with {codes}: {world.process.output}"
    )


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code = caught.value.code()  # type: ignore[attr-defined]
    assert isinstance(code, grpc.StatusCode)
    return code


def test_all_arities_know_the_caller(service: Any, wait_for: Any) -> None:
    channel = service.channel
    assert GATEWAY == channel.unary_unary(method("UnaryUnary"))(b"", timeout=10)
    assert [GATEWAY] * 3 == list(channel.unary_stream(method("UnaryStream"))(b"", timeout=10))
    assert b"3" == channel.stream_unary(method("StreamUnary"))(iter([b"a"] * 3), timeout=10)
    assert [b"a" + GATEWAY] * 2 == list(channel.stream_stream(method("StreamStream"))(iter([b"a"] * 2), timeout=10))
    for name in ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream"):
        ended(service, wait_for, name, 0)


def test_other_styles_of_asyncio_handlers(service: Any, wait_for: Any) -> None:
    if service.kind == "aio":
        call = service.channel.stream_stream(method("ReadWrite"))(iter([b"a", b"b"]), timeout=10)
        assert [b"a" + GATEWAY, b"b" + GATEWAY] == list(call)
        assert GATEWAY == service.channel.unary_unary(method("Plain"))(b"", timeout=10)
        ended(service, wait_for, "ReadWrite", 0)
        ended(service, wait_for, "Plain", 0)


def test_errors_of_handlers_are_reported_as_they_are(service: Any, wait_for: Any) -> None:
    assert grpc.StatusCode.FAILED_PRECONDITION == code_of(
        lambda: service.channel.unary_unary(method("Abort"))(b"", timeout=10)
    )
    assert grpc.StatusCode.UNKNOWN == code_of(lambda: service.channel.unary_unary(method("Fail"))(b"", timeout=10))
    ended(service, wait_for, "Abort", 9)
    ended(service, wait_for, "Fail", 2)


def test_a_call_that_its_caller_gives_up_has_ended_as_cancelled(service: Any, wait_for: Any) -> None:
    call = service.channel.unary_stream(method("Endless"))(b"", timeout=20)
    assert b"more" == next(call)
    call.cancel()
    ended(service, wait_for, "Endless", 1)


def test_a_call_whose_time_is_over_has_ended_so(service: Any, wait_for: Any) -> None:
    """Where the caller's clock is ahead, its cancellation comes before the server's own deadline."""
    call = service.channel.unary_stream(method("EndlessToo"))(b"", timeout=0.5)
    assert grpc.StatusCode.DEADLINE_EXCEEDED == code_of(lambda: list(call))
    ended(service, wait_for, "EndlessToo", 4, 1)


def test_rules_come_before_the_question_whether_a_method_exists(service: Any) -> None:
    channel = service.channel
    assert grpc.StatusCode.PERMISSION_DENIED == code_of(lambda: channel.unary_unary(method("Secret"))(b"", timeout=10))
    assert grpc.StatusCode.PERMISSION_DENIED == code_of(lambda: channel.unary_unary(method("Nothing"))(b"", timeout=10))
    assert grpc.StatusCode.UNIMPLEMENTED == code_of(lambda: channel.unary_unary(method("Absent"))(b"", timeout=10))
    stranger = service.mesh("stranger", "guarded").channel("xds:///guarded")
    for name in ("UnaryUnary", "Absent"):
        assert grpc.StatusCode.PERMISSION_DENIED == code_of(
            lambda name=name: stranger.unary_unary(method(name))(b"", timeout=10)
        )
    stranger.close()


def test_callers_without_certificate_are_refused(service: Any) -> None:
    """Foreign trust domains are refused by the guard: see the unit tests (no client of grpcio's takes a SPIFFE server)."""
    port = service.address.rpartition(":")[2]
    options = (("grpc.enable_http_proxy", 0),)
    credentials = grpc.ssl_channel_credentials(service.server.root.read_bytes())
    for channel in (
        grpc.insecure_channel(f"127.0.0.1:{port}", options),
        grpc.secure_channel(f"127.0.0.1:{port}", credentials, options),
    ):
        call = channel.unary_unary(method("UnaryUnary"))
        assert grpc.StatusCode.UNAVAILABLE == code_of(lambda call=call: call(b"", timeout=5))
        channel.close()


@pytest.mark.parametrize("kind", KINDS)
def test_sigterm_under_load_fails_no_call_and_sigkill_ends_the_lease(
    world: Any, kind: str, load: Any, wait_for: Any
) -> None:
    processes = [world.start("greeter", kind, f"drained-{kind}") for _ in range(3)]
    world.wait_serving(f"drained-{kind}", 3)
    channel = world.mesh("gateway", f"drained-{kind}").channel(f"xds:///drained-{kind}")
    quick = channel.unary_unary(method("UnaryUnary"))
    slow = channel.unary_unary(method("Slow"))
    with load(lambda: quick(b"", timeout=10), 3) as calls, load(lambda: slow(b"", timeout=10), 3) as slow_calls:
        wait_for(lambda: all("ended UnaryUnary 0" in process.lines for process in processes), "all are called")
        processes[0].send(signal.SIGTERM)
        assert 0 == processes[0].wait()
    assert [] == calls.failures + slow_calls.failures
    assert 2 == len(world.server.instances(f"drained-{kind}"))
    processes[1].send(signal.SIGKILL)
    processes[1].wait()
    wait_for(lambda: len(world.server.instances(f"drained-{kind}")) == 1, "the lease has ended")
    channel.close()
