"""One health check over the network: HTTP/1.1, HTTP/2, gRPC or plain TCP, each on a connection of its own.

The wire formats are those of `h11` and `h2`; what an answer means is decided by `meshlib.resilience.health_check`.
Whoever calls sets the time limit.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h11

from meshlib.model.health import GrpcProbe, HttpProbe, Probe, TcpProbe
from meshlib.model.request import Headers
from meshlib.resilience.health_check import CheckFailure, CheckResult, has_parts, judge_http
from meshlib.runtime.eyeballs import addresses_of, connect_first

__all__ = ["ProbeTarget", "needed_alpn", "run_probe"]

USER_AGENT: Final = "Envoy/HC"
"""Servers know health checks by it: they keep them out of their logs and limits."""
READ_BYTES: Final = 65536
MAX_BODY: Final = 1024 * 1024
"""A body that is longer is cut off; only its first bytes count."""
GRPC_PATH: Final = "/grpc.health.v1.Health/Check"
SERVING: Final = 1
_FAILURES: Final = (OSError, EOFError, ssl.SSLError, asyncio.IncompleteReadError)


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """Attributes:
    address: `host:port`, IPv6 in brackets, or `unix:/path`.
    context: None: plaintext.
    server_name: SNI; empty: none is sent.
    authority: The `host` header.
    dials: All addresses that may be connected to, in order; empty: just the one.
    """

    address: str
    context: ssl.SSLContext | None
    server_name: str
    authority: str
    dials: tuple[str, ...] = ()


@dataclass(slots=True)
class _Answer:
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    trailers: tuple[tuple[str, str], ...] = ()


def needed_alpn(probe: Probe) -> tuple[str, ...]:
    """Return what TLS offers for a probe when the configuration does not say."""
    if isinstance(probe, TcpProbe):
        return ()
    return ("h2",) if isinstance(probe, GrpcProbe) or probe.http2 else ("http/1.1",)


async def run_probe(probe: Probe, target: ProbeTarget) -> CheckResult:
    """Check once; never raises for anything that the peer or the network does."""
    try:
        reader, writer = await _connect(target)
    except _FAILURES as error:
        return _network(error)
    try:
        match probe:
            case TcpProbe():
                return await _tcp(probe, reader, writer)
            case HttpProbe(http2=False):
                answer = await _http1(probe, target, reader, writer)
                return judge_http(probe, answer.status, Headers(answer.headers), answer.body)
            case HttpProbe():
                answer = await _http2(_http_head(probe, target), probe.send, probe.buffer_size, reader, writer)
                return judge_http(probe, answer.status, Headers(answer.headers), answer.body)
            case GrpcProbe():
                return await _grpc(probe, target, reader, writer)
    except (*_FAILURES, h11.RemoteProtocolError, h2.exceptions.H2Error) as error:
        return _network(error)
    finally:
        writer.close()
        # The transport drops what is not sent yet: nothing of a check matters after its end.
        writer.transport.abort()
        with contextlib.suppress(*_FAILURES):
            await writer.wait_closed()


async def _connect(target: ProbeTarget) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    tls = None if target.context is None else target.server_name
    if target.address.startswith("unix:"):
        return await asyncio.open_unix_connection(target.address[5:], ssl=target.context, server_hostname=tls)
    if target.dials:
        made = await connect_first(asyncio.get_running_loop(), addresses_of(target.dials))
        try:
            return await asyncio.open_connection(sock=made, ssl=target.context, server_hostname=tls)
        except BaseException:
            made.close()
            raise
    host, _, port = target.address.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), ssl=target.context, server_hostname=tls)


def _network(error: BaseException) -> CheckResult:
    return CheckResult(CheckFailure.NETWORK, reason=f"{type(error).__name__}: {error}"[:200])


async def _tcp(probe: TcpProbe, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> CheckResult:
    if probe.send:
        writer.write(probe.send)
        await writer.drain()
    received = b""
    while not has_parts(probe.receive, received):
        part = await reader.read(READ_BYTES)
        if not part:
            return CheckResult(CheckFailure.NETWORK, reason="the connection was closed")
        received += part
        if len(received) > MAX_BODY:
            return CheckResult(CheckFailure.NETWORK, reason="much came, and not what is expected")
    return CheckResult()


# --- HTTP ------------------------------------------------------------------------------------------------------------


def _http_head(probe: HttpProbe, target: ProbeTarget) -> list[tuple[str, str]]:
    """Return the header fields of the request, pseudo headers first."""
    scheme = "http" if target.context is None else "https"
    fields = [(":method", probe.method), (":scheme", scheme), (":authority", target.authority), (":path", probe.path)]
    if "user-agent" not in probe.removed_headers:
        fields.append(("user-agent", USER_AGENT))
    fields += probe.headers
    return [*fields, ("content-length", str(len(probe.send)))] if probe.send else fields


async def _http1(
    probe: HttpProbe, target: ProbeTarget, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> _Answer:
    connection = h11.Connection(h11.CLIENT)
    fields = [("host", target.authority), *_http_head(probe, target)[4:], ("connection", "close")]
    request = h11.Request(
        method=probe.method,
        target=probe.path,
        headers=[(name.encode(), value.encode("latin-1")) for name, value in fields],
    )
    writer.write(connection.send(request) or b"")
    if probe.send:
        writer.write(connection.send(h11.Data(probe.send)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    answer = _Answer()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_BYTES))
        elif isinstance(event, h11.Response):
            answer.status = event.status_code
            answer.headers = _texts(event.headers)
        elif isinstance(event, h11.Data):
            if len(answer.body) < probe.buffer_size:
                answer.body = (answer.body + bytes(event.data))[: probe.buffer_size]
        elif isinstance(event, h11.EndOfMessage):
            return answer
        elif isinstance(event, h11.ConnectionClosed):
            raise EOFError("the connection was closed before the response")


async def _http2(
    head: Sequence[tuple[str, str]],
    body: bytes,
    buffer_size: int,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> _Answer:
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="latin-1"))
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    connection.send_headers(stream, head, end_stream=not body)
    if body:
        connection.send_data(stream, body, end_stream=True)
    answer = _Answer()
    while True:
        writer.write(connection.data_to_send())
        await writer.drain()
        data = await reader.read(READ_BYTES)
        if not data:
            raise EOFError("the connection was closed before the response")
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.ResponseReceived):
                fields = _texts(event.headers)
                answer.status = int(next((value for name, value in fields if name == ":status"), "0"))
                answer.headers = fields
            elif isinstance(event, h2.events.DataReceived):
                if len(answer.body) < buffer_size:
                    answer.body = (answer.body + event.data)[:buffer_size]
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                answer.trailers = _texts(event.headers)
            elif isinstance(event, h2.events.StreamEnded):
                return answer
            elif isinstance(event, h2.events.StreamReset):
                raise EOFError(f"the stream was reset ({event.error_code})")
            elif isinstance(event, h2.events.ConnectionTerminated):
                raise EOFError(f"the server went away ({event.error_code})")


def _texts(fields: Sequence[tuple[bytes | str, bytes | str]]) -> tuple[tuple[str, str], ...]:
    return tuple((_text(name).lower(), _text(value)) for name, value in fields)


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else bytes(value).decode("latin-1")


# --- gRPC ------------------------------------------------------------------------------------------------------------


async def _grpc(
    probe: GrpcProbe, target: ProbeTarget, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> CheckResult:
    name = probe.service_name.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    usual = (("user-agent", USER_AGENT), ("content-type", "application/grpc"), ("te", "trailers"))
    head = [
        (":method", "POST"),
        (":scheme", "http" if target.context is None else "https"),
        (":authority", target.authority),
        (":path", GRPC_PATH),
        *(field for field in usual if field[0] not in probe.removed_headers),
        *probe.metadata,
    ]
    body = b"\x00" + len(message).to_bytes(4, "big") + message
    answer = await _http2(head, body, 1024, reader, writer)
    if answer.status != 200:
        return CheckResult(CheckFailure.ACTIVE, reason=f"HTTP status {answer.status}")
    status = dict((*answer.headers, *answer.trailers)).get("grpc-status")
    if status != "0":
        return CheckResult(CheckFailure.ACTIVE, reason=f"gRPC status {status or 'missing'}")
    said = _serving_status(answer.body)
    if said != SERVING:
        return CheckResult(CheckFailure.ACTIVE, reason=f"the service says {said}, not {SERVING} (SERVING)")
    return CheckResult()


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _serving_status(body: bytes) -> int:
    """Return field 1 of a HealthCheckResponse, which has no other; -1: it is not one message."""
    if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
        return -1
    message = body[5:]
    if not message:
        return 0  # UNKNOWN, the default
    return message[1] if len(message) == 2 and message[0] == 0x08 else -1
