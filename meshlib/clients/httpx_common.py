"""What the blocking and the async httpx transport share: requests, responses and the names of pools."""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import httpcore
import httpx
from httpx._content import ByteStream
from httpx._multipart import MultipartStream

from meshlib.call import Attempt, Call, Done
from meshlib.clients.http1_request import encoded
from meshlib.clients.http1_response import RawResponse, ResponseHead
from meshlib.clients.httpx_errors import with_record
from meshlib.clients.pools import PoolKey
from meshlib.clients.source import MeshSource
from meshlib.clients.timeouts import AttemptTimeouts, Hold
from meshlib.clients.tracing import begin_call
from meshlib.errors import ConfigError, UnavailableError
from meshlib.events import CallFinished
from meshlib.model.outcome import Connected, LocalReply, Response
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, RequestHead, is_grpc_type
from meshlib.options import check_choice, check_type
from meshlib.ports import Clock
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.runtime.context import remaining_s
from meshlib.runtime.tls import client_context
from meshlib.view import ClusterState, TargetView, View

__all__ = [
    "BROKEN",
    "DEFAULT_LIMITS",
    "DISCARD_S",
    "KnownAddresses",
    "MeshRecord",
    "Passthrough",
    "address_text",
    "authority_of",
    "call_for",
    "check_options",
    "head_of",
    "headers_of",
    "is_in_memory",
    "is_replayable",
    "is_small",
    "learn_of_trailers",
    "local_response",
    "lower_name",
    "passthrough_event",
    "pool_key_of",
    "record_of",
    "response_headers",
    "response_of",
    "timeouts_for",
]

Passthrough = Literal["never", "unknown"]


def check_options(passthrough: Passthrough, limits: httpx.Limits) -> None:
    """Refuse options of a transport that it could not honour.

    Raises:
        TypeError: `limits` is none; those of httpx2 are.
        ValueError: `passthrough` is none of its words.
    """
    check_choice("passthrough", passthrough, get_args(Passthrough))
    if not hasattr(limits, "max_keepalive_connections"):
        check_type("limits", limits, httpx.Limits)


# Per endpoint. Idle connections are kept for less time than the 5 s after which uvicorn and others close them, so that
# a request seldom meets a connection which its server is just closing. As many may idle as may exist: a lower number
# makes a pool at work close and open connections all the time.
DEFAULT_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=4.0)

# A response that is going to be retried is read to its end when that is cheap, because its connection can then be kept.
DISCARD_BYTES = 16384
DISCARD_S = 0.02
BROKEN = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)


class MeshRecord(NamedTuple):
    """What the mesh did for a response: `response.extensions["mesh"]`.

    Attributes:
        cluster: Cluster that the request went to, or empty.
        endpoint: `host:port` that answered; empty when the mesh answered itself.
        attempts: Attempts made.
        flag: Envoy's response flags, or `-`.
        endpoints: Every endpoint tried, in order.
    """

    cluster: str
    endpoint: str
    attempts: int
    flag: str
    endpoints: tuple[str, ...] = ()


class KnownAddresses:
    """The addresses of all endpoints of a mesh; worked out once per view that somebody asks about."""

    __slots__ = ("_found", "_mesh", "_view")

    def __init__(self, mesh: MeshSource) -> None:
        self._mesh = mesh
        self._view: View | None = None
        self._found: frozenset[str] = frozenset()

    def __call__(self) -> frozenset[str]:
        view = self._mesh.view
        if view is not self._view:
            clusters = [one for one in view.clusters.values() if isinstance(one, ClusterState)]
            found = frozenset(address for cluster in clusters for address in cluster.states)
            if found != self._found:
                self._found = found
            self._view = view
        return self._found


def authority_of(request: httpx.Request) -> str:
    """Return the authority as written in the URL: host, or host:port if there is a port.

    Raises:
        httpx.UnsupportedProtocol: The URL is neither http nor https.
    """
    if request.url.scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(
            f"meshlib sends http:// and https:// URLs, not {str(request.url)!r}", request=request
        )
    return request.url.netloc.decode("ascii")


def head_of(request: httpx.Request, authority: str) -> RequestHead:
    """Return what the mesh needs to know of a request. Values are read as latin-1, which keeps every byte.

    Raises:
        httpx.LocalProtocolError: It has two hosts: one would be routed by, and who knows which one served.
    """
    host = authority
    items = []
    is_grpc = has_host = False
    for raw_name, raw_value in request.headers.raw:
        name = lower_name(raw_name)
        value = raw_value.decode("latin-1")
        if name == "host":
            if has_host:
                raise httpx.LocalProtocolError("Found multiple Host: headers", request=request)
            host, has_host = value, True
            continue
        if name == "content-type":
            is_grpc = is_grpc_type(value)
        items.append((name, value))
    target: bytes = request.extensions.get("target") or request.url.raw_path
    return RequestHead(
        request.method,
        host,
        target.decode("latin-1"),
        Headers(items),
        scheme=request.url.scheme,
        is_grpc=is_grpc,
        profile=HTTP,
    )


def call_for(
    mesh: MeshSource, target: TargetView, head: RequestHead, request: httpx.Request, *, replayable: bool
) -> Call:
    """Begin a call. Its time is capped by that of the request which this process is serving meanwhile, if any."""
    now = mesh.clock()
    can_hedge = replayable and is_in_memory(request)
    return begin_call(
        mesh, target, head, now=now, timeout_s=remaining_s(now), replayable=replayable, can_hedge=can_hedge
    )


def timeouts_for(
    attempt: Attempt, request: httpx.Request, clock: Clock, call: Call, *, replayable: bool, hold: Hold | None = None
) -> AttemptTimeouts:
    """Begin the time of an attempt.

    Args:
        replayable: The body is there; else the application is still making it.
        hold: By which another thread may end it.
    """
    return AttemptTimeouts(
        request.extensions.get("timeout", {}),
        timeout_s=attempt.timeout_s,
        connect_timeout_s=attempt.cluster.config.cluster.connect_timeout_s,
        clock=clock,
        after_body=not replayable,
        whole_at=None if replayable else call.upload_deadline,
        hold=hold,
    )


def pool_key_of(attempt: Attempt, mesh: MeshSource, request: httpx.Request, breaker: CircuitBreaker) -> PoolKey:
    """Return which connections may carry an attempt.

    Args:
        breaker: The call's.

    Raises:
        httpx.ConnectError: The URL says https, and the mesh has no TLS for this endpoint.
        httpx.UnsupportedProtocol: The cluster speaks HTTP/2, and `h2` is not installed.
        IdentityError: A certificate or its trust is missing, broken or expired.
    """
    cluster = attempt.cluster.config.cluster
    http2 = cluster.http2
    context = None
    if http2 and not _has_h2():
        text = (
            f"cluster {cluster.name!r} is spoken to over HTTP/2, which needs the package h2: pip install 'httpx[http2]'"
        )
        raise with_record(httpx.UnsupportedProtocol(text, request=request), ConfigError(text, cluster=cluster.name))
    if attempt.tls is not None:
        context = client_context(attempt.tls, mesh.view.secrets, default_alpn=("h2",) if http2 else ("http/1.1",))
    elif request.url.scheme == "https":
        text = (
            f"{request.url} asks for https, but the mesh reaches {attempt.endpoint.address} without TLS; "
            "write http:// and let the mesh decide, or give the service mTLS"
        )
        record = UnavailableError(text, cluster=cluster.name, endpoints=(attempt.endpoint.address,), flag="UF")
        raise with_record(httpx.ConnectError(text, request=request), record)
    return PoolKey(
        attempt.endpoint.address,
        http2,
        context,
        cluster.max_requests_per_connection,
        cluster.idle_timeout_s,
        None if http2 else breaker,
        attempt.endpoint.dials,
    )


@lru_cache(maxsize=1)
def _has_h2() -> bool:
    return importlib.util.find_spec("h2") is not None


# Names of headers are few, and looking one up is quicker than making it.
@lru_cache(maxsize=1024)
def lower_name(raw: bytes) -> str:
    """Return the name of a header as decisions know it."""
    return raw.lower().decode("latin-1")


class _RawHeaders(Headers):
    """Response headers, decoded when somebody looks at them: most calls end without."""

    __slots__ = ("_raw",)

    def __init__(self, raw: Sequence[tuple[bytes, bytes]]) -> None:
        self._raw = raw
        self._index = None

    def find(self, name: str) -> str | None:
        """As `Headers.find`, without decoding the others."""
        size, wanted = len(name), name.encode("latin-1")
        for key, value in self._raw:
            if len(key) == size and key.lower() == wanted:
                return value.decode("latin-1")
        return None

    def __getattr__(self, name: str) -> Any:  # only called for what is not there yet
        if name != "items":
            raise AttributeError(name)
        self.items = tuple((lower_name(raw), value.decode("latin-1")) for raw, value in self._raw)
        return self.items


def learn_of_trailers(call: Call, extensions: Mapping[str, Any], now: float) -> None:
    """Have a call learn from the trailers that came after a response's body, if any did; before `close`."""
    trailers = extensions.get("trailers")
    if trailers:
        call.trailers([(lower_name(name), value.decode("latin-1")) for name, value in trailers], now)


def response_of(raw: RawResponse | httpcore.Response) -> Response:
    """Return the outcome of an attempt whose response headers have arrived."""
    return Response(raw.status, _RawHeaders(raw.headers))


def headers_of(head: ResponseHead | httpcore.Response) -> Headers:
    """Return the headers of a response for those who decide."""
    return _RawHeaders(head.headers)


def response_headers(
    raw: RawResponse | httpcore.Response, outcome: Response, call: Call
) -> Sequence[tuple[bytes, bytes]]:
    """Return the headers for the caller: as received, unless the route changes them."""
    headers = call.response_headers(outcome.headers, lambda: _connected(raw))
    if headers is outcome.headers:
        return raw.headers
    return [(name.encode("latin-1"), encoded(value)) for name, value in headers.items]


def _connected(raw: RawResponse | httpcore.Response) -> Connected:
    """Return what formats may say of the connection over which a response came."""
    protocol = "HTTP/2" if raw.extensions["http_version"] == b"HTTP/2" else "HTTP/1.1"
    try:
        return Connected(protocol, address_text(raw.extensions["network_stream"].get_extra_info("client_addr")))
    except OSError:  # it is closed already
        return Connected(protocol)


def address_text(name: object) -> str:
    """Return the address of a socket as formats write it; empty: it has none (a Unix socket that was not bound)."""
    if not isinstance(name, tuple):
        return str(name or "")
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_small(raw: RawResponse | httpcore.Response) -> bool:
    """Whether so little of a response is left that reading it is cheaper than a new connection."""
    for name, value in raw.headers:
        if name.lower() == b"content-length":
            return value.isdigit() and int(value) <= DISCARD_BYTES
    return False


def is_replayable(request: httpx.Request) -> bool:
    """Whether the body can be sent a second time.

    Bytes, JSON, forms and multipart bodies can. Generators, iterators and files cannot: httpx would repeat a file from
    where it was left, that is with 0 bytes under the old content-length.
    """
    stream = request.stream
    if isinstance(stream, ByteStream):
        return True
    if isinstance(stream, MultipartStream):
        files = [field.file for field in stream.fields if hasattr(field, "file")]
        return all(isinstance(file, str | bytes) or _is_seekable(file) for file in files)
    return False


def is_in_memory(request: httpx.Request) -> bool:
    """Whether a body can be read by several at once. A file cannot: it has one position."""
    stream = request.stream
    if isinstance(stream, MultipartStream):
        return all(isinstance(getattr(field, "file", b""), str | bytes) for field in stream.fields)
    return isinstance(stream, ByteStream)


def _is_seekable(file: object) -> bool:
    seekable = getattr(file, "seekable", None)
    return seekable is not None and bool(seekable())


def record_of(call: Call, done: Done) -> MeshRecord:
    """Return what goes into `response.extensions["mesh"]`."""
    endpoints = call.endpoints
    endpoint = call.endpoint
    answered = "" if endpoint is None or isinstance(done.result, LocalReply) else endpoint.address
    return MeshRecord(call.cluster_name, answered, len(endpoints), done.flag or "-", endpoints)


def local_response(reply: LocalReply, request: httpx.Request, record: MeshRecord) -> httpx.Response:
    """Return an answer that the mesh gives itself, as Envoy writes it."""
    headers = list(reply.headers)
    names = {name.lower() for name, _ in headers}
    if reply.body and "content-type" not in names:
        headers.append(("content-type", "text/plain"))
    if "content-length" not in names:
        headers.append(("content-length", str(len(reply.body))))
    # A stream, which httpx's clients read and close as any other: whoever asks for `elapsed` or hooks in sees no difference.
    body = httpx.ByteStream(b"" if request.method == "HEAD" else reply.body)
    return httpx.Response(reply.status, headers=headers, stream=body, extensions={"mesh": record})


def passthrough_event(request: httpx.Request, authority: str, duration_s: float, status: int) -> CallFinished:
    """Return the event of a request that went past the mesh; the cluster's name is Istio's for such traffic."""
    return CallFinished(
        kind="http",
        target=authority,
        method=request.method,
        route="",
        cluster="PassthroughCluster",
        endpoint=None,
        attempts=1,
        duration_s=duration_s,
        status=status,
        grpc_status=None,
        flag="-",
        secure=request.url.scheme == "https",
    )
