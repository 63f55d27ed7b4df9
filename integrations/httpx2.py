"""`httpx2` through the mesh: `httpx2.Client(transport=mesh_transport(mesh))`, and `async_mesh_transport` for its AsyncClient.

httpx2 is httpx by other maintainers: the same interfaces, other classes. So the transports are those for httpx, and this module
only translates what goes in and out: requests, responses, and exceptions, which are httpx2's, with `error.mesh` as ever.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import httpx
import httpx2
from httpx._content import ByteStream
from httpx2._content import ByteStream as ByteStream2

from meshlib.mesh import Mesh

__all__ = ["async_mesh_transport", "mesh_transport"]


def mesh_transport(mesh: Mesh, **options: Any) -> httpx2.BaseTransport:
    """Return a transport for `httpx2.Client`.

    Args:
        **options: As for `Mesh.httpx_transport`.
    """
    return _Transport(mesh.httpx_transport(**options))


def async_mesh_transport(mesh: Mesh, **options: Any) -> httpx2.AsyncBaseTransport:
    """Return a transport for `httpx2.AsyncClient`.

    Args:
        **options: As for `Mesh.async_httpx_transport`.
    """
    return _AsyncTransport(mesh.async_httpx_transport(**options))


class _Transport(httpx2.BaseTransport):
    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            found = self._inner.handle_request(_request(request))
        except httpx.TransportError as error:
            raise _error(error, request) from error.__cause__
        return _response(found, _Body(found, request))

    def close(self) -> None:
        self._inner.close()


class _AsyncTransport(httpx2.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            found = await self._inner.handle_async_request(_request(request))
        except httpx.TransportError as error:
            raise _error(error, request) from error.__cause__
        return _response(found, _AsyncBody(found, request))

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Sent(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request body that is made as it is sent."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return cast(AsyncIterator[bytes], aiter(self._stream))


class _Body(httpx2.SyncByteStream):
    def __init__(self, found: httpx.Response, request: httpx2.Request) -> None:
        self._stream = cast(httpx.SyncByteStream, found.stream)
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._stream
        except httpx.TransportError as error:
            raise _error(error, self._request) from error.__cause__

    def close(self) -> None:
        self._stream.close()


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, found: httpx.Response, request: httpx2.Request) -> None:
        self._stream = cast(httpx.AsyncByteStream, found.stream)
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._stream:
                yield piece
        except httpx.TransportError as error:
            raise _error(error, self._request) from error.__cause__

    async def aclose(self) -> None:
        await self._stream.aclose()


def _request(request: httpx2.Request) -> httpx.Request:
    stream = request.stream
    # What can be sent twice there can be sent twice here.
    sent: Any = ByteStream(b"".join(stream)) if isinstance(stream, ByteStream2) else _Sent(stream)
    extensions = dict(request.extensions)
    extensions.setdefault("target", request.url.raw_path)
    found = httpx.Request(request.method, str(request.url), stream=sent, extensions=extensions)
    found.headers = httpx.Headers(request.headers.raw)
    return found


def _response(found: httpx.Response, body: Any) -> httpx2.Response:
    return httpx2.Response(found.status_code, headers=found.headers.raw, stream=body, extensions=found.extensions)


def _error(error: httpx.TransportError, request: httpx2.Request) -> Exception:
    """Return httpx2's exception of the same name."""
    kind = getattr(httpx2, type(error).__name__)
    found: Exception = kind(str(error), request=request)
    found.mesh = getattr(error, "mesh", None)  # type: ignore[attr-defined]  # documented
    return found
