"""gRPC's own TLS to SPIFFE peers: when it takes over from the relay, whom it refuses, and what is left behind.

The numbers of traps are those in `meshlib.runtime.core`.
"""

import asyncio
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from server_apart import ServerApart

from meshlib.clients import grpc_channels, grpc_core
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_errors import MeshRpcError
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.runtime import tls
from meshlib.runtime.core import (
    CoreCluster,
    LocalAds,
    Slots,
    cookie,
    is_too_old,
    is_unsent,
    new_node_id,
    open_aio,
    open_sync,
)

CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
ORDERS = "spiffe://cluster.local/ns/default/sa/orders"
SOMEBODY = "spiffe://cluster.local/ns/default/sa/somebody"
pytestmark = pytest.mark.skipif(is_too_old(grpc.__version__), reason="the relay serves all with such a grpcio")
UNARY, CHAT, RESPONSES, REQUESTS = (f"/test.Service/{name}" for name in ("Unary", "Chat", "Responses", "Requests"))


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch, eventually: Any) -> Iterator[None]:
    """Core takes over at once, and leaves no thread, file or folder."""
    monkeypatch.setattr(grpc_core, "START_DELAY_S", 0.0)
    monkeypatch.setattr(grpc_core, "TICK_S", 0.02)
    monkeypatch.setattr(grpc_core, "IDLE_TICK_S", 0.05)
    monkeypatch.setattr(grpc_core, "DISTRUST_S", 0.3)
    with tempfile.TemporaryDirectory(prefix="core-test-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        eventually(lambda: not os.listdir(folder) and not _threads())
    eventually(lambda: not _memory())


def _threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("meshlib-core", "meshlib-relay"))]


def _memory() -> list[str]:
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return [link for link in links if "meshlib-core" in link]


class Setup:
    """A service with mTLS that core can take over, and how far that has come."""

    def __init__(self, mesh: Any, server: Any, authority: Any, eventually: Any, one: Any = None) -> None:
        self.mesh, self.server, self.authority, self.eventually = mesh, server, authority, eventually
        self.one = one or server(authority.server_credentials(CHECKOUT))
        self.serve()

    def serve(self, authority: Any = None) -> None:
        authority = authority or self.authority
        self._mine = authority.issue(ORDERS)
        self.mesh.serve_tls(self.one.address, authority, self._mine, minimum_version="TLSv1_2")

    @property
    def status(self) -> grpc_core.CoreStatus:
        return channels_of(self.mesh.source).tls_status()

    def until_core(self) -> None:
        """Wait until calls are made by core, with the newest certificate."""

        def is_there() -> bool:
            found = channels_of(self.mesh.source).sync.secured()
            return [(True, self._mine.value)] == [
                (one.core is not None, one.secrets and one.secrets.certificate) for one in found
            ]

        self.eventually(is_there)


@pytest.fixture
def setup(mesh: Any, server: Any, authority: Any, eventually: Any) -> Setup:
    return Setup(mesh, server, authority, eventually)


def test_core_takes_over_what_the_relay_has_verified(setup: Setup) -> None:
    """All kinds of RPCs, with the application's metadata, its cookies and its credentials."""
    port = setup.one.port
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        assert b"%d x" % port == unary(b"x")
        setup.until_core()
        assert "core" == setup.status.mode
        metadata = (("a", "1"), ("cookie", "mine=1"), ("b-bin", b"\x01"))
        token = grpc.access_token_call_credentials("secret")
        response, call = unary.with_call(b"x", metadata=metadata, credentials=token)
        assert b"%d x" % port == response
        assert ("first", "1") in [(item.key, item.value) for item in call.initial_metadata()]
        assert ("last", "2") in [(item.key, item.value) for item in call.trailing_metadata()]
        seen = setup.one.seen[-1]
        assert ("1", b"\x01", "Bearer secret") == (seen["a"], seen["b-bin"], seen["authorization"])
        assert seen["cookie"].endswith("; mine=1")
        assert "checkout" == seen[":authority"]
        assert b"%d y" % port == unary.future(b"y").result(10)
        assert [b"0:z", b"1:z", b"2:z"] == list(channel.unary_stream(RESPONSES)(b"z"))
        assert b"1,2,3" == channel.stream_unary(REQUESTS)(iter([b"1", b"2", b"3"]))
        big = b"y" * 3_000_000
        assert [b"%d " % port + big] * 3 == list(channel.stream_stream(CHAT)(iter([big] * 3)))
        assert (1, 0) == (setup.status.core, setup.status.relay)
        setup.eventually(lambda: channels_of(setup.mesh.source).relay.statistics()["connections"] == 0)


async def test_core_takes_over_for_aio(setup: Setup) -> None:
    port = setup.one.port
    async with AioMeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        assert b"%d x" % port == await unary(b"x")
        async with asyncio.timeout(60):
            while setup.status.core != 1:
                await asyncio.sleep(0.01)
        assert [b"%d x" % port] * 20 == await asyncio.gather(*(unary(b"x") for _ in range(20)))
        assert [b"0:z", b"1:z", b"2:z"] == [one async for one in channel.unary_stream(RESPONSES)(b"z")]
        assert b"1,2,3" == await channel.stream_unary(REQUESTS)(iter([b"1", b"2", b"3"]))
        chat = channel.stream_stream(CHAT)()
        await chat.write(b"1")
        assert b"%d 1" % port == await chat.read()
        await chat.done_writing()
        assert [] == [one async for one in chat]
        assert "meshlib=" in setup.one.seen[-1]["cookie"]
        assert (1, 0) == (setup.status.core, setup.status.relay)


def test_a_peer_that_changes_its_identity_is_refused_and_named(setup: Setup) -> None:
    """Core refuses, the relay says why; when the right one is back, core takes over again (trap 6)."""
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        unary(b"x")
        setup.until_core()
        setup.one.stop()
        other = setup.server(setup.authority.server_credentials(SOMEBODY), setup.one.port)
        for _ in range(3):
            with pytest.raises(MeshRpcError) as caught:
                unary(b"x", timeout=10)
            assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
            assert SOMEBODY in caught.value.details()
        assert [] == other.seen
        other.stop()
        setup.server(setup.authority.server_credentials(CHECKOUT), setup.one.port)
        setup.eventually(lambda: _answers(unary))
        setup.until_core()
        unary(b"x")


def _answers(unary: Any) -> bool:
    try:
        unary(b"x", timeout=5)
    except grpc.RpcError:
        return False
    return True


BAD = {
    "expired": (CHECKOUT, {"ends_s": -60.0}, "expired"),
    "not yet valid": (CHECKOUT, {"starts_s": 600.0}, "not yet valid"),
    "wrong trust domain": (CHECKOUT.replace("cluster.local", "other.example"), {}, "other.example"),
}


@pytest.mark.parametrize(("name", "validity", "reason"), BAD.values(), ids=BAD)
def test_a_peer_that_must_be_refused_gets_no_call_after_core_has_taken_over(
    setup: Setup, name: str, validity: dict[str, float], reason: str
) -> None:
    """It takes the place of a good one, whose connection core has lost."""
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        unary(b"x")
        setup.until_core()
        setup.one.stop()
        bad = setup.server(setup.authority.server_credentials(name, **validity), setup.one.port)
        for _ in range(2):
            with pytest.raises(MeshRpcError) as caught:
                unary(b"x", timeout=10)
            assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
            assert reason in caught.value.details()
        assert [] == bad.seen


def test_a_peer_of_another_ca_gets_no_call_after_core_has_taken_over(setup: Setup) -> None:
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        unary(b"x")
        setup.until_core()
        setup.one.stop()
        bad = setup.server(type(setup.authority)().server_credentials(CHECKOUT), setup.one.port)
        with pytest.raises(MeshRpcError, match="verify failed"):
            unary(b"x", timeout=10)
        assert [] == bad.seen


@pytest.mark.parametrize("way", ["core", "relay"])
def test_our_certificate_is_not_used_once_it_has_expired(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Nothing has come from the control plane since. All kinds of calls are refused; a new certificate ends that."""
    if way == "relay":
        monkeypatch.setenv(grpc_core.SWITCH, "relay")
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        unary(b"x")
        if way == "core":
            setup.until_core()
        later = lambda: time.time() + 7200  # noqa: E731
        monkeypatch.setattr(grpc_channels, "wall", later)
        monkeypatch.setattr(grpc_channels, "client_context", partial(tls.client_context, wall=later))
        calls = len(setup.one.seen)
        for call in (
            lambda: unary(b"x", timeout=10),
            lambda: unary.future(b"x").result(10),
            lambda: next(channel.unary_stream(RESPONSES)(b"x")),
        ):
            with pytest.raises(grpc.RpcError, match="expired"):
                call()
        assert calls == len(setup.one.seen)
        monkeypatch.undo()
        setup.serve()
        unary(b"x", timeout=10)


def test_an_endpoint_that_is_gone_is_a_connect_failure(setup: Setup) -> None:
    """For all kinds of RPCs: core could not send them, so that the relay's reason is what the caller gets."""
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        calls: tuple[Callable[[], Any], ...] = (
            lambda: unary(b"x"),
            lambda: unary.future(b"x").result(10),
            lambda: next(channel.unary_stream(RESPONSES)(b"x")),
            lambda: next(channel.stream_stream(CHAT)(iter([b"x"]))),
        )
        for call in calls:
            unary(b"x")
            setup.until_core()
            setup.one.stop()
            with pytest.raises(grpc.RpcError, match="Connect call"):
                call()
            assert 0 == setup.mesh.active
            setup.one = setup.server(setup.authority.server_credentials(CHECKOUT), setup.one.port)
            setup.eventually(lambda: _answers(unary))


def test_rotation_under_load_fails_no_call(setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    """More certificates than there are places for them, four threads calling, a stream from before to after."""
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

    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        call = channel.unary_unary(UNARY)
        call(b"x")
        setup.until_core()
        more = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"first"
            more.wait(60)
            yield b"last"

        stream = channel.stream_stream(CHAT)(requests())
        assert b"%d first" % setup.one.port == next(stream)
        threads = [threading.Thread(target=load, args=(number, call)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(7):
            setup.serve()
            setup.until_core()
        stop.set()
        for thread in threads:
            thread.join()
        assert [] == failures
        assert min(counts) > 5
        more.set()
        assert [b"%d last" % setup.one.port] == list(stream)
    assert [] == [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_roots_are_rotated(setup: Setup) -> None:
    """A peer of the old CA is refused once the bundle holds only the new one."""
    other = type(setup.authority)()
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        unary(b"x")
        setup.until_core()
        setup.serve(authority=other)
        with pytest.raises(grpc.RpcError, match="verify failed"):
            unary(b"x", timeout=10)
        setup.one.stop()
        setup.server(other.server_credentials(CHECKOUT), setup.one.port)
        setup.eventually(lambda: _answers(unary))
        setup.until_core()
        unary(b"x")


@pytest.fixture
def setup_apart(mesh: Any, server: Any, authority: Any, eventually: Any) -> Iterator[Setup]:
    """For tests that fork: the server has a process of its own."""
    theirs = authority.issue(CHECKOUT).value
    one = ServerApart((theirs.key_pem, theirs.chain_pem, authority.pem))
    yield Setup(mesh, server, authority, eventually, one)
    one.stop()


def test_both_sides_of_a_fork_call(setup_apart: Setup) -> None:
    """Core is in use before each fork; the child makes its own, the parent goes on."""
    setup = setup_apart
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        for _ in range(3):
            unary(b"x")
            setup.until_core()
            unary(b"x")
            pid = os.fork()
            if pid == 0:  # pragma: no cover - the child's coverage is not collected
                code = 1
                try:
                    unary(b"x", timeout=20)
                    setup.until_core()
                    unary(b"x", timeout=20)
                    channel.close()
                    setup.eventually(lambda: not _threads())
                    code = 0
                finally:
                    os._exit(code)
            assert b"%d x" % setup.one.port == unary(b"x", timeout=20)
            assert (pid, 0) == os.waitpid(pid, 0)


def test_the_relay_serves_when_the_self_test_fails(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Trap 8: no promise holds for the argument that core gets its bootstrap by."""
    monkeypatch.setattr(grpc_core, "_verdict", [])
    monkeypatch.setattr("meshlib.runtime.core.channel._BOOTSTRAP", "grpc.some_other_name")
    monkeypatch.setattr("meshlib.runtime.core.selftest.TIMEOUT_S", 0.5)
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        channel.unary_unary(UNARY)(b"x")
        setup.eventually(lambda: setup.status.mode == "relay")
        assert "refused" in setup.status.text
        assert (0, 1) == (setup.status.core, setup.status.relay)
        channel.unary_unary(UNARY)(b"x")
    assert "go through the relay" in caplog.text


def test_core_can_be_switched_off(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(grpc_core.SWITCH, "relay")
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        channel.unary_unary(UNARY)(b"x")
        setup.eventually(lambda: setup.status.mode == "relay")
        assert "MESHLIB_GRPC_TLS=relay" == setup.status.text


def test_what_core_cannot_check_stays_with_the_relay(setup: Setup) -> None:
    setup.mesh.serve_tls(setup.one.address, setup.authority, setup.authority.issue(ORDERS))  # TLS 1.3 at least
    with MeshChannel(setup.mesh.source, "xds:///checkout") as channel:
        channel.unary_unary(UNARY)(b"x")
        setup.eventually(lambda: setup.status.mode == "core")
        time.sleep(0.2)
        channel.unary_unary(UNARY)(b"x")
        assert (0, 1) == (setup.status.core, setup.status.relay)


class Core:
    """Core by itself, without a mesh above it."""

    def __init__(self, authority: Any) -> None:
        self.slots = Slots()
        self.ads = LocalAds()
        self.node_id = new_node_id()
        value = authority.issue(ORDERS).value
        certificate = self.slots.certificate(value.chain_pem, value.key_pem, 0.0)
        roots = self.slots.bundle(authority.pem, 0.0)
        assert certificate is not None and roots is not None
        self._places = (certificate[0], roots[0])

    def expect(self, pattern: str, *addresses: str) -> None:
        self.ads.publish((CoreCluster("c", (pattern,), "", *self._places, "checkout", addresses),))

    def close(self) -> None:
        self.ads.close()
        self.slots.close()


@pytest.fixture
def core(authority: Any) -> Iterator[Core]:
    made = Core(authority)
    yield made
    made.close()


def _call(core: Core, address: str, cluster: str = "c") -> bytes:
    with open_sync(core.ads.uri, core.node_id, core.slots.providers) as channel:
        response: bytes = channel.unary_unary(UNARY)(b"x", timeout=10, metadata=(("cookie", cookie(address, cluster)),))
    return response


def test_a_wrong_peer_gets_no_byte_from_core(core: Core, authority: Any) -> None:
    """A TLS server with another identity of the same CA records what it gets after the handshake."""
    with authority.recorder(SOMEBODY) as (address, received):
        core.expect(CHECKOUT, address)
        with pytest.raises(grpc.RpcError) as caught:
            _call(core, address)
    assert [b""] == received
    assert is_unsent(caught.value, core.node_id)


@pytest.mark.parametrize(
    ("pattern", "is_accepted"),
    [
        (CHECKOUT, True),
        (CHECKOUT.replace("cluster", "CLUSTER"), False),  # trap 2
        (CHECKOUT + ".", False),
        ("spiffe://cluster.local/.*", True),
        ("spiffe://other/.*", False),
    ],
)
def test_names_are_compared_as_they_are(
    core: Core, authority: Any, server: Any, pattern: str, is_accepted: bool
) -> None:
    one = server(authority.server_credentials(CHECKOUT))
    core.expect(pattern, one.address)
    if is_accepted:
        assert b"%d x" % one.port == _call(core, one.address)
        return
    with pytest.raises(grpc.RpcError) as caught:
        _call(core, one.address)
    assert is_unsent(caught.value, core.node_id)
    assert [] == one.seen


def test_a_proxy_in_the_environment_is_not_used(
    core: Core, authority: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 10."""
    one = server(authority.server_credentials(CHECKOUT))
    core.expect(CHECKOUT, one.address)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert b"%d x" % one.port == _call(core, one.address)


async def test_more_calls_than_core_allows_by_default(core: Core, authority: Any, server: Any) -> None:
    """Trap 5: 1,024 requests a cluster."""
    one = server(authority.server_credentials(CHECKOUT))
    core.expect(CHECKOUT, one.address)
    async with open_aio(core.ads.uri, core.node_id, core.slots.providers) as channel:
        unary: Any = channel.unary_unary(UNARY)
        metadata = (("cookie", cookie(one.address, "c")),)
        await unary(b"x", metadata=metadata, timeout=10)
        calls = [unary(b"wait", metadata=metadata) for _ in range(1100)]
        done, _ = await asyncio.wait([asyncio.ensure_future(_finished(call)) for call in calls], timeout=1.0)
        # A gRPC server refuses some of a thousand calls that wait for a thread; core itself says "circuit breaker drop".
        assert [] == [task.result() for task in done if "circuit breaker" in task.result()]
        for call in calls:
            call.cancel()


async def _finished(call: Any) -> str:
    return f"{await call.code()}: {await call.details()}"
