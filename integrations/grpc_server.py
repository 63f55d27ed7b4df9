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
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import grpc.aio

from meshlib.errors import IdentityError
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.secret import ServerTls
from meshlib.runtime.tls import server_material
from meshlib.servers.announce import Announcement, announce
from meshlib.servers.inbound import Inbound, InboundRequest
from meshlib.servers.peer import ANONYMOUS, Peer, peer_of_pem
from meshlib.servers.source import ServerSource

__all__ = ["aio_announced", "aio_interceptor", "announced", "interceptor"]

NO_ADDRESS = ("", 0)
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
        handler = continuation(details)
        if handler is None:
            return None
        inbound, method = self._inbound, details.method

        def begin(context: Any) -> InboundRequest:
            if not inbound.is_known(NO_ADDRESS):
                inbound.wait_known(NO_ADDRESS)
            request = _begin(inbound, method, context)
            if request.reply is not None:
                code, text = _status(request.reply)
                request.finish(200, code.value[0])
                context.abort(code, text)
            return request

        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream

            def streaming(argument: Any, context: Any) -> Iterator[Any]:
                request = begin(context)
                finished = False
                try:
                    with request.entered():
                        yield from behaviour(argument, context)
                    finished = True
                finally:
                    request.finish(200, _code(context, finished))

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(streaming, handler.request_deserializer, handler.response_serializer)

        behaviour = handler.stream_unary or handler.unary_unary

        def unary(argument: Any, context: Any) -> Any:
            request = begin(context)
            finished = False
            try:
                with request.entered():
                    response = behaviour(argument, context)
                finished = True
                return response
            finally:
                request.finish(200, _code(context, finished))

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(unary, handler.request_deserializer, handler.response_serializer)


class _AioInterceptor(grpc.aio.ServerInterceptor):
    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        inbound, method = self._inbound, details.method

        async def begin(context: Any) -> InboundRequest:
            if not inbound.is_known(NO_ADDRESS):
                await asyncio.to_thread(inbound.wait_known, NO_ADDRESS)
            request = _begin(inbound, method, context)
            if request.reply is not None:
                code, text = _status(request.reply)
                request.finish(200, code.value[0])
                await context.abort(code, text)
            return request

        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream

            async def streaming(argument: Any, context: Any) -> AsyncIterator[Any]:
                request = await begin(context)
                finished = False
                try:
                    with request.entered():
                        result = behaviour(argument, context)
                        if hasattr(result, "__aiter__"):
                            async for message in result:
                                yield message
                        else:  # a handler that writes with context.write()
                            await result
                    finished = True
                finally:
                    request.finish(200, _code(context, finished))

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(streaming, handler.request_deserializer, handler.response_serializer)

        behaviour = handler.stream_unary or handler.unary_unary

        async def unary(argument: Any, context: Any) -> Any:
            request = await begin(context)
            finished = False
            try:
                with request.entered():
                    response = await behaviour(argument, context)
                finished = True
                return response
            finally:
                request.finish(200, _code(context, finished))

        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(unary, handler.request_deserializer, handler.response_serializer)


def _begin(inbound: Inbound, method: str, context: Any) -> InboundRequest:
    metadata = context.invocation_metadata() or ()
    headers = Headers((key, value) for key, value in metadata if isinstance(value, str))
    head = RequestHead("POST", "", method, headers, is_grpc=True)
    return inbound.begin(
        head,
        _peer(context),
        local=NO_ADDRESS,
        remote=_remote(context.peer()),
        remaining_s=context.time_remaining(),
    )


def _peer(context: Any) -> Peer:
    """Read the verified certificate of the call's connection; there is none on a plaintext port."""
    certificates = context.auth_context().get("x509_pem_cert")
    return peer_of_pem(certificates[0].decode("ascii")) if certificates else ANONYMOUS


def _remote(peer: str | None) -> str:
    """Return the IP address of `ipv4:127.0.0.1:1234` or `ipv6:[::1]:1234`; a unix socket has none."""
    kind, _, rest = (peer or "").partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""


def _status(reply: LocalReply) -> tuple[grpc.StatusCode, str]:
    code = STATUS_OF_CODE.get(reply.grpc_status if reply.grpc_status is not None else 2, grpc.StatusCode.UNKNOWN)
    return code, reply.body.decode("utf-8", "replace")


def _code(context: Any, finished: bool) -> int:
    """Return the status code that the call ends with: an unset one is OK after a return, UNKNOWN after an exception."""
    code = context.code()
    if isinstance(code, grpc.StatusCode):
        return int(code.value[0])
    if isinstance(code, int) and code:
        return code
    return 0 if finished else 2


@contextmanager
def announced(
    server: grpc.Server | grpc.aio.Server,
    mesh: ServerSource,
    *,
    service: str,
    address: str = "127.0.0.1:0",
    labels: Mapping[str, str] | None = None,
    namespace: str = "default",
    service_account: str = "",
    service_port: int = 80,
    weight: int = 1,
    ttl_s: float = 5.0,
) -> Iterator[str]:
    """Open a port on a server that has not been started, with the TLS that its listener demands, and announce it.

    Args:
        server: Not started yet.
        mesh: The mesh to join.
        service: Name that clients call.
        address: Where to listen; port 0: a free one.
        labels: For subsets and selectors, e.g. `{"version": "v1"}`.
        namespace: Of the service.
        service_account: Its identity.
        service_port: Port that clients name.
        weight: Load-balancing weight.
        ttl_s: Lifetime of the lease in seconds.

    Yields:
        The address listened on. Leaving the block takes the instance out; stopping the server is up to the caller.

    Raises:
        UnavailableError: The listener was not there in time.
        IdentityError: It demands TLS and there is no usable certificate.
    """
    with _reserved(address) as bound:
        announcement = announce(
            mesh,
            service=service,
            address=bound,
            labels=labels,
            namespace=namespace,
            service_account=service_account,
            service_port=service_port,
            weight=weight,
            ttl_s=ttl_s,
            protocol="grpc",
        )
        try:
            _add_port(server, mesh, bound, announcement)
        except BaseException:
            announcement.close()
            raise
    try:
        yield bound
    finally:
        announcement.close()


@asynccontextmanager
async def aio_announced(server: grpc.aio.Server, mesh: ServerSource, **options: Any) -> AsyncIterator[str]:
    """As `announced`, for `grpc.aio`; same options."""
    manager = announced(server, mesh, **options)
    bound = await asyncio.to_thread(manager.__enter__)
    try:
        yield bound
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


@contextmanager
def _reserved(address: str) -> Iterator[str]:
    """Hold a port (the lease must name it before the server may open it: TLS is known only afterwards)."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as placeholder:
        # grpcio opens its ports with SO_REUSEPORT too, so it can take the port while we hold it.
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        placeholder.bind((host, int(port)))
        number = placeholder.getsockname()[1]
        yield f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def _add_port(server: Any, mesh: ServerSource, address: str, announcement: Announcement) -> None:
    tls = announcement.tls
    port = (
        server.add_insecure_port(address) if tls is None else server.add_secure_port(address, _credentials(mesh, tls))
    )
    if not port:
        raise IdentityError(f"gRPC could not open {address}", resource=address)


def _credentials(mesh: ServerSource, tls: ServerTls) -> grpc.ServerCredentials:
    """Return credentials that follow rotation: the fetcher runs once for each handshake."""

    def configuration() -> tuple[Any, Any]:
        chain, key, roots = server_material(tls, mesh.view.secrets)
        return (chain, key, roots), grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)

    served, initial = configuration()

    def fetch() -> Any:
        nonlocal served
        material, fresh = configuration()
        if material == served:
            return None
        served = material
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        initial, fetch, require_client_authentication=tls.require_client_certificate
    )
