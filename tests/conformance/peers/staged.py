"""An HTTP/1.1 or HTTP/2 server that answers in stages: it may answer before it has the request, stall, or fall silent."""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from peers.upstreams import LOOPBACK

__all__ = ["Arrival", "Stage", "StagedUpstream"]

PATIENCE_S = 20.0
Stage = tuple[Any, ...]
"""One of `("body",)`: read the request to its end; `("wait", s)`; `("head", status, headers)`: the body is to be chunked
unless a length is among the headers; `("data", bytes)`; `("end", trailers)`; `("stall",)`: until the peer is gone;
`("close",)`: the connection, or over HTTP/2 a reset. Without an end before it, what follows the last stage is silence."""


@dataclass
class Arrival:
    """A request as it came.

    Attributes:
        connection: Its number, from 1.
        port: Where it came.
        path: What it asks for: only `/first` goes by the script.
        body: What has come of the body.
        is_whole: All of it.
    """

    connection: int
    port: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    is_whole: bool = False


def _listening() -> socket.socket:
    """On a port that nobody else has, be it bound only to be kept."""
    found = socket.socket()
    found.bind((LOOPBACK, 0))
    found.listen(64)
    return found


class _Gone(Exception):
    """The peer has left."""


class StagedUpstream:
    """On ports of its own, with a thread for each connection, and for each stream of HTTP/2.

    Attributes:
        script: The stages of each request in the order of their arrival; those beyond it get `usual`.
        seen: What came.
        ports: Each is an endpoint.
    """

    def __init__(self, script: Sequence[Sequence[Stage]] = (), *, http2: bool = False, ports: int = 1) -> None:
        self.script = list(script)
        self.usual: Sequence[Stage] = (("body",), ("head", 200, {"content-length": "2"}), ("data", b"ok"), ("end", {}))
        self.seen: list[Arrival] = []
        self._http2 = http2
        self._lock = threading.Lock()
        self._connections = 0
        self._open: set[socket.socket] = set()
        self._listening = [_listening() for _ in range(ports)]
        self.ports: list[int] = [one.getsockname()[1] for one in self._listening]
        self._threads = [threading.Thread(target=self._accept, args=(one,), daemon=True) for one in self._listening]
        for thread in self._threads:
            thread.start()

    def arrived(self, arrival: Arrival) -> Sequence[Stage]:
        """Note a request; returns its stages."""
        with self._lock:
            self.seen.append(arrival)
            number = len(self.seen)
            if number <= len(self.script) and arrival.path == "/first":
                return self.script[number - 1]
            return [stage for stage in self.usual if stage[0] != "data" or arrival.method != "HEAD"]

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                peer, _ = listening.accept()
            except OSError:
                return
            # Little fits in between: whoever sends notices soon that nobody reads.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.settimeout(PATIENCE_S)
            with self._lock:
                self._connections += 1
                self._open.add(peer)
                kind = _Http2 if self._http2 else _Http1
                serving = kind(self, peer, self._connections)
            threading.Thread(target=self._serve, args=(serving, peer), daemon=True).start()

    def _serve(self, serving: "_Http1 | _Http2", peer: socket.socket) -> None:
        with contextlib.suppress(OSError, _Gone, h2.exceptions.ProtocolError):
            serving.run()
        with self._lock:
            self._open.discard(peer)
        peer.close()

    def close(self) -> None:
        for listening, thread in zip(self._listening, self._threads, strict=True):
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
            thread.join()
        with self._lock:
            for peer in self._open:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Http1:
    """One connection: a request after the other."""

    def __init__(self, upstream: StagedUpstream, peer: socket.socket, number: int) -> None:
        self._upstream = upstream
        self._peer = peer
        self._number = number
        self._buffer = b""
        self._is_chunked = False

    def run(self) -> None:
        while True:
            while b"\r\n\r\n" not in self._buffer:
                self._more()
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            line, *rest = head.decode("latin-1").split("\r\n")
            headers = dict(one.split(": ", 1) for one in rest)
            headers = {name.lower(): value for name, value in headers.items()}
            arrival = Arrival(self._number, self._peer.getsockname()[1], *line.split(" ")[:2], headers)
            if not self._play(arrival, self._upstream.arrived(arrival)):
                return

    def _play(self, arrival: Arrival, stages: Sequence[Stage]) -> bool:
        """Returns whether another request may follow."""
        for kind, *rest in stages:
            match kind:
                case "body":
                    self._read_body(arrival)
                case "wait":
                    time.sleep(rest[0])
                case "head":
                    status, headers = rest
                    self._is_chunked = status >= 200 and status not in (204, 304) and "content-length" not in headers
                    if self._is_chunked:
                        headers = {**headers, "transfer-encoding": "chunked"}
                    lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
                    self._peer.sendall("\r\n".join(lines).encode())
                case "data":
                    data = rest[0]
                    self._peer.sendall(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
                case "end":
                    if self._is_chunked:
                        lines = [f"{name}: {value}\r\n" for name, value in rest[0].items()]
                        self._peer.sendall(f"0\r\n{''.join(lines)}\r\n".encode())
                case "stall":
                    while True:
                        self._more()
                case "close":
                    return False
        if not arrival.is_whole:
            self._read_body(arrival)
        return True

    def _read_body(self, arrival: Arrival) -> None:
        if arrival.headers.get("transfer-encoding") == "chunked":
            while True:
                while b"\r\n" not in self._buffer:
                    self._more()
                line, _, self._buffer = self._buffer.partition(b"\r\n")
                size = int(line, 16)
                arrival.body += self._take(size)
                self._take(2)
                if not size:
                    break
        else:
            arrival.body += self._take(int(arrival.headers.get("content-length", 0)))
        arrival.is_whole = True

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _more(self) -> None:
        found = self._peer.recv(65536)
        if not found:
            raise _Gone
        self._buffer += found


class _Stream:
    """One request of an HTTP/2 connection; guarded by the connection's condition."""

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.is_gone = False


class _Http2:
    """One connection. What comes is acknowledged only by those who read it."""

    def __init__(self, upstream: StagedUpstream, peer: socket.socket, number: int) -> None:
        self._upstream = upstream
        self._peer = peer
        self._number = number
        self._changed = threading.Condition()
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, _Stream] = {}

    def run(self) -> None:
        with self._changed:
            self._state.initiate_connection()
            self._flush()
        try:
            while data := self._peer.recv(65536):
                with self._changed:
                    for event in self._state.receive_data(data):
                        self._heard(event)
                    self._flush()
                    self._changed.notify_all()
        finally:
            with self._changed:
                for stream in self._streams.values():
                    stream.is_gone = True
                self._changed.notify_all()

    def _flush(self) -> None:
        self._peer.sendall(self._state.data_to_send())

    def _heard(self, event: Any) -> None:
        match event:
            case h2.events.RequestReceived():
                headers = dict(event.headers or ())
                arrival = Arrival(
                    self._number, self._peer.getsockname()[1], headers[":method"], headers[":path"], headers
                )
                stream = self._streams[event.stream_id] = _Stream(arrival)
                arguments = (event.stream_id, stream, self._upstream.arrived(arrival))
                threading.Thread(target=self._play, args=arguments, daemon=True).start()
            case h2.events.DataReceived():
                stream = self._streams[event.stream_id]
                stream.arrival.body += event.data or b""
                self._state.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            case h2.events.StreamEnded():
                self._streams[event.stream_id].arrival.is_whole = True
            case h2.events.StreamReset():
                self._streams[event.stream_id].is_gone = True

    def _play(self, stream_id: int, stream: _Stream, stages: Sequence[Stage]) -> None:
        with contextlib.suppress(_Gone, OSError, h2.exceptions.ProtocolError):
            for kind, *rest in stages:
                if kind == "wait":
                    time.sleep(rest[0])
                    continue
                with self._changed:
                    if kind == "body":
                        self._wait(lambda: stream.is_gone or stream.arrival.is_whole)
                    elif kind == "stall":
                        self._wait(lambda: stream.is_gone)
                    if stream.is_gone:
                        raise _Gone
                    self._say(stream_id, kind, rest)
                    self._flush()

    def _wait(self, holds: Any) -> None:
        if not self._changed.wait_for(holds, PATIENCE_S):
            raise _Gone

    def _say(self, stream_id: int, kind: str, rest: list[Any]) -> None:
        match kind:
            case "head":
                status, headers = rest
                self._state.send_headers(stream_id, [(":status", str(status)), *headers.items()])
            case "data":
                self._state.send_data(stream_id, rest[0])
            case "end":
                if rest[0]:
                    self._state.send_headers(stream_id, list(rest[0].items()), end_stream=True)
                else:
                    self._state.end_stream(stream_id)
            case "close":
                self._state.reset_stream(stream_id)
