"""OpenTelemetry's API as clients and servers use it: who makes spans, and which headers carry the trace.

Only `opentelemetry-api` is needed. Without an SDK there is no tracer and no span, but a trace context that came in
goes on to the calls made meanwhile, unchanged. What a request pays for that it has no trace is one look at the provider
and one at the current context, a fifth of a microsecond; starting the API's no-op span would cost twice that.
"""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final, cast

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import Tracer, TracerProvider

from meshlib.model.profile import GRPC
from meshlib.model.request import Headers, RequestHead

__all__ = [
    "BAGGAGE",
    "Tracing",
    "extracted",
    "has_local_span",
    "limited_baggage",
    "report",
    "span_name",
    "split_authority",
    "split_method",
    "trace_fields",
]

_LOG = logging.getLogger(__name__)
_SCOPE: Final = "meshlib"
BAGGAGE: Final = "baggage"
MAX_BAGGAGE_MEMBERS: Final = 64
MAX_BAGGAGE_BYTES: Final = 8192
"""What a next hop need not pass on any more (W3C Baggage, section 3.3.2); more than that is refused by some servers."""
# The key by which exporters keep their own requests from being traced (opentelemetry.context).
_SUPPRESS: Final = "suppress_instrumentation"
_ABSENT: Final = object()
# Those that OpenTelemetry's conventions know; a made-up one must not become a name of its own.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})


class Tracing:
    """Makes the spans of one mesh.

    Args:
        provider: None: the global one, as soon as there is one.
    """

    __slots__ = ("_known", "_provider")

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        # One assignment of one pair: threads that race here each use what they made.
        self._known: tuple[TracerProvider, Tracer] | None = None
        try:
            trace.get_tracer_provider()  # loads the one that OTEL_PYTHON_TRACER_PROVIDER names, if it does
        except Exception:
            report("loading the tracer provider")

    def is_idle(self) -> bool:
        """Whether there is nothing to do: nobody takes spans, and there is no context to pass on."""
        if self._provider is not None or _current_context():
            return False
        return getattr(trace, "_TRACER_PROVIDER", _ABSENT) is None or _global_provider() is None

    def tracer(self) -> Tracer | None:
        """Return what makes spans here and now; None: nobody takes them."""
        provider = self._provider or _global_provider()
        if provider is None or otel_context.get_value(_SUPPRESS):
            return None
        known = self._known
        if known is None or known[0] is not provider:
            known = self._known = (provider, provider.get_tracer(_SCOPE))
        return known[1]


def _context_reader() -> Callable[[], Context]:
    """Return what reads the current context; the public function is two calls deep around a context variable."""
    inner = getattr(getattr(otel_context, "_RUNTIME_CONTEXT", None), "_current_context", None)
    return inner.get if isinstance(inner, ContextVar) else otel_context.get_current


_current_context: Final = _context_reader()


def _global_provider() -> TracerProvider | None:
    # The public function looks into os.environ each time while no provider is set, which takes 0.8 us.
    found = getattr(trace, "_TRACER_PROVIDER", _ABSENT)
    if found is _ABSENT:
        found = trace.get_tracer_provider()
        return None if isinstance(found, trace.ProxyTracerProvider) else found
    return cast(TracerProvider | None, found)


def has_local_span(context: Context) -> bool:
    """Whether a span of this process is the current one; what came in from outside is not."""
    found = trace.get_current_span(context).get_span_context()
    return found.is_valid and not found.is_remote


class _Fields:
    """The headers that a propagator reads and writes."""

    def __init__(self, propagator: TextMapPropagator) -> None:
        self.propagator = propagator
        self.all = frozenset(name.lower() for name in propagator.fields)
        self.trace = self.all - {BAGGAGE}


_last_fields = _Fields(propagate.get_global_textmap())


def _fields() -> _Fields:
    global _last_fields
    propagator = propagate.get_global_textmap()
    if _last_fields.propagator is not propagator:
        _last_fields = _Fields(propagator)
    return _last_fields


def trace_fields() -> frozenset[str]:
    """Return the headers by which the global propagator names a span: `traceparent` and `tracestate` by default."""
    return _fields().trace


def limited_baggage(baggage: str) -> str:
    """Return a `baggage` header within the limits of W3C: whole members from the front, the rest stays behind."""
    if len(baggage) <= MAX_BAGGAGE_BYTES and baggage.count(",") < MAX_BAGGAGE_MEMBERS:
        return baggage
    kept: list[str] = []
    size = -1
    for member in baggage.split(",", MAX_BAGGAGE_MEMBERS)[:MAX_BAGGAGE_MEMBERS]:
        size += 1 + len(member)
        if size > MAX_BAGGAGE_BYTES:
            break
        kept.append(member)
    return ",".join(kept)


class _HeadersGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return list(carrier.all(key.lower())) or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name for name, _ in carrier.items]


_GETTER = _HeadersGetter()


def extracted(headers: Headers, context: Context) -> Context | None:
    """Return a context with the trace and the baggage that headers carry; None: they carry neither."""
    fields = _fields().all
    for name, _ in headers.items:
        if name in fields:
            return propagate.extract(headers, context, _GETTER)
    return None


def span_name(head: RequestHead) -> str:
    """Return the name of a request's spans, one of few: the HTTP method, or the full name of the gRPC method."""
    if head.profile is GRPC:
        return head.path.lstrip("/")
    return head.method if head.method in _METHODS else "HTTP"


def split_authority(authority: str) -> tuple[str, int | None]:
    """Return host and port of an authority; None: it names no port."""
    host, colon, port = authority.rpartition(":")
    if colon and port.isascii() and port.isdigit() and (":" not in host or host.endswith("]")):
        return host.strip("[]"), int(port)
    return authority.strip("[]"), None


def split_method(head: RequestHead) -> tuple[str, str]:
    """Return service and method of a gRPC path: `/package.Service/Method`."""
    service, _, method = head.path.lstrip("/").rpartition("/")
    return service, method


_reported: set[str] = set()


def report(what: str) -> None:
    """Log the exception at hand, once per kind of trouble: what goes wrong with a trace is no trouble of the call."""
    if what not in _reported:
        _reported.add(what)
        _LOG.exception("%s failed; requests go on without, and further failures are not reported", what)
