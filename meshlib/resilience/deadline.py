"""When a call must be over, and how that is said on the wire.

HTTP follows Envoy: the route's `timeout` (15 s by default) unless the route has a `max_stream_duration`. gRPC follows
gRFC A31: `max_stream_duration` only, `timeout` means nothing.
"""

from meshlib.model.request import Headers
from meshlib.model.route import RouteAction

__all__ = [
    "DEFAULT_TIMEOUT_S",
    "TIMEOUT_HEADERS",
    "format_grpc_timeout",
    "parse_grpc_timeout_s",
    "parse_ms",
    "per_try_timeout_s",
    "route_timeout_s",
    "stream_duration_s",
]

DEFAULT_TIMEOUT_S = 15.0
"""Envoy's default of a route's `timeout`."""

TIMEOUT_HEADERS = frozenset(
    {
        "x-envoy-upstream-rq-timeout-ms",
        "x-envoy-upstream-rq-per-try-timeout-ms",
        "x-envoy-upstream-rq-timeout-alt-response",
        "x-envoy-upstream-stream-duration-ms",
        "x-envoy-upstream-alt-stat-name",
    }
)
"""Request headers that are read here and not sent on."""

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def parse_ms(headers: Headers, name: str) -> float | None:
    """Return a header of whole milliseconds in seconds; None: absent, or not a number (which is no error)."""
    text = headers.get(name)
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 18:
        return None
    return int(text) / 1000


def parse_grpc_timeout_s(text: str) -> float | None:
    """Return a `grpc-timeout` in seconds; None: malformed. Micro- and nanoseconds are rounded up to milliseconds."""
    digits, unit = text[:-1], text[-1:]
    if unit not in _UNITS_S or not unit or not (digits.isascii() and digits.isdigit()) or len(digits) > 8:
        return None
    if unit in "un":
        per_ms = 1000 if unit == "u" else 1_000_000
        return -(-int(digits) // per_ms) / 1000
    return int(digits) * _UNITS_S[unit]


def format_grpc_timeout(seconds: float) -> str:
    """Return a `grpc-timeout` of at most eight digits: in ms, then S, M and H."""
    value = max(round(seconds * 1000), 0)
    for unit, divisor in (("m", 1), ("S", 1000), ("M", 60_000), ("H", 3_600_000)):
        if value // divisor <= 99_999_999:
            return f"{value // divisor}{unit}"
    return "99999999H"


def route_timeout_s(action: RouteAction) -> float | None:
    """Return the global timeout of HTTP requests; None: none ("ignored if `max_stream_duration` is present")."""
    if action.max_stream_duration_s is not None:
        return None
    timeout_s = DEFAULT_TIMEOUT_S if action.timeout_s is None else action.timeout_s
    return timeout_s or None


def stream_duration_s(
    action: RouteAction, listener_s: float | None, grpc_timeout_s: float | None, *, is_grpc: bool
) -> float | None:
    """Return how long the whole exchange may take; None: no limit.

    Args:
        listener_s: The listener's `max_stream_duration`.
        grpc_timeout_s: The request's `grpc-timeout` header; None: absent.
        is_grpc: A31's rules instead of Envoy's.
    """
    header_max_s = action.grpc_timeout_header_max_s
    if is_grpc:
        for value in (header_max_s, action.max_stream_duration_s, listener_s):
            if value is not None:
                return value or None
        return None
    if grpc_timeout_s is not None and header_max_s is not None:
        value = min(grpc_timeout_s, header_max_s) if header_max_s else grpc_timeout_s
        # Even a time of nothing is a limit: the smallest there is.
        return max(value - action.grpc_timeout_header_offset_s, 0.001)
    value_s = listener_s if action.max_stream_duration_s is None else action.max_stream_duration_s
    return value_s or None


def per_try_timeout_s(per_try_s: float | None, global_s: float | None) -> float | None:
    """Return the time of one attempt; None: no limit of its own ("per try >= global disables it")."""
    if not per_try_s or (global_s is not None and per_try_s >= global_s):
        return None
    return per_try_s
