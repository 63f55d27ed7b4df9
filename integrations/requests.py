"""`requests` through the mesh: `session.mount("http://", MeshAdapter(mesh))`.

A transport adapter over the transport of `httpx.Client`: routes, retries, limits, mTLS and events are the same code.
Redirects, cookies, authentication, hooks and `stream=True` are the session's, as ever. Exceptions are those of `requests`,
with the mesh's record as `error.mesh`; every response has a `MeshRecord` as `response.mesh`.

What is the mesh's own business is not the session's: TLS to endpoints (`verify` does not apply, `cert` is refused) and how
they are reached (`proxies` do not apply). With `MESHLIB_DISABLE=1`, and for hosts outside of the mesh with
`passthrough="unknown"`, requests go through the plain adapter, where all of them count.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from email.message import Message
from types import SimpleNamespace
from typing import Any, cast, get_args

import httpx
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPHeaderDict, HTTPResponse
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError
from urllib3.util import Timeout

from meshlib.clients.filters import AsyncFilter, Filter
from meshlib.clients.httpx_common import DEFAULT_LIMITS, Passthrough, authority_of, passthrough_event
from meshlib.clients.httpx_filters import FilteredTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.clients.source import MeshSource
from meshlib.errors import IdentityError, RoutingError
from meshlib.options import check_choice, entries

__all__ = ["MeshAdapter"]

_ERRORS: tuple[tuple[type[httpx.TransportError], type[requests.RequestException]], ...] = (
    (httpx.ConnectTimeout, requests.ConnectTimeout),
    (httpx.ReadTimeout, requests.ReadTimeout),
    (httpx.WriteTimeout, requests.ReadTimeout),
    (httpx.UnsupportedProtocol, requests.exceptions.InvalidSchema),
    (httpx.LocalProtocolError, requests.exceptions.InvalidHeader),
)


class MeshAdapter(BaseAdapter):
    """Sends what a session gives it through the mesh.

    Args:
        mesh: Where policies come from.
        passthrough: `never`: a host that is not in the mesh is an error. `unknown`: such requests go out directly.
        limits: Of connections, per endpoint.
        filters: The application's own code around each call, in order.

    Raises:
        TypeError: A filter is async.
    """

    def __init__(
        self,
        mesh: MeshSource,
        *,
        passthrough: Passthrough = "never",
        limits: httpx.Limits = DEFAULT_LIMITS,
        filters: Iterable[Filter | AsyncFilter] = (),
    ) -> None:
        super().__init__()
        self._mesh = mesh
        check_choice("passthrough", passthrough, get_args(Passthrough))
        self._passthrough = passthrough
        transport = MeshTransport(mesh, limits=limits)
        chosen = entries("filters", filters, "filters")
        self._transport = FilteredTransport(transport, chosen) if chosen else transport
        self._plain = HTTPAdapter()

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request; called by the session.

        Raises:
            requests.RequestException: As with any adapter; `error.mesh` has the details.
            ValueError: `cert` is set.
        """
        mesh = self._mesh
        sent = _request(request, timeout)
        if mesh.is_disabled or (self._passthrough == "unknown" and self._is_unknown(sent)):
            return self._pass(sent, request, stream, timeout, verify, cert, proxies)
        if cert is not None:
            raise ValueError("cert= does not apply in the mesh, which decides what certificate to show to an endpoint")
        try:
            received = self._transport.handle_request(sent)
        except httpx.TransportError as error:
            raise _mapped(error, request) from error
        return _response(received, request, self)

    def _is_unknown(self, sent: httpx.Request) -> bool:
        authority = authority_of(sent)
        try:
            if self._mesh.target(authority) is None:
                self._mesh.wait_target(authority)
        except RoutingError:
            return True
        except Exception:
            return False  # the transport finds the same, and says it
        return False

    def _pass(
        self, sent: httpx.Request, request: requests.PreparedRequest, stream: bool, timeout: Any, *rest: Any
    ) -> requests.Response:
        mesh = self._mesh
        start, status = mesh.clock(), 0
        try:
            response = self._plain.send(request, stream, timeout, *rest)
            status = response.status_code
            return response
        finally:
            if not mesh.is_disabled:
                mesh.emit(passthrough_event(sent, authority_of(sent), mesh.clock() - start, status))

    def warm_up(self, url: str, *, connections: int = 1, timeout_s: float = 5.0) -> int:
        """As `MeshTransport.warm_up`."""
        return self._transport.warm_up(url, connections=connections, timeout_s=timeout_s)

    def close(self) -> None:
        """Close every connection."""
        self._transport.close()
        self._plain.close()


def _request(request: requests.PreparedRequest, timeout: Any) -> httpx.Request:
    """Return a prepared request as httpx has it: the same line, headers and body."""
    body = cast(Any, request.body)
    if isinstance(body, str):
        body = body.encode("utf-8")
    elif body is not None and not isinstance(body, bytes):
        body = _pieces(body)
    # The names as the application wrote them; a header of bytes is one of latin-1.
    headers = [(name, value) for name, value in request.headers.items()]
    return httpx.Request(
        request.method or "GET",
        request.url or "",
        headers=headers,
        content=body,
        extensions={"timeout": _timeouts(timeout), "target": request.path_url.encode("ascii")},
    )


def _pieces(body: Any) -> Iterator[bytes]:
    """Return the pieces of a body that is a file or anything iterable."""
    if not hasattr(body, "read"):
        for piece in body:
            yield piece.encode("utf-8") if isinstance(piece, str) else piece
        return
    while piece := body.read(65536):
        yield piece.encode("utf-8") if isinstance(piece, str) else piece


def _timeouts(timeout: Any) -> dict[str, float | None]:
    if isinstance(timeout, Timeout):
        connect, read = timeout.connect_timeout, timeout.read_timeout
        timeout = (connect, read)
    connect, read = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    return {"connect": connect, "read": read, "write": read, "pool": None}


def _mapped(error: httpx.TransportError, request: requests.PreparedRequest) -> requests.RequestException:
    record = getattr(error, "mesh", None)
    kind: type[requests.RequestException] = requests.ConnectionError
    if isinstance(record, IdentityError):
        kind = requests.exceptions.SSLError
    for theirs, ours in _ERRORS:
        if isinstance(error, theirs):
            kind = ours
    found = kind(str(error), request=request)
    found.mesh = record  # type: ignore[attr-defined]  # documented for users of the adapter
    return found


def _response(received: httpx.Response, request: requests.PreparedRequest, adapter: MeshAdapter) -> requests.Response:
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in received.headers.raw]
    message = Message()  # where the session looks for cookies
    for name, value in fields:
        message[name] = value
    raw = _RawResponse(
        body=_Reader(_Body(received), 65536),
        headers=HTTPHeaderDict(fields),
        status=received.status_code,
        version=11,
        reason=received.reason_phrase,
        preload_content=False,
        decode_content=False,
        original_response=cast(Any, SimpleNamespace(msg=message, isclosed=lambda: True, close=lambda: None)),
        request_method=request.method,
        request_url=request.url,
    )
    response = HTTPAdapter().build_response(request, raw)
    response.connection = cast(HTTPAdapter, adapter)  # as requests' own does it
    response.mesh = received.extensions["mesh"]  # type: ignore[attr-defined]  # documented
    return response


class _RawResponse(HTTPResponse):
    """A response whose finaliser does not close it.

    Closing takes the locks of pools, and finalisers run wherever the collector finds time, perhaps in a thread that holds
    one. The stream within says by itself that it was dropped; this holds for the two classes below as well.
    """

    def __del__(self) -> None:
        pass


class _Reader(io.BufferedReader):
    def __del__(self) -> None:
        pass


class _Body(io.RawIOBase):
    """A response body as a file; urllib3 decodes it, and closes it at its end."""

    def __init__(self, received: httpx.Response) -> None:
        self._stream = cast(httpx.SyncByteStream, received.stream)
        self._pieces: Iterator[bytes] | None = (
            None  # made when it is read: what is wrong with the first piece is said then
        )
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            try:
                if self._pieces is None:
                    self._pieces = iter(self._stream)
                self._left = memoryview(next(self._pieces, b""))
            except httpx.TimeoutException as error:
                raise _with_record(ReadTimeoutError(cast(Any, None), "", str(error)), error) from error
            except httpx.TransportError as error:
                raise _with_record(ProtocolError(str(error), error), error) from error
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            try:
                self._stream.close()
            finally:
                super().close()

    def __del__(self) -> None:
        pass


def _with_record(found: HTTPError, error: httpx.TransportError) -> HTTPError:
    found.mesh = getattr(error, "mesh", None)  # type: ignore[attr-defined]  # as `error.mesh` elsewhere
    return found
