"""Requests as httpcore takes them, made without doing anything twice.

h11 looks at the name and the value of every header with a regular expression, each time a request is sent, which costs
more than the mesh's own decisions. Most headers of a client are the same each time, so what h11 has said of one is
remembered: its checks are still h11's. Should a version of h11 not offer what that takes, requests are made the plain
way.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, MutableMapping
from functools import lru_cache
from typing import Any, Final, cast

import h11
import httpcore
import httpx
from httpx._content import ByteStream

from meshlib.call import Attempt
from meshlib.clients.pools import PoolKey
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.model.request import RequestHead

try:
    from h11._headers import Headers as CheckedHeaders
    from h11._headers import normalize_and_validate
except ImportError:  # pragma: no cover - not with the versions that there are
    CheckedHeaders = None  # type: ignore[assignment,misc]

__all__ = ["encoded", "request_for"]

REMEMBERED_CHARACTERS: Final = 128
_SECRET: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Not kept in memory for longer than their requests."""
_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
"""The only ones that h11 judges together."""


class _NoBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Nothing at all; httpx's own empty stream yields one empty piece, which is then sent."""

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        empty: tuple[bytes, ...] = ()
        for piece in empty:
            yield piece


_NO_BODY: Final = _NoBody()


def request_for(attempt: Attempt, request: httpx.Request, timeouts: AttemptTimeouts, key: PoolKey) -> httpcore.Request:
    """Return the request of one attempt, to one endpoint."""
    head = attempt.head
    extensions: dict[str, Any] = {**request.extensions, "timeout": timeouts}
    extensions.pop("target", None)  # it is in the head, where rewrites apply to it
    stream = request.stream
    if isinstance(stream, ByteStream) and _is_empty(request):
        stream = _NO_BODY
    return _Request(
        head.method.encode("ascii"),
        _Url(_origin(key.address, key.context is not None), encoded(head.path)),
        _plain_headers(head) if key.http2 else _headers(head),
        cast(Any, stream),  # httpx types it as either kind; its client made the right one
        extensions,
    )


def _is_empty(request: httpx.Request) -> bool:
    try:
        return not request.content
    except httpx.RequestNotRead:  # a redirect, or a copy: made of another request's stream
        return False


def encoded(text: str) -> bytes:
    """Return the bytes of a value: latin-1, which is how values were read."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:  # only what the mesh's configuration adds can be wider
        return text.encode("utf-8")


def _plain_headers(head: RequestHead) -> list[tuple[bytes, bytes]]:
    return [(b"host", encoded(head.authority)), *((_wire(name), encoded(value)) for name, value in head.headers.items)]


def _headers(head: RequestHead) -> Any:
    """Return headers that h11 takes as they are; what it would refuse goes the plain way, and is refused there."""
    if CheckedHeaders is None:
        return _plain_headers(head)
    framing = 0
    try:
        checked = [_remembered("host", head.authority)]
        for name, value in head.headers.items:
            if name in _FRAMING:
                framing += 1
            if len(value) > REMEMBERED_CHARACTERS or name in _SECRET:
                checked.append(_check(name, value))
            else:
                checked.append(_remembered(name, value))
    except h11.LocalProtocolError:
        return _plain_headers(head)
    return _plain_headers(head) if framing > 1 else CheckedHeaders(checked)


def _check(name: str, value: str) -> tuple[bytes, bytes, bytes]:
    """Return a header as h11 keeps it: name as written, name in lower case, value.

    Raises:
        h11.LocalProtocolError: It is not a valid header.
    """
    return normalize_and_validate([(_wire(name), encoded(value))], False)._full_items[0]


_remembered = lru_cache(maxsize=2048)(_check)


# Names of headers are few, and looking one up is quicker than making it.
@lru_cache(maxsize=1024)
def _wire(name: str) -> bytes:
    return name.encode("latin-1")


@lru_cache(maxsize=4096)
def _origin(address: str, is_secure: bool) -> httpcore.Origin:
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


class _Request(httpcore.Request):
    """httpcore's request, of parts that need no check."""

    def __init__(
        self,
        method: bytes,
        url: httpcore.URL,
        headers: list[tuple[bytes, bytes]],
        stream: Iterable[bytes] | AsyncIterable[bytes],
        extensions: MutableMapping[str, Any],
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.stream = stream
        self.extensions = extensions
