"""gRPC servers in the mesh: interceptors for `grpc.server` and `grpc.aio.server`, TLS credentials, announcing.

    server = grpc.server(pool, interceptors=[grpc_server.interceptor(mesh)])
    greeter_pb2_grpc.add_GreeterServicer_to_server(Greeter(), server)
    with grpc_server.announced(server, mesh, service="greeter"):
        server.start()
        server.wait_for_termination()

grpcio tells a server neither the authority of a call nor the local address of its connection: conditions on hosts never
hold here, and the listener that applies is the announced one unless `address` says otherwise.
"""

import asyncio
import inspect
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio

from meshlib.errors import ConfigError
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.resilience.classify import grpc_status_of
from meshlib.servers.addresses import join
from meshlib.servers.addresses import listen as listening
from meshlib.servers.announce import DRAIN_S, LISTENER_TIMEOUT_S, Announcement, announce
from meshlib.servers.grpc_certificates import GrpcCertificates
from meshlib.servers.grpc_end import CallEnd, StreamEnd
from meshlib.servers.grpc_front import INNER, GrpcFront
from meshlib.servers.inbound import Inbound, InboundRequest
from meshlib.servers.peer import ANONYMOUS, Peer, peer_of_pem
from meshlib.servers.source import ServerSource

__all__ = ["aio_announced", "aio_interceptor", "announced", "interceptor"]

NO_ADDRESS = ("", 0)
BACKLOG = 2048
STATUS_OF_CODE = {code.value[0]: code for code in grpc.StatusCode}


def interceptor(mesh: ServerSource, *, address: str | None = None, service: str = "") -> grpc.ServerInterceptor:
    """Return an interceptor for `grpc.server` that guards every method.

    Args:
        mesh: Where listeners come from.
        address: `host:port` of the listener that applies; default: the announced one.
        service: Name of this service in reports.
    """
    return _Interceptor(Inbound(mesh, kind="grpc", address=address, service=service))


def aio_interceptor(mesh: ServerSource, *, address: str | None = None, service: str = "") -> grpc.aio.ServerInterceptor:
    """Return an interceptor for `grpc.aio.server`; see `interceptor`."""
    return _AioInterceptor(Inbound(mesh, kind="grpc", address=address, service=service))


class _Interceptor(grpc.ServerInterceptor):
    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        return _guarded(self._inbound, details.method, continuation(details) or UNKNOWN_METHOD)


class _AioInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details) or UNKNOWN_METHOD
        if _is_async(_behaviour(handler)):
            return _guarded_async(self._inbound, details.method, handler)
        # grpc.aio runs plain functions on its own thread pool, and so it does the wrapper of one.
        return _guarded(self._inbound, details.method, handler)


def _unknown(requests: Any, context: Any) -> Any:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    yield b""  # never reached: it makes this a handler of a stream, which takes whatever the caller sends


UNKNOWN_METHOD: Any = grpc.stream_stream_rpc_method_handler(_unknown)
"""Stands for a method that nobody handles: who may not call must not learn what exists (Envoy refuses first, too)."""


def _behaviour(handler: Any) -> Any:
    return handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary


def _is_async(behaviour: Any) -> bool:
    # As grpc.aio decides: methods of instances and callable objects included.
    call = getattr(behaviour, "__call__", behaviour)  # noqa: B004  # its own coroutine function, not whether it is callable
    return any(inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one) for one in (behaviour, call))


def _with_behaviour(handler: Any, behaviour: Any) -> Any:
    kinds = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
    make = getattr(grpc, f"{kinds[0]}_{kinds[1]}_rpc_method_handler")
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _guarded(inbound: Inbound, method: str, handler: Any) -> Any:
    behaviour = _behaviour(handler)

    def begin(context: Any) -> InboundRequest:
        if not inbound.is_known(NO_ADDRESS):
            inbound.wait_known(NO_ADDRESS)
        request = _begin(inbound, method, context)
        if request.reply is not None:
            code, text = _status(request.reply)
            request.finish(200, code.value[0])
            context.abort(code, text)
        return request

    def streaming(argument: Any, context: Any) -> Iterator[Any]:
        request = begin(context)
        end = CallEnd(request, context)
        try:
            with request.entered():
                yield from behaviour(argument, context)
            end.returned()
        finally:
            end.report()

    def unary(argument: Any, context: Any) -> Any:
        request = begin(context)
        end = CallEnd(request, context)
        try:
            with request.entered():
                response = behaviour(argument, context)
            end.returned()
            return response
        finally:
            end.report()

    return _with_behaviour(handler, streaming if handler.response_streaming else unary)


def _guarded_async(inbound: Inbound, method: str, handler: Any) -> Any:
    behaviour = _behaviour(handler)

    async def begin(context: Any) -> InboundRequest:
        if not inbound.is_known(NO_ADDRESS):
            await asyncio.to_thread(inbound.wait_known, NO_ADDRESS)
        request = _begin(inbound, method, context)
        if request.reply is not None:
            code, text = _status(request.reply)
            request.finish(200, code.value[0])
            await context.abort(code, text)
        return request

    async def streaming(argument: Any, context: Any) -> AsyncIterator[Any]:
        request = await begin(context)
        end = StreamEnd(request, context)
        try:
            with request.entered():
                result = behaviour(argument, context)
                if hasattr(result, "__aiter__"):
                    end.watch(result)
                    try:
                        async for message in result:
                            yield message
                    finally:
                        await end.close()
                else:  # a handler that writes with context.write()
                    await result
            end.returned()
        finally:
            end.report()

    async def unary(argument: Any, context: Any) -> Any:
        request = await begin(context)
        end = CallEnd(request, context)
        try:
            with request.entered():
                response = await behaviour(argument, context)
            end.returned()
            return response
        finally:
            end.report()

    return _with_behaviour(handler, streaming if handler.response_streaming else unary)


def _begin(inbound: Inbound, method: str, context: Any) -> InboundRequest:
    metadata = context.invocation_metadata() or ()
    headers = Headers((key, value) for key, value in metadata if isinstance(value, str))
    head = RequestHead("POST", "", method, headers, is_grpc=True)
    return inbound.begin(
        head,
        _peer(context),
        local=NO_ADDRESS,
        remote=_remote(context.peer(), inbound.mesh.forwarded),
        remaining_s=context.time_remaining(),
    )


def _peer(context: Any) -> Peer:
    """Read the verified certificate of the call's connection; there is none on a plaintext port."""
    certificates = context.auth_context().get("x509_pem_cert")
    return peer_of_pem(certificates[0].decode("ascii")) if certificates else ANONYMOUS


def _remote(peer: str | None, forwarded: Mapping[str, str]) -> str:
    """Return the IP address of `ipv4:127.0.0.1:1234` or `ipv6:[::1]:1234`; a unix socket has none.

    Args:
        forwarded: See `ServerSource`.
    """
    kind, _, rest = (peer or "").partition(":")
    if forwarded and (remote := forwarded.get(rest)) is not None:
        return remote
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def _status(reply: LocalReply) -> tuple[grpc.StatusCode, str]:
    status = reply.grpc_status if reply.grpc_status is not None else grpc_status_of(reply.status)
    return STATUS_OF_CODE.get(status, grpc.StatusCode.UNKNOWN), reply.body.decode("utf-8", "replace")


@contextmanager
def announced(
    server: grpc.Server | grpc.aio.Server,
    mesh: ServerSource,
    *,
    service: str,
    address: str = "127.0.0.1:0",
    advertise: str | None = None,
    labels: Mapping[str, str] | None = None,
    namespace: str = "default",
    service_account: str = "",
    service_port: int = 80,
    weight: int = 1,
    ttl_s: float = 5.0,
    drain_s: float = DRAIN_S,
    start_timeout_s: float = LISTENER_TIMEOUT_S,
) -> Iterator[str]:
    """Open a port on a server that has not been started, with the TLS that its listener demands, and announce it.

    Args:
        server: Not started yet; start it at once.
        mesh: The mesh to join.
        service: Name that clients call.
        address: Where to listen; port 0: a free one.
        advertise: Host or `host:port` as clients reach it, where it is not the one listened on.
        labels: For subsets and selectors, e.g. `{"version": "v1"}`.
        namespace: Of the service.
        service_account: Its identity.
        service_port: Port that clients name.
        weight: Load-balancing weight.
        ttl_s: Lifetime of the lease in seconds.
        drain_s: How long to stay in the block after leaving the registry, in seconds: the server goes on serving
            clients that have not heard of it yet.
        start_timeout_s: How long to wait for the listener of the address, in seconds.

    Yields:
        The address announced. Leaving the block takes the instance out; stopping the server after it, with a grace
        period for running calls, is up to the caller.

    Raises:
        ConfigError: The registry refuses the instance, or the address is none that clients could use.
        UnavailableError: The listener was not there in time.
        IdentityError: It demands TLS and there is no usable certificate.
        OSError: The port is taken.
    """
    announcement, front = _opened(
        server,
        mesh,
        listen=address,
        service=service,
        advertise=advertise,
        labels=labels,
        namespace=namespace,
        service_account=service_account,
        service_port=service_port,
        weight=weight,
        ttl_s=ttl_s,
        start_timeout_s=start_timeout_s,
    )
    try:
        yield announcement.address
    finally:
        announcement.close()
        time.sleep(drain_s)
        if front is not None:
            front.close()


@asynccontextmanager
async def aio_announced(
    server: grpc.aio.Server,
    mesh: ServerSource,
    *,
    address: str = "127.0.0.1:0",
    drain_s: float = DRAIN_S,
    **options: Any,
) -> AsyncIterator[str]:
    """As `announced`, for `grpc.aio`; same options."""
    announcement, front = await asyncio.to_thread(_opened, server, mesh, listen=address, **options)
    try:
        yield announcement.address
    finally:
        await asyncio.to_thread(announcement.close)
        await asyncio.sleep(drain_s)
        if front is not None:
            front.close()


def _opened(
    server: grpc.Server | grpc.aio.Server,
    mesh: ServerSource,
    *,
    listen: str,
    start_timeout_s: float = LISTENER_TIMEOUT_S,
    **options: Any,
) -> tuple[Announcement, GrpcFront | None]:
    with _reserved(listen) as bound:
        announcement = announce(mesh, address=bound, protocol="grpc", ready=False, timeout_s=start_timeout_s, **options)
        try:
            front = _add_ports(server, bound, announcement, mesh)
        except BaseException:
            announcement.close()
            raise
    # grpcio's port takes connections from now on; they wait for start().
    announcement.set_ready()
    return announcement, front


@contextmanager
def _reserved(address: str) -> Iterator[str]:
    """Hold a port (the lease must name it before the server may open it: TLS is known only afterwards).

    Raises:
        ConfigError: It is not a TCP address.
        OSError: It is taken; the text names it.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or address.startswith("unix:"):
        raise ConfigError(f"address must be host:port, not {address!r}: clients reach a service of the mesh by TCP")
    if port != "0":
        # The port below is shared on purpose (SO_REUSEPORT), and so would it be with any other gRPC server.
        listening(host, int(port), 1).close()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as placeholder:
        # grpcio opens its ports with SO_REUSEPORT too, so it can take the port while we hold it.
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind((host, int(port)))
        yield join(*placeholder.getsockname()[:2])


def _add_ports(server: Any, address: str, announcement: Announcement, mesh: ServerSource) -> GrpcFront | None:
    """Open what the listener asks for; a port for both plaintext and TLS is a front's."""
    tls = announcement.tls
    credentials = None if tls is None else GrpcCertificates(tls, announcement.secrets).credentials()
    if not announcement.takes_plaintext:
        _add_port(server, address, credentials)
        return None
    inside = join(INNER, 0)
    ports = {"plaintext_port": _add_port(server, inside, None), "tls_port": _add_port(server, inside, credentials)}
    host, _, port = address.rpartition(":")
    # The port is being held; see `_reserved`.
    taking = listening(host.strip("[]"), int(port), BACKLOG, shares_port=True)
    return GrpcFront(taking, **ports, forwarded=mesh.forwarded)


def _add_port(server: Any, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        port = (
            server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
        )
    except RuntimeError as error:
        raise OSError(f"gRPC cannot listen on {address}: {error}") from error
    if not port:
        raise OSError(f"gRPC cannot listen on {address}")
    return int(port)
