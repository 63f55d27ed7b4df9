"""mTLS through the relay: who is talked to, what a wrong peer gets to see, rotation, what is left behind."""

import asyncio
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_errors import MeshRpcError
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.runtime.relay import THREAD_NAME

CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
ORDERS = "spiffe://cluster.local/ns/default/sa/orders"
UNARY, CHAT = "/test.Service/Unary", "/test.Service/Chat"


def relay_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD_NAME]


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> Iterator[None]:
    """The relay works in a folder of the test's own, short enough for a socket's path."""
    with tempfile.TemporaryDirectory(prefix="relay-test-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        eventually(lambda: not relay_threads() and not os.listdir(folder))


def test_the_right_peer_is_talked_to(server: Any, mesh: Any, authority: Any) -> None:
    one = server(authority.server_credentials(CHECKOUT))
    mesh.serve_tls(one.address, authority, authority.issue(ORDERS))
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        assert b"%d x" % one.port == channel.unary_unary(UNARY)(b"x")
        big = b"y" * 3_000_000
        assert [b"%d " % one.port + big] * 3 == list(channel.stream_stream(CHAT)(iter([big] * 3)))
        token = grpc.access_token_call_credentials("secret")
        channel.unary_unary(UNARY)(b"x", credentials=token)
        assert "Bearer secret" == one.seen[-1]["authorization"]
        assert [THREAD_NAME] == relay_threads()


async def test_the_right_peer_is_talked_to_from_aio(server: Any, mesh: Any, authority: Any) -> None:
    one = server(authority.server_credentials(CHECKOUT))
    mesh.serve_tls(one.address, authority, authority.issue(ORDERS))
    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
        results = await asyncio.gather(*(channel.unary_unary(UNARY)(b"x") for _ in range(20)))
    assert [b"%d x" % one.port] * 20 == results


def test_a_wrong_peer_is_named_and_gets_no_byte(mesh: Any, authority: Any) -> None:
    """A TLS server with another identity of the same CA records what it gets."""
    wrong = "spiffe://cluster.local/ns/default/sa/somebody"
    with authority.recorder(wrong) as (address, received):
        mesh.serve_tls(address, authority, authority.issue(ORDERS))
        with MeshChannel(mesh.source, "xds:///checkout") as channel, pytest.raises(MeshRpcError) as caught:
            channel.unary_unary(UNARY)(b"x", timeout=10)
    assert [b""] == received
    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
    assert wrong in caught.value.details()
    assert CHECKOUT in caught.value.details()


def test_missing_certificates_are_named(mesh: Any, authority: Any) -> None:
    mesh.serve_tls("127.0.0.1:1", authority, authority.root)
    with MeshChannel(mesh.source, "xds:///checkout") as channel, pytest.raises(MeshRpcError) as caught:
        channel.unary_unary(UNARY)(b"x")
    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
    assert "default" in caught.value.details()


def test_a_peer_that_is_not_there_is_a_connect_failure(mesh: Any, authority: Any) -> None:
    mesh.serve_tls("127.0.0.1:1", authority, authority.issue(ORDERS))
    with MeshChannel(mesh.source, "xds:///checkout") as channel, pytest.raises(MeshRpcError, match="Connect call"):
        channel.unary_unary(UNARY)(b"x")


def test_rotation_under_load_fails_no_call(server: Any, mesh: Any, authority: Any, eventually: Any) -> None:
    """Twelve certificates, four threads calling, and one stream from before to after."""
    one = server(authority.server_credentials(CHECKOUT))
    mesh.serve_tls(one.address, authority, authority.issue(ORDERS))
    stop = threading.Event()
    failures: list[BaseException] = []
    counts = [0] * 4

    def load(number: int, call: Any) -> None:
        while not stop.is_set():
            try:
                call(b"x", timeout=10)
                counts[number] += 1
            except grpc.RpcError as error:
                failures.append(error)

    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        call = channel.unary_unary(UNARY)
        more = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"first"
            more.wait(30)
            yield b"last"

        stream = channel.stream_stream(CHAT)(requests())
        assert b"%d first" % one.port == next(stream)
        threads = [threading.Thread(target=load, args=(number, call)) for number in range(4)]
        for thread in threads:
            thread.start()
        rotations = 0
        while rotations < 12 or min(counts) <= 5:
            time.sleep(0.05)
            mesh.serve_tls(one.address, authority, authority.issue(ORDERS))
            rotations += 1
        stop.set()
        for thread in threads:
            thread.join()
        assert [] == failures
        more.set()
        assert [b"%d last" % one.port] == list(stream)
        call(b"x")
        assert {"channels": 1, "active": 0} == channels_of(mesh.source).sync.statistics()
        eventually(lambda: channels_of(mesh.source).relay.statistics() == {"routes": 1, "connections": 1})


def test_a_forked_child_calls_on_its_own(server: Any, mesh: Any, authority: Any) -> None:
    one = server(authority.server_credentials(CHECKOUT))
    mesh.serve_tls(one.address, authority, authority.issue(ORDERS))
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        relay = channels_of(mesh.source).relay
        route = relay.open("127.0.0.1:1", ssl.create_default_context())
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child's coverage is not collected
            try:
                own = relay.open("127.0.0.1:1", ssl.create_default_context())
                facts = (own.target != route.target, route.listener.fileno() == -1, len(relay_threads()) == 1)
                relay.close()
                facts = (*facts, not os.path.exists(own.path), os.path.exists(route.path))
                os.write(write, b"ok" if all(facts) else repr(facts).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            assert b"ok" == answer.read()
        os.waitpid(pid, 0)
        relay.release(route)
        assert b"%d x" % one.port == channel.unary_unary(UNARY)(b"x")
