"""`aiohttp` through the mesh: `aiohttp.ClientSession(middlewares=[MeshMiddleware(mesh)])`.

A client middleware, so sessions, cookies, redirects, tracing, compression and connectors stay aiohttp's: it routes each
request, picks the endpoint, sets its TLS, and repeats attempts. Exceptions are aiohttp's own, with the mesh's record as
`error.mesh`; every response has a `MeshRecord` as `response.mesh`.

What that place allows, and what it does not: a route's time-out ends with the response's headers (aiohttp's `ClientTimeout`
limits bodies), the cluster's limits on connections are those of the session's connector, requests are neither hedged nor mirrored, and clusters
of HTTP/2 or endpoints on unix sockets are refused, since aiohttp does not speak the one and has another connector for the other.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any, assert_never, cast, get_args

import aiohttp
from aiohttp.base_protocol import BaseProtocol
from aiohttp.helpers import TimerNoop
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from meshlib.call import Attempt, Call, Done
from meshlib.clients.drive import AsyncShell, arun
from meshlib.clients.filters import AsyncFilter, AsyncFilterChain, Filter, FilterHeaders, FilterRequest, FilterResponse
from meshlib.clients.httpx_common import MeshRecord, Passthrough, address_text, record_of
from meshlib.clients.source import MeshSource
from meshlib.clients.tracing import begin_call
from meshlib.clients.unrouted import count_unrouted
from meshlib.errors import DeadlineExceeded, IdentityError, MeshError, RoutingError, UnavailableError
from meshlib.events import CallFinished
from meshlib.model.outcome import Connected, Failure, FailureKind, LocalReply, Outcome, Response
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, RequestHead, is_grpc_type
from meshlib.options import check_choice, entries
from meshlib.runtime.context import remaining_s
from meshlib.runtime.tls import client_context

__all__ = ["MeshMiddleware", "MeshUnavailable"]

Handler = Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
_NO_HEDGES = "requests of aiohttp are not hedged"
_IDEMPOTENT_BODIES = (aiohttp.payload.BytesPayload,)


# What this version of aiohttp wants to know in addition of a response that nobody wrote a request for.
_OF_VERSION: dict[str, Any] = (
    {"stream_writer": SimpleNamespace(output_size=0)}
    if "stream_writer" in inspect.signature(aiohttp.ClientResponse).parameters
    else {}
)


class MeshUnavailable(aiohttp.ClientConnectionError):
    """The mesh cannot lead to the host. Attributes: mesh, the mesh's own error."""

    def __init__(self, error: MeshError) -> None:
        super().__init__(str(error))
        self.mesh = error


class MeshMiddleware:
    """Sends a session's requests through the mesh.

    Args:
        mesh: Where policies come from.
        passthrough: `never`: a host that is not in the mesh is an error. `unknown`: such requests go out directly.
        filters: The application's own code around each call, in order.
    """

    def __init__(
        self,
        mesh: MeshSource,
        *,
        passthrough: Passthrough = "never",
        filters: Iterable[Filter | AsyncFilter] = (),
    ) -> None:
        self._mesh = mesh
        check_choice("passthrough", passthrough, get_args(Passthrough))
        self._passthrough = passthrough
        chosen = entries("filters", filters, "filters")
        self._chain = AsyncFilterChain(chosen) if chosen else None

    async def __call__(self, request: aiohttp.ClientRequest, handler: Handler) -> aiohttp.ClientResponse:
        """Send one request; called by the session.

        Raises:
            aiohttp.ClientError: As without the mesh; `error.mesh` has the details.
        """
        if self._mesh.is_disabled or request.url.scheme not in ("http", "https"):
            return await handler(request)
        chain = self._chain
        if chain is None:
            return await self._send(request, handler)
        seen = FilterRequest(
            _authority(request.url), request.method, request.url.raw_path_qs, FilterHeaders(request.headers.items())
        )
        answer, count = await chain.begin(seen)
        try:
            if answer is None:
                request.method = seen.method
                request.url = request.url.origin().join(URL(seen.path, encoded=True))
                request.headers = CIMultiDict(seen.headers.items_list)
                response = await self._send(request, handler)
            else:
                reply = LocalReply(answer.status, "", "filter", answer.body, answer.headers)
                response = _with_record(_local_response(reply, request), MeshRecord("", "", 0, "-"))
        except BaseException as error:
            chain.fail(seen, error, count)
            raise
        found = FilterResponse(response.status, FilterHeaders(response.headers.items()), response.mesh)  # type: ignore[attr-defined]
        try:
            await chain.end(seen, found, count)
        except BaseException:
            response.close()
            raise
        response.status = found.status
        if found.headers.is_changed:
            _set_headers(response, found.headers.items_list)
        return response

    async def _send(self, request: aiohttp.ClientRequest, handler: Handler) -> aiohttp.ClientResponse:
        mesh = self._mesh
        authority = _authority(request.url)
        head = _head(request, authority)
        began_at = mesh.clock()
        try:
            target = mesh.target(authority) or await mesh.wait_target_async(authority)
            if target.has_demands:
                target = await mesh.meet_async(target, head)
        except MeshError as error:
            if self._passthrough == "unknown" and isinstance(error, RoutingError):
                return await self._pass(request, handler, authority)
            count_unrouted(mesh, error, kind="http", authority=authority, method=request.method, began_at=began_at)
            raise MeshUnavailable(error) from error
        now = mesh.clock()
        body = cast(Any, request.body)
        replayable = not body or isinstance(body, _IDEMPOTENT_BODIES)
        call = begin_call(mesh, target, head, now=now, timeout_s=remaining_s(now), replayable=replayable)
        shell = _Shell(mesh, request, handler, call)
        done = await arun(call, shell, clock=mesh.clock, sleep=asyncio.sleep)
        match done.result:
            case LocalReply() as reply:
                call.close(mesh.clock(), status=reply.status)
                return _with_record(_local_response(reply, request), record_of(call, done))
            case Failure() as failure:
                call.close(mesh.clock())
                raise _error(call, failure)
            case Response():
                return shell.answer(done)
            case _:
                assert_never(done.result)

    async def _pass(self, request: aiohttp.ClientRequest, handler: Handler, authority: str) -> aiohttp.ClientResponse:
        mesh = self._mesh
        start, status, is_secure = mesh.clock(), 0, request.url.scheme == "https"
        try:
            response = await handler(request)
            status = response.status
            return _with_record(response, MeshRecord("PassthroughCluster", "", 1, "-"))
        finally:
            duration_s = mesh.clock() - start
            mesh.emit(
                CallFinished(
                    "http",
                    authority,
                    request.method,
                    "",
                    "PassthroughCluster",
                    None,
                    1,
                    duration_s,
                    status,
                    None,
                    "-",
                    is_secure,
                )
            )


class _Shell(AsyncShell):
    """One request's way to the network."""

    def __init__(self, mesh: MeshSource, request: aiohttp.ClientRequest, handler: Handler, call: Call) -> None:
        self._mesh = mesh
        self._request = request
        self._handler = handler
        self._call = call
        self._response: aiohttp.ClientResponse | None = None

    async def send(self, attempt: Attempt) -> Outcome:
        try:
            self._aim(attempt)
            async with asyncio.timeout(attempt.timeout_s):
                response = self._response = await self._handler(self._request)
        except Exception as error:
            failure = _failure(error)
            if failure is None:
                raise
            return failure
        fields = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.raw_headers)
        return Response(response.status, Headers(fields))

    def _aim(self, attempt: Attempt) -> None:
        """Make the request one to the endpoint."""
        request, cluster = self._request, attempt.cluster.config.cluster
        address = attempt.endpoint.address
        if cluster.http2 or address.startswith("unix:"):
            text = "aiohttp speaks HTTP/1.1 over TCP, and not what the cluster asks for"
            raise MeshUnavailable(UnavailableError(text, cluster=cluster.name, endpoints=(address,), flag="UF"))
        if attempt.tls is None and request.original_url.scheme == "https":
            text = f"{request.original_url} asks for https, but the mesh reaches {address} without TLS"
            raise MeshUnavailable(UnavailableError(text, cluster=cluster.name, endpoints=(address,), flag="UF"))
        scheme = "http" if attempt.tls is None else "https"
        head = attempt.head
        request.url = URL(f"{scheme}://{address}{head.path}", encoded=True)
        if attempt.tls is not None:
            request._ssl = client_context(attempt.tls, self._mesh.view.secrets, default_alpn=("http/1.1",))
        if head is not self._call.head or head.authority != request.headers.get("host"):
            kept = CIMultiDict((name, value) for name, value in head.headers.items)
            kept["Host"] = head.authority
            request.headers = kept

    async def discard(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.release()  # its connection is kept if nothing is left to be read

    def fork(self) -> AsyncShell:
        """Hedging is not asked for: a request of aiohttp cannot be sent by two at once."""
        raise NotImplementedError(_NO_HEDGES)

    def adopt(self, winner: AsyncShell) -> None:
        """As `fork`."""
        raise NotImplementedError(_NO_HEDGES)

    def answer(self, done: Done) -> aiohttp.ClientResponse:
        """Return the response; what the call holds is given back when its connection is."""
        response, call, mesh = self._response, self._call, self._mesh
        assert response is not None  # the outcome was a response, and it was not discarded
        status = response.status
        if response.connection is None:
            call.close(mesh.clock(), status=status)
        else:
            response.connection.add_callback(lambda: call.close(mesh.clock(), status=status))
        changed = call.response_headers(Headers(_fields(response)), lambda: _connected(response))
        if changed.items != _fields(response):
            _set_headers(response, changed.items)
        return _with_record(response, record_of(call, done))


def _connected(response: aiohttp.ClientResponse) -> Connected:
    """Return what formats may say of the connection; of one that was given back only how it was spoken."""
    transport = None if response.connection is None else response.connection.transport
    return Connected("HTTP/1.1", "" if transport is None else address_text(transport.get_extra_info("sockname")))


def _fields(response: aiohttp.ClientResponse) -> tuple[tuple[str, str], ...]:
    return tuple((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.raw_headers)


def _set_headers(response: aiohttp.ClientResponse, items: Iterable[tuple[str, str]]) -> None:
    response._headers = CIMultiDictProxy(CIMultiDict(items))
    response._cache.pop("headers", None)


def _with_record(response: aiohttp.ClientResponse, record: MeshRecord) -> aiohttp.ClientResponse:
    response.mesh = record  # type: ignore[attr-defined]  # documented
    return response


def _authority(url: URL) -> str:
    """Return the authority as written: aiohttp leaves out a port that is the scheme's own."""
    host = url.raw_host or ""
    host = f"[{host}]" if ":" in host else host
    return host if url.explicit_port is None else f"{host}:{url.explicit_port}"


def _head(request: aiohttp.ClientRequest, authority: str) -> RequestHead:
    items = [(name.lower(), value) for name, value in request.headers.items() if name.lower() != "host"]
    host = request.headers.get("host", authority)
    return RequestHead(
        request.method,
        host,
        request.url.raw_path_qs,
        Headers(items),
        scheme=request.url.scheme,
        is_grpc=is_grpc_type(request.headers.get("content-type", "")),
        profile=HTTP,
    )


def _failure(error: Exception) -> Failure | None:
    """Say how an attempt failed; None: no endpoint could help."""
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ServerFingerprintMismatch() | IdentityError():
            return Failure(FailureKind.IDENTITY, False, error)
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return Failure(FailureKind.CONNECT, False, error)
        case TimeoutError():
            return Failure(FailureKind.TIMEOUT, True, error)
        case MeshUnavailable():
            return None
        case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError():
            return Failure(FailureKind.RESET, True, error)
        case aiohttp.ClientResponseError() | OSError():
            return Failure(FailureKind.RESET, True, error)
        case _:
            return None


def _error(call: Call, failure: Failure) -> BaseException:
    record = call.error()
    found: BaseException
    if isinstance(failure.error, aiohttp.ClientError):
        found = failure.error
    elif isinstance(record, DeadlineExceeded):
        found = aiohttp.ServerTimeoutError(str(record))
    else:
        found = MeshUnavailable(record)
    found.mesh = record  # type: ignore[attr-defined]  # documented
    if found is not failure.error:
        found.__cause__ = record
    return found


def _local_response(reply: LocalReply, request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
    """Return an answer that the mesh gives itself, as Envoy writes it."""
    loop = asyncio.get_running_loop()
    headers = CIMultiDict(reply.headers)
    headers.setdefault("content-length", str(len(reply.body)))
    if reply.body:
        headers.setdefault("content-type", "text/plain")
    response = aiohttp.ClientResponse(
        request.method,
        request.original_url,
        writer=None,
        continue100=None,
        timer=TimerNoop(),
        request_info=request.request_info,
        traces=[],
        loop=loop,
        session=request._session,
        **_OF_VERSION,
    )
    response.version = aiohttp.HttpVersion11
    response.status = reply.status
    response.reason = ""
    response._headers = CIMultiDictProxy(headers)
    response._raw_headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items())
    content = response.content = aiohttp.StreamReader(BaseProtocol(loop), limit=2**16, loop=loop)
    if request.method != "HEAD":
        content.feed_data(reply.body)
    content.feed_eof()
    response._closed = True
    return response
