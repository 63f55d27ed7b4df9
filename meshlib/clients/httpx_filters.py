"""Filters around the httpx transports: a transport around a transport, so that nobody pays who has none."""

from collections.abc import Iterable
from typing import Any

import httpx

from meshlib.clients.filters import (
    AsyncFilter,
    AsyncFilterChain,
    Filter,
    FilterAnswer,
    FilterChain,
    FilterHeaders,
    FilterRequest,
    FilterResponse,
)
from meshlib.clients.http1_request import encoded
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_common import MeshRecord, authority_of
from meshlib.clients.httpx_sync import MeshTransport

__all__ = ["AsyncFilteredTransport", "FilteredTransport"]

_NO_RECORD = MeshRecord("", "", 0, "-")


class FilteredTransport(httpx.BaseTransport):
    """The mesh's transport with filters before it.

    Raises:
        TypeError: A filter is async, or none at all.
    """

    def __init__(self, inner: MeshTransport, filters: Iterable[Filter | AsyncFilter]) -> None:
        self._inner = inner
        self._chain = FilterChain(filters)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; called by httpx."""
        seen = _seen(request)
        answer, count = self._chain.begin(seen)
        try:
            if answer is None:
                response = self._inner.handle_request(_changed(request, seen))
            else:
                response = _answered(answer, request)
        except BaseException as error:
            self._chain.fail(seen, error, count)
            raise
        found = _outcome(response)
        try:
            self._chain.end(seen, found, count)
        except BaseException:
            response.stream.close()  # type: ignore[union-attr]  # of a blocking transport
            raise
        return _rewritten(response, found)

    def warm_up(self, url: str, *, connections: int = 1, timeout_s: float = 5.0) -> int:
        """As `MeshTransport.warm_up`; filters see nothing of it."""
        return self._inner.warm_up(url, connections=connections, timeout_s=timeout_s)

    def close(self) -> None:
        """Close every connection."""
        self._inner.close()


class AsyncFilteredTransport(httpx.AsyncBaseTransport):
    """As `FilteredTransport`; filters may await."""

    def __init__(self, inner: AsyncMeshTransport, filters: Iterable[Filter | AsyncFilter]) -> None:
        self._inner = inner
        self._chain = AsyncFilterChain(filters)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; called by httpx."""
        seen = _seen(request)
        answer, count = await self._chain.begin(seen)
        try:
            if answer is None:
                response = await self._inner.handle_async_request(_changed(request, seen))
            else:
                response = _answered(answer, request)
        except BaseException as error:
            self._chain.fail(seen, error, count)
            raise
        found = _outcome(response)
        try:
            await self._chain.end(seen, found, count)
        except BaseException:
            await response.stream.aclose()  # type: ignore[union-attr]  # of an async transport
            raise
        return _rewritten(response, found)

    async def warm_up(self, url: str, *, connections: int = 1, timeout_s: float = 5.0) -> int:
        """As `MeshTransport.warm_up`; filters see nothing of it."""
        return await self._inner.warm_up(url, connections=connections, timeout_s=timeout_s)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


def _seen(request: httpx.Request) -> FilterRequest:
    target: bytes = request.extensions.get("target") or request.url.raw_path
    return FilterRequest(authority_of(request), request.method, target.decode("latin-1"), _headers(request.headers.raw))


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> FilterHeaders:
    return FilterHeaders((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw)


def _raw(headers: FilterHeaders) -> list[tuple[bytes, bytes]]:
    return [(encoded(name), encoded(value)) for name, value in headers.items_list]


def _changed(request: httpx.Request, seen: FilterRequest) -> httpx.Request:
    """Return the request as the filters left it: another one, as the caller keeps `response.request`."""
    extensions: dict[str, Any] = {**request.extensions, "target": encoded(seen.path)}
    changed = httpx.Request(seen.method, request.url, stream=request.stream, extensions=extensions)
    changed.headers = httpx.Headers(_raw(seen.headers))
    return changed


def _answered(answer: FilterAnswer, request: httpx.Request) -> httpx.Response:
    body = b"" if request.method == "HEAD" else answer.body
    return httpx.Response(answer.status, headers=list(answer.headers), content=body, extensions={"mesh": _NO_RECORD})


def _outcome(response: httpx.Response) -> FilterResponse:
    return FilterResponse(response.status_code, _headers(response.headers.raw), response.extensions.get("mesh"))


def _rewritten(response: httpx.Response, found: FilterResponse) -> httpx.Response:
    response.status_code = found.status
    if found.headers.is_changed:
        response.headers = httpx.Headers(_raw(found.headers))
    return response
