"""TLS between asyncio's transports and our streams, and timers that several waits share; in memory."""

import asyncio
import contextlib
import ssl
from typing import Any

import pytest
import trustme

from meshlib.clients.asyncio_protocol import StreamProtocol, TlsProtocol, TlsWire


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.protocol: Any = None
        self.is_closed = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written += data

    def take(self) -> bytes:
        taken, self.written = self.written, b""
        return taken

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None: ...

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1)}.get(name, default)


class Peer:
    """A server's side."""

    def __init__(self, authority: trustme.CA, version: ssl.TLSVersion) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.maximum_version = version
        authority.issue_cert("localhost").configure_cert(context)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def peer(request: Any, authority: trustme.CA) -> Peer:
    return Peer(authority, request.param)


async def opened(authority: trustme.CA, peer: Peer, *, size: int = 100_000) -> tuple[TlsProtocol, Transport]:
    """Shake hands; what the peer says comes in pieces of a size."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    transport: Any = Transport()
    protocol = TlsProtocol(transport, context, "localhost")
    task = asyncio.create_task(protocol.shake_hands())
    while not task.done():
        await asyncio.sleep(0)
        peer.incoming.write(transport.take())
        with contextlib.suppress(ssl.SSLWantReadError):
            peer.tls.do_handshake()
        deliver(protocol, peer.outgoing.read(), size)
    await task
    return protocol, transport


def deliver(protocol: TlsProtocol, data: bytes, size: int = 100_000) -> None:
    for at in range(0, len(data), size):
        protocol.data_received(data[at : at + size])


def said(peer: Peer, data: bytes) -> bytes:
    peer.tls.write(data)
    return peer.outgoing.read()


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_data_goes_both_ways_in_pieces_of_any_size(authority: trustme.CA, peer: Peer, size: int) -> None:
    protocol, transport = await opened(authority, peer, size=size)
    sent = b"x" * 40_000
    protocol.send(sent)
    protocol.send(memoryview(b"last"))
    peer.incoming.write(transport.take())
    got = b""
    while len(got) < len(sent) + 4:
        got += peer.tls.read(65536)
    assert sent + b"last" == got
    whole = b"".join(said(peer, bytes([number]) * 16_000) for number in range(3))
    deliver(protocol, whole, size if size > 1 else 1000)
    assert 48_000 == len(b"".join(protocol.chunks))
    assert bytes([2]) * 16_000 == b"".join(protocol.chunks)[32_000:]
    assert not protocol.is_eof


async def test_end_with_and_without_a_word(authority: trustme.CA, peer: Peer) -> None:
    protocol, transport = await opened(authority, peer)
    transport.take()
    data = said(peer, b"bye")
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    deliver(protocol, data + peer.outgoing.read())
    assert ([b"bye"], True, None, True) == (list(protocol.chunks), protocol.is_eof, protocol.error, transport.is_closed)
    peer.incoming.write(transport.take())
    peer.tls.unwrap()  # we have said so, too


async def test_connection_that_just_ends_is_an_end(authority: trustme.CA, peer: Peer) -> None:
    protocol, _ = await opened(authority, peer)
    deliver(protocol, said(peer, b"half a")[:-5])
    protocol.eof_received()
    protocol.connection_lost(None)
    assert (0, True, True, None) == (len(protocol.chunks), protocol.is_eof, protocol.is_lost, protocol.error)


async def test_what_is_no_tls_is_an_error_that_stays(authority: trustme.CA, peer: Peer) -> None:
    protocol, transport = await opened(authority, peer)
    deliver(protocol, said(peer, b"good") + b"HTTP/1.1 400 Bad Request\r\n\r\n")
    protocol.connection_lost(None)
    assert [b"good"] == list(protocol.chunks)
    assert isinstance(protocol.error, ssl.SSLError) and transport.is_closed


async def test_lost_during_the_handshake(authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    transport: Any = Transport()
    protocol = TlsProtocol(transport, context, "localhost")
    task = asyncio.create_task(protocol.shake_hands())
    await asyncio.sleep(0)
    protocol.connection_lost(ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError, match="gone"):
        await task


async def test_peer_that_is_not_trusted_gets_no_last_message(peer: Peer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        await opened(trustme.CA(), peer)
    with pytest.raises((ssl.SSLWantReadError, ssl.SSLError)):
        peer.tls.do_handshake()


async def test_wire_tells_of_tls_and_of_the_transport(authority: trustme.CA, peer: Peer) -> None:
    protocol, transport = await opened(authority, peer)
    wire = TlsWire(transport, protocol)  # type: ignore[arg-type]
    assert protocol.tls is wire.get_extra_info("ssl_object")
    assert protocol.tls.context is wire.get_extra_info("sslcontext")
    assert ("DNS", "localhost") in wire.get_extra_info("peercert")["subjectAltName"]
    assert wire.get_extra_info("cipher")[0]
    assert (("127.0.0.1", 1), None) == (wire.get_extra_info("peername"), wire.get_extra_info("compression"))


class Clock:
    """Of a loop; moves when it is told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = loop.time()
        self.handles: list[tuple[float, Any]] = []
        monkeypatch.setattr(loop, "time", lambda: self.now)
        monkeypatch.setattr(loop, "call_at", self.call_at)

    def call_at(self, when: float, callback: Any) -> Any:
        self.handles.append((when, callback))
        return self

    def cancel(self) -> None:
        self.handles.pop()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [handle for handle in self.handles if handle[0] <= self.now]
        self.handles = [handle for handle in self.handles if handle[0] > self.now]
        for _, callback in due:
            callback()


async def test_waits_share_a_timer_and_each_ends_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(asyncio.get_running_loop(), monkeypatch)
    protocol = StreamProtocol()
    begin = clock.now
    for _ in range(3):
        waiter = protocol.wait(5.0)
        clock.advance(1.0)
        protocol.data_received(b"x")
        assert waiter.result() is True
        protocol.waiter = None
    assert [begin + 5.0] == [when for when, _ in clock.handles]

    waiter = protocol.wait(5.0)
    clock.advance(4.9)  # the timer of the first has come meanwhile
    assert (waiter.done(), len(clock.handles)) == (False, 1)
    clock.advance(0.2)
    assert waiter.result() is False

    waiter = protocol.wait(9.0)
    shorter = protocol.wait(0.5)
    clock.advance(0.5)
    assert (waiter.done(), shorter.result()) == (False, False)


async def test_wait_without_an_end_outlives_a_timer_from_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(asyncio.get_running_loop(), monkeypatch)
    protocol = StreamProtocol()
    protocol.wait(1.0)
    waiter = protocol.wait(None)
    clock.advance(60.0)
    assert not waiter.done() and not clock.handles
    protocol.connection_lost(None)
    assert waiter.result() is True


async def test_lost_connection_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(asyncio.get_running_loop(), monkeypatch)
    protocol = StreamProtocol()
    protocol.wait(60.0)
    protocol.connection_lost(None)
    assert not clock.handles
