"""The gRPC side: discovery streams over `grpc.aio`, each a reader and a writer around one pure machine."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from xds_server.admission import Admission, client_of
from xds_server.authentication import Authentication
from xds_server.delta import DeltaStream
from xds_server.groups import Group, group_of
from xds_server.grpc_shell import GrpcService, admitted, guarded, read
from xds_server.hub import Hub, LiveStream
from xds_server.identity import Identity
from xds_server.ordering import SDS, short_name
from xds_server.requests import NODE_MISSING
from xds_server.services import DISCOVERY_SERVICES
from xds_server.snapshot import EMPTY, Snapshot
from xds_server.sotw import SotwStream
from xds_server.statistics import Statistics
from xds_server.stream import Settings, StreamRefused
from xds_server.text import one_line
from xds_server.waiting import wait_for
from xds_server.wire import Node

_log = logging.getLogger(__name__)

_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.so_reuseport", 0),  # else a second server on the same port starts, and gets half the streams
    ("grpc.max_concurrent_streams", 1_000_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),  # LIM-2: Envoy's requests grow with its resources
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]

_NO_SECRETS = (
    "secrets are served to an authenticated identity only: connect to the TLS listener (--secure-listen) with a token "
    "made by `xds-server token`"
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a method's streams are.

    Attributes:
        variant: Their machine.
        service_type: The only type on them; None: any.
        is_secure: Whether they come over the secure listener.
    """

    variant: type[SotwStream] | type[DeltaStream]
    service_type: str | None
    is_secure: bool


class AdsServer:
    """Serves the hub's groups, aggregated and by type, in both variants of the protocol.

    Args:
        snapshot_of: Returns the state of a group, made now if nobody asked for it before.
            None: there is no state to serve yet.
        authentication: Needed for a secure listener.
        write_timeout_s: A client that does not take a message in this time loses its stream (BP-2).
        admission: Counts the streams of each client.
        others: Services on the same listeners.
    """

    def __init__(
        self,
        hub: Hub,
        snapshot_of: Callable[[Group], Awaitable[Snapshot | None]],
        *,
        settings: Settings | None = None,
        authentication: Authentication | None = None,
        statistics: Statistics | None = None,
        write_timeout_s: float = 30.0,
        admission: Admission | None = None,
        others: Sequence[GrpcService] = (),
    ) -> None:
        self.statistics = statistics or Statistics()
        self._hub = hub
        self._snapshot_of = snapshot_of
        self._settings = settings or Settings()
        self._authentication = authentication
        self._write_timeout_s = write_timeout_s
        self._admission = admission or Admission()
        self._others = tuple(others)
        self._servers: list[grpc.aio.Server] = []
        self._is_draining = False

    async def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Start serving on one address and return its port; with credentials it is the secure listener.

        Raises:
            OSError: The address cannot be used.
        """
        server = grpc.aio.server(options=_OPTIONS)
        for service in DISCOVERY_SERVICES:
            is_secure = credentials is not None
            methods = {service.delta: self._method(_Kind(DeltaStream, service.type_url, is_secure))}
            if service.sotw is not None:
                methods[service.sotw] = self._method(_Kind(SotwStream, service.type_url, is_secure))
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.name, methods),))
        server.add_generic_rpc_handlers(
            [service.handler(is_secure=credentials is not None) for service in self._others]
        )
        try:
            if credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            await server.stop(None)
            raise OSError(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._servers.append(server)
        return port

    async def stop(self, drain_s: float = 0.2) -> None:
        """End the streams, spread over the drain time, then stop (STR-8)."""
        self._is_draining = True
        for service in self._others:
            service.finish()
        streams = list(self._hub.streams())
        for stream in streams:
            stream.finish(StreamRefused("UNAVAILABLE", "the management server is shutting down"))
            await asyncio.sleep(drain_s / len(streams))
        await asyncio.gather(*(server.stop(1.0) for server in self._servers))
        self._servers.clear()

    def _method(self, kind: _Kind) -> "grpc.RpcMethodHandler[Any, Any]":
        async def handle(_requests: object, context: Any) -> None:
            self.statistics.streams_opened += 1
            try:
                await guarded(context, self._run(context, kind))
            finally:
                self.statistics.streams_closed += 1

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _run(self, context: Any, kind: _Kind) -> None:
        identity, expires_at = None, None
        if kind.is_secure and self._authentication is not None:
            identity, expires_at = self._authentication.identify(context)
        async with admitted(self._admission, client_of(context.peer(), identity), self.statistics):
            await self._run_admitted(context, kind, identity, expires_at)

    async def _run_admitted(
        self, context: Any, kind: _Kind, identity: Identity | None, expires_at: float | None
    ) -> None:
        loop = asyncio.get_running_loop()
        data = await read(context)
        if data is None:
            return
        group, snapshot = await self._admit(kind.variant.decode(data).node)
        secrets = EMPTY
        if identity is not None and self._authentication is not None:
            secrets = self._authentication.secrets.acquire(identity, loop.time())
        try:
            machine = kind.variant(
                snapshot,
                secrets=secrets,
                denied={} if identity is not None else {SDS: _NO_SECRETS},
                settings=self._settings,
                service_type=kind.service_type,
            )
            stream = LiveStream(machine, group, context.peer(), loop.time(), identity)
            self._take(stream, data)
            self._hub.add(stream)
            try:
                await self._serve(stream, context, expires_at)
            finally:
                self._hub.remove(stream)
        finally:
            if identity is not None and self._authentication is not None:
                self._authentication.secrets.release(identity)

    async def _admit(self, node: Node | None) -> tuple[Group, Snapshot]:
        if self._is_draining:
            raise StreamRefused("UNAVAILABLE", "the management server is shutting down")
        if node is None or not node.id:
            raise StreamRefused("INVALID_ARGUMENT", NODE_MISSING)
        try:
            group = group_of(node)
        except ValueError as error:
            raise StreamRefused("INVALID_ARGUMENT", str(error)) from error
        snapshot = await self._snapshot_of(group)
        if snapshot is None:
            raise StreamRefused("UNAVAILABLE", "the management server has not loaded its configuration yet")
        return group, snapshot

    async def _serve(self, stream: LiveStream, context: Any, expires_at: float | None) -> None:
        """Write what the machine has to say until the client closes its side."""
        loop = asyncio.get_running_loop()
        reader = asyncio.create_task(self._read_all(stream, context))
        try:
            while True:
                stream.wake.clear()
                if reader.done():
                    return await reader
                if stream.end is not None:
                    raise stream.end
                if expires_at is not None and loop.time() >= expires_at:
                    raise StreamRefused("UNAUTHENTICATED", "the token has expired, open a new stream with a fresh one")
                response = stream.machine.respond(loop.time())
                if response is not None:
                    self.statistics.sent(response)
                    await self._write(context, response.data)
                    continue
                deadline = stream.machine.deadline(loop.time())
                times = [time for time in (deadline, expires_at) if time is not None]
                await wait_for(stream.wake, min(times) - loop.time() if times else None)
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _write(self, context: Any, data: bytes) -> None:
        try:
            await asyncio.wait_for(context.write(data), self._write_timeout_s)
        except TimeoutError as error:
            self.statistics.write_timeouts += 1
            raise StreamRefused("DEADLINE_EXCEEDED", "the client does not read its stream") from error

    async def _read_all(self, stream: LiveStream, context: Any) -> None:
        try:
            while (data := await read(context)) is not None:
                self._take(stream, data)
                stream.wake.set()
        finally:
            stream.wake.set()

    def _take(self, stream: LiveStream, data: bytes) -> None:
        machine = stream.machine
        counted = sum(each.nacks for each in machine.subscriptions.values())
        request = machine.receive(data, asyncio.get_running_loop().time())
        type_url = machine.service_type or request.type_url
        self.statistics.received(request, type_url)
        if request.error is not None:
            # Of a response of ours: what else a client says, it may say as often as it likes.
            is_ours = sum(each.nacks for each in machine.subscriptions.values()) > counted
            _log.log(
                logging.WARNING if is_ours else logging.DEBUG,
                "node %r rejects %s: %s",
                machine.node.id if machine.node else "",
                one_line(short_name(type_url)),
                one_line(request.error),
            )
