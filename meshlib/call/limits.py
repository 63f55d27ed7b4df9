"""The times that hold for one call: those of its route, and those which its headers ask for."""

from dataclasses import dataclass

from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteAction
from meshlib.resilience.deadline import (
    TIMEOUT_HEADERS,
    format_grpc_timeout,
    parse_grpc_timeout_s,
    parse_ms,
    per_try_timeout_s,
    stream_duration_s,
)
from meshlib.resilience.retry import ATTEMPT_HEADER, RETRY_HEADERS
from meshlib.routing.headers import with_headers
from meshlib.view import RoutePlan

__all__ = [
    "AskedLimits",
    "asked_limits",
    "has_control_headers",
    "is_control_name",
    "is_longer",
    "with_grpc_timeout",
    "without_retry_headers",
    "without_timeout_headers",
    "written_head",
]

_EXPECTED = "x-envoy-expected-rq-timeout-ms"
_COUNT = "x-envoy-attempt-count"
_TIMEOUT_RETRY = "x-envoy-is-timeout-retry"
_REPLACED = RETRY_HEADERS | {_EXPECTED, ATTEMPT_HEADER}
_REPLACED_WITH_COUNT = _REPLACED | {_COUNT}
_OF_TRANSPORT = frozenset({"content-length", "content-type", "host", "te", "user-agent", ATTEMPT_HEADER})


@dataclass(frozen=True, slots=True)
class AskedLimits:
    """Seconds; None: no limit.

    Attributes:
        timeout_s: Of the call, from its first attempt on.
        per_try_s: Of one attempt.
        stream_s: Of the whole exchange, from the call's beginning on.
        asked_s: What a gRPC caller allows, from the call's beginning on.
    """

    timeout_s: float | None
    per_try_s: float | None
    stream_s: float | None
    asked_s: float | None


def is_control_name(name: str) -> bool:
    """Whether a header may be the mesh's or the transport's business, so that a request with it is to be looked at."""
    return name in _OF_TRANSPORT or name[:1] == ":" or name[:5] == "grpc-" or name[:8] == "x-envoy-"


def has_control_headers(headers: Headers) -> bool:
    """Whether a request asks for anything that concerns its times and retries. Quick: most don't."""
    for name, _ in headers.items:
        if (name[:2] == "x-" and (name[:8] == "x-envoy-" or name == ATTEMPT_HEADER)) or name == "grpc-timeout":
            return True
    return False


def is_longer(headers: Headers, limit: int) -> bool:
    """Whether a request says that its body has more bytes; one that does not say cannot be repeated anyway."""
    text = headers.get("content-length")
    return text is not None and text.isascii() and text.isdigit() and len(text) < 19 and int(text) > limit


def asked_limits(head: RequestHead, plan: RoutePlan, max_stream_duration_s: float | None) -> AskedLimits:
    """Work out the limits of a request with headers that ask for some.

    The application is its own caller, so its `x-envoy-*` headers are trusted. A number that cannot be read means
    nothing; 0 is no limit.
    """
    headers, by_grpc = head.headers, head.profile.grpc_times
    timeout_s, _, stream_s = plan.grpc if by_grpc else plan.http
    text = headers.get("grpc-timeout")
    grpc_timeout_s = None if text is None else parse_grpc_timeout_s(text)
    if grpc_timeout_s is not None and not by_grpc:
        stream_s = stream_duration_s(plan.action, max_stream_duration_s, grpc_timeout_s, is_grpc=False)

    asked_s = parse_ms(headers, "x-envoy-upstream-rq-timeout-ms")
    if asked_s is not None:
        timeout_s = asked_s or None
    try_s = parse_ms(headers, "x-envoy-upstream-rq-per-try-timeout-ms")
    if try_s is None:
        try_s = plan.per_try_s
    return AskedLimits(timeout_s, per_try_timeout_s(try_s, timeout_s), stream_s, grpc_timeout_s if by_grpc else None)


def _without(head: RequestHead, names: frozenset[str]) -> RequestHead:
    """Return the head without some headers; itself when it has none of them."""
    items = head.headers.items
    kept = tuple(item for item in items if item[0] not in names)
    return head if len(kept) == len(items) else with_headers(head, Headers(kept))


def without_timeout_headers(head: RequestHead) -> RequestHead:
    """Return the head without the timeout headers that are consumed here."""
    return _without(head, TIMEOUT_HEADERS)


def without_retry_headers(head: RequestHead, *, counts_attempts: bool) -> RequestHead:
    """Return the head without the retry headers, and without those that `written_head` writes anew."""
    return _without(head, _REPLACED_WITH_COUNT if counts_attempts else _REPLACED)


def with_grpc_timeout(head: RequestHead, action: RouteAction, stream_s: float) -> RequestHead:
    """Return the head of an HTTP request of gRPC's content type with what its route allows as `grpc-timeout`.

    As seen in Envoy: where the route limits the exchange, whether the request brings the header or not.

    Args:
        stream_s: How long the whole exchange may take.
    """
    items = head.headers.items
    kept = tuple(item for item in items if item[0] != "grpc-timeout")
    is_asked = len(kept) < len(items) and action.grpc_timeout_header_max_s is not None
    if action.max_stream_duration_s is None and not is_asked:
        return head
    return with_headers(head, Headers((*kept, ("grpc-timeout", format_grpc_timeout(stream_s)))))


def written_head(
    head: RequestHead,
    number: int,
    counts_attempts: bool,
    expected_s: float | None,
    left_s: float | None,
    *,
    is_marked: bool = False,
    is_timeout_retry: bool | None = None,
) -> RequestHead:
    """Return the head of one attempt, with what concerns its number and the time left; itself if that is nothing.

    Args:
        number: 1 for the first attempt.
        counts_attempts: `x-envoy-attempt-count` is sent (the virtual host's `include_request_attempt_count`).
        expected_s: How long this attempt may take; None: no limit, then `x-envoy-expected-rq-timeout-ms` is not sent.
        left_s: Until the call's deadline, for a `grpc-timeout` that the caller wrote itself; None: not to be touched.
        is_marked: The callee is to know that this is a retry (`x-meshlib-attempt`, unless its number is sent anyway).
        is_timeout_retry: Value of `x-envoy-is-timeout-retry`; None: it is not sent.
    """
    items = head.headers.items
    if number == 1 and head.profile.grpc_metadata and left_s is None and is_timeout_retry is None:
        if not counts_attempts:
            return head
        memo = head.memo
        if memo is None:
            return with_headers(head, Headers((*items, (_COUNT, "1"))))
        if memo.counted is None:
            memo.counted = with_headers(head, Headers((*items, (_COUNT, "1"))))
        return memo.counted
    if counts_attempts:
        items = (*items, (_COUNT, str(number)))
    elif is_marked:
        items = (*items, (ATTEMPT_HEADER, str(number)))
    if is_timeout_retry is not None:
        items = (*items, (_TIMEOUT_RETRY, "true" if is_timeout_retry else "false"))
    if not head.profile.grpc_metadata:
        if expected_s is not None:
            items = (*items, (_EXPECTED, str(round(expected_s * 1000) or 1)))
    else:
        if number > 1:
            items = (*items, ("grpc-previous-rpc-attempts", str(number - 1)))
        if left_s is not None and "grpc-timeout" in head.headers:
            kept = (item for item in items if item[0] != "grpc-timeout")
            items = (*kept, ("grpc-timeout", format_grpc_timeout(max(left_s, 0.001))))
    return head if items is head.headers.items else with_headers(head, Headers(items))
