"""The request of one attempt, as connections take it."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, MutableMapping
from functools import lru_cache
from typing import Any, Final, cast

import httpcore
import httpx
from httpx._content import ByteStream

from meshlib.call import Attempt
from meshlib.clients.http1_request import Http1Request, encoded, pairs_of
from meshlib.clients.pools import PoolKey
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.model.request import RequestHead

__all__ = ["Http2Request", "http1_request_for", "http2_request", "http2_request_for", "origin_of"]


def http1_request_for(
    attempt: Attempt, request: httpx.Request, timeouts: AttemptTimeouts, key: PoolKey
) -> Http1Request:
    """Return the request of one attempt, to one endpoint.

    Raises:
        httpcore.LocalProtocolError: It cannot be sent as it is.
    """
    origin = origin_of(key.address, key.context is not None)
    stream = cast(Any, request.stream)  # httpx types it as either kind; its client made the right one
    return Http1Request(attempt.head, origin, stream, request.extensions, timeouts)


class _NoBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Nothing at all; httpx's own empty stream yields one empty piece, which is then sent."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        empty: tuple[bytes, ...] = ()
        for piece in empty:
            yield piece


_NO_BODY: Final = _NoBody()


def http2_request_for(
    attempt: Attempt, request: httpx.Request, timeouts: AttemptTimeouts, key: PoolKey
) -> "Http2Request":
    """As `http1_request_for`, for httpcore's HTTP/2."""
    return http2_request(attempt.head, request, timeouts, origin_of(key.address, key.context is not None))


def http2_request(
    head: RequestHead, request: httpx.Request, timeouts: AttemptTimeouts, origin: httpcore.Origin
) -> "Http2Request":
    """Return a request whose head is settled, for one endpoint."""
    extensions: dict[str, Any] = {**request.extensions, "timeout": timeouts}
    extensions.pop("target", None)  # it is in the head, where rewrites apply to it
    stream = request.stream
    if isinstance(stream, ByteStream) and _is_empty(request):
        stream = _NO_BODY
    return Http2Request(
        head.method.encode("ascii"),
        _Url(origin, encoded(head.path)),
        pairs_of(head),
        cast(Any, stream),  # httpx types it as either kind; its client made the right one
        extensions,
        timeouts,
    )


def _is_empty(request: httpx.Request) -> bool:
    try:
        return not request.content
    except httpx.RequestNotRead:  # a redirect, or a copy: made of another request's stream
        return False


@lru_cache(maxsize=4096)
def origin_of(address: str, is_secure: bool) -> httpcore.Origin:
    """Return an endpoint as httpcore names it."""
    scheme = b"https" if is_secure else b"http"
    if address.startswith("unix:"):
        return httpcore.Origin(scheme, b"localhost", 80)  # never resolved: the pool connects to the path
    host, _, port = address.rpartition(":")
    return httpcore.Origin(scheme, host.strip("[]").encode("ascii"), int(port))


class _Url(httpcore.URL):
    """httpcore's URL, whose origin it would work out three times per request."""

    def __init__(self, origin: httpcore.Origin, target: bytes) -> None:
        self.scheme = origin.scheme
        self.host = origin.host
        self.port = origin.port
        self.target = target
        self._origin = origin

    @property
    def origin(self) -> httpcore.Origin:
        return self._origin


class Http2Request(httpcore.Request):
    """httpcore's request, of parts that need no check; its time-outs are among the extensions too."""

    def __init__(
        self,
        method: bytes,
        url: httpcore.URL,
        headers: list[tuple[bytes, bytes]],
        stream: Iterable[bytes] | AsyncIterable[bytes],
        extensions: MutableMapping[str, Any],
        timeouts: AttemptTimeouts,
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.stream = stream
        self.extensions = extensions
        self.timeouts = timeouts
