"""Whether an attempt is to be repeated: Envoy's retry conditions and gRPC's (A44).

The words of `retry_on` become bits, once per policy. What a request brings along (`x-envoy-retry-on` and the like) is
added per request. Whether repeating is *safe*, and whether there is room for it, is decided elsewhere.

Source: Envoy, `RetryStateImpl`; the table of resets is `wouldRetryFromReset`.
"""

from collections.abc import Callable, Iterable
from enum import IntFlag

from meshlib.matching import HeadTest, compile_header, compile_response_header
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.resilience.classify import grpc_code

__all__ = ["ATTEMPT_HEADER", "NO_RETRIES", "RETRY_HEADERS", "RetryOn", "RetryRules", "parse_retry_on"]


class RetryOn(IntFlag):
    """The conditions, a bit each."""

    SERVER_ERROR = 1 << 0
    GATEWAY_ERROR = 1 << 1
    CONNECT_FAILURE = 1 << 2
    REFUSED_STREAM = 1 << 3
    RETRIABLE_4XX = 1 << 4
    STATUS_CODES = 1 << 5
    HEADERS = 1 << 6
    RESET = 1 << 7
    RESET_BEFORE_REQUEST = 1 << 8
    RATE_LIMITED = 1 << 9
    CANCELLED = 1 << 10
    DEADLINE_EXCEEDED = 1 << 11
    INTERNAL = 1 << 12
    RESOURCE_EXHAUSTED = 1 << 13
    UNAVAILABLE = 1 << 14


# HTTP/3 is not spoken, so `http3-post-connect-failure` can never come true and has no bit.
_WORDS = {
    "5xx": RetryOn.SERVER_ERROR,
    "gateway-error": RetryOn.GATEWAY_ERROR,
    "connect-failure": RetryOn.CONNECT_FAILURE,
    "refused-stream": RetryOn.REFUSED_STREAM,
    "retriable-4xx": RetryOn.RETRIABLE_4XX,
    "retriable-status-codes": RetryOn.STATUS_CODES,
    "retriable-headers": RetryOn.HEADERS,
    "reset": RetryOn.RESET,
    "reset-before-request": RetryOn.RESET_BEFORE_REQUEST,
    "envoy-ratelimited": RetryOn.RATE_LIMITED,
}
_GRPC_WORDS = {
    "cancelled": RetryOn.CANCELLED,
    "deadline-exceeded": RetryOn.DEADLINE_EXCEEDED,
    "internal": RetryOn.INTERNAL,
    "resource-exhausted": RetryOn.RESOURCE_EXHAUSTED,
    "unavailable": RetryOn.UNAVAILABLE,
}
# Plain ints from here on: IntFlag's operators are twenty times slower, and these are asked after each attempt.
_BY_GRPC_STATUS: dict[int | None, int] = {
    1: RetryOn.CANCELLED.value,
    4: RetryOn.DEADLINE_EXCEEDED.value,
    8: RetryOn.RESOURCE_EXHAUSTED.value,
    13: RetryOn.INTERNAL.value,
    14: RetryOn.UNAVAILABLE.value,
}
_SERVER_ERROR, _GATEWAY_ERROR = RetryOn.SERVER_ERROR.value, RetryOn.GATEWAY_ERROR.value
_RETRIABLE_4XX, _STATUS_CODES = RetryOn.RETRIABLE_4XX.value, RetryOn.STATUS_CODES.value
_HEADERS, _RATE_LIMITED = RetryOn.HEADERS.value, RetryOn.RATE_LIMITED.value
_CONNECT_FAILURE, _REFUSED_STREAM = RetryOn.CONNECT_FAILURE.value, RetryOn.REFUSED_STREAM.value
_RESET_BEFORE_REQUEST = RetryOn.RESET_BEFORE_REQUEST.value
_BY_HTTP_STATUS = _SERVER_ERROR | _GATEWAY_ERROR | _RETRIABLE_4XX | _STATUS_CODES
# "The tokens 5xx and gateway-error behave the same for resets", as does reset itself.
_ANY_RESET = _SERVER_ERROR | _GATEWAY_ERROR | RetryOn.RESET.value
_GRPC = sum(_BY_GRPC_STATUS.values())
_NO_CONNECTION = frozenset({FailureKind.CONNECT, FailureKind.IDENTITY})
_GATEWAY_CODES = frozenset({502, 503, 504})

ATTEMPT_HEADER = "x-meshlib-attempt"
"""On retries: the number of the attempt, where the virtual host has no `x-envoy-attempt-count` sent. C-core takes gRPC's
own `grpc-previous-rpc-attempts` off a request."""

RETRY_HEADERS = frozenset(
    {
        "x-envoy-retry-on",
        "x-envoy-retry-grpc-on",
        "x-envoy-max-retries",
        "x-envoy-retriable-status-codes",
        "x-envoy-retriable-header-names",
        "x-envoy-hedge-on-per-try-timeout",
    }
)
"""Request headers that are read here and not sent on."""

MAX_ASKED_RETRIES = 100
"""Most retries that a request may ask for itself, unless the policy has more. Envoy has no such limit; here these headers
may be those of a caller further out, handed on by an application that forwards what it was sent."""


def parse_retry_on(words: Iterable[str]) -> RetryOn:
    """Return the bits of words; blanks around them are dropped, unknown ones mean nothing."""
    bits = RetryOn(0)
    for word in words:
        word = word.strip()
        bits |= _WORDS.get(word) or _GRPC_WORDS.get(word) or RetryOn(0)
    return bits


def _split(headers: Headers, name: str) -> list[str]:
    return [word for part in (headers.get(name) or "").split(",") if (word := part.strip())]


def _parse_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _grpc_status(response: Response) -> int | None:
    if response.grpc_status is not None:
        return response.grpc_status
    found = response.headers.find("grpc-status")  # asked of every response
    return None if found is None else _parse_number(found)


def _parse_words(headers: Headers, name: str, known: dict[str, RetryOn]) -> RetryOn:
    bits = RetryOn(0)
    for word in _split(headers, name):
        bits |= known.get(word, RetryOn(0))
    return bits


class RetryRules:
    """What is repeated, and how often. Immutable.

    Attributes:
        on: The conditions; may be empty, then nothing is.
        num_retries: Attempts beyond the first.
        can_hedge: A slow attempt may be hedged: there was something to retry on to begin with.
        needs_request: The request has a say: `for_request` must be asked.
        spares_ok: A gRPC call that went well is not repeated, whatever it is.
        reads_headers: The headers of a response have a say.
        spares_good: Nor is a response with a status below 400.
    """

    __slots__ = (
        "_codes",
        "_names",
        "_reads_status",
        "_request_tests",
        "_response_tests",
        "can_hedge",
        "needs_request",
        "num_retries",
        "on",
        "reads_headers",
        "spares_good",
        "spares_ok",
    )

    def __init__(
        self,
        on: RetryOn,
        num_retries: int = 1,
        *,
        codes: frozenset[int] = frozenset(),
        response_tests: tuple[Callable[[Headers], bool], ...] = (),
        names: frozenset[str] = frozenset(),
        request_tests: tuple[HeadTest, ...] = (),
        can_hedge: bool | None = None,
        reads_status: bool = False,
    ) -> None:
        """Make rules.

        Args:
            codes: HTTP statuses, for `retriable-status-codes`.
            response_tests: On the response's headers, for `retriable-headers`.
            names: Response headers whose presence is enough, for `retriable-headers`.
            can_hedge: None: if there is a condition.
            reads_status: One of the tests is on `:status`.
            request_tests: When there are any, one must hold for the request, else nothing is repeated.
        """
        self.on = on.value
        self.num_retries = num_retries
        self.can_hedge = bool(on) if can_hedge is None else can_hedge
        self.needs_request = bool(request_tests)
        self._codes = codes
        self._response_tests = response_tests
        self._names = names
        self._request_tests = request_tests
        self._reads_status = reads_status
        self.spares_ok = not (self.on & (_HEADERS | _RATE_LIMITED) or (self.on & _STATUS_CODES and 200 in codes))
        self.reads_headers = bool(self.on & (_HEADERS | _RATE_LIMITED | _GRPC))
        self.spares_good = not (self.reads_headers or (self.on & _STATUS_CODES and any(code < 400 for code in codes)))

    @classmethod
    def of_policy(cls, policy: RetryPolicy | None) -> "RetryRules":
        """Compile a policy; None: only what a request asks for by header.

        Raises:
            ValueError: A header matcher's regex is not valid.
        """
        if policy is None:
            return cls(RetryOn(0))
        return cls(
            parse_retry_on(policy.retry_on),
            policy.num_retries,
            codes=frozenset(policy.retriable_status_codes),
            response_tests=tuple(map(compile_response_header, policy.retriable_headers)),
            request_tests=tuple(map(compile_header, policy.retriable_request_headers)),
            reads_status=any(matcher.name == ":status" for matcher in policy.retriable_headers),
        )

    def for_request(self, head: RequestHead) -> "RetryRules":
        """Add what a request asks for.

        `x-envoy-retry-on` and `x-envoy-retry-grpc-on` add conditions (with one retry when there is no policy),
        `x-envoy-max-retries` replaces the number if there is a condition, `x-envoy-retriable-status-codes` and
        `x-envoy-retriable-header-names` extend the lists. Values that cannot be read are passed over.

        Args:
            head: With the header mutations of the route applied: a header added there counts too.
        """
        on = self.on
        headers = head.headers
        on |= _parse_words(headers, "x-envoy-retry-on", _WORDS)
        on |= _parse_words(headers, "x-envoy-retry-grpc-on", _GRPC_WORDS)
        can_hedge = bool(self.on) or any(name in headers for name in ("x-envoy-retry-on", "x-envoy-retry-grpc-on"))
        if self._request_tests and not any(test(head) for test in self._request_tests):
            on = 0  # whatever the request asks for
        # Where nothing is repeated the header is not read: the policy's number bounds what is hedged (as seen in Envoy).
        num_retries = _parse_number((headers.get("x-envoy-max-retries") or "").strip()) if on else None
        asked_names = [name.lower() for name in _split(headers, "x-envoy-retriable-header-names")]
        listed = (_parse_number(word) for word in _split(headers, "x-envoy-retriable-status-codes"))
        return RetryRules(
            RetryOn(on),
            self.num_retries if num_retries is None else min(num_retries, max(self.num_retries, MAX_ASKED_RETRIES)),
            codes=self._codes.union(code for code in listed if code is not None),
            response_tests=self._response_tests,
            names=self._names.union(asked_names),
            can_hedge=can_hedge,
            reads_status=self._reads_status or ":status" in asked_names,
        )

    def wants_response(self, response: Response) -> bool:
        """Whether a response is one to repeat after.

        `x-envoy-ratelimited` in the response decides alone. gRPC's words look at the status that the response headers
        carry, and the request need not be a gRPC request, as in Envoy.
        """
        on = self.on
        if not on:
            return False
        wants = (
            (on & _BY_HTTP_STATUS and self._wants_status(response.status))
            or (on & _HEADERS and self._has_retriable_header(response))
            or (on & _GRPC and on & _BY_GRPC_STATUS.get(_grpc_status(response), 0))
        )
        # Asked last, as hardly any response has it and a look at the headers is dear.
        if (wants or on & _RATE_LIMITED) and "x-envoy-ratelimited" in response.headers:
            return bool(on & _RATE_LIMITED)
        return bool(wants)

    def _wants_status(self, status: int) -> bool:
        on = self.on
        return bool(
            (on & _SERVER_ERROR and 500 <= status <= 599)
            or (on & _GATEWAY_ERROR and status in _GATEWAY_CODES)
            or (on & _RETRIABLE_4XX and status == 409)
            or (on & _STATUS_CODES and status in self._codes)
        )

    def _has_retriable_header(self, response: Response) -> bool:
        headers = response.headers
        if self._reads_status:  # as a header, which it is in Envoy
            headers = Headers(((":status", str(response.status)), *headers.items))
        if any(name in headers for name in self._names):
            return True
        return any(test(headers) for test in self._response_tests)

    def wants_failure(self, failure: Failure, *, is_grpc: bool = False, sent_before: bool = False) -> bool:
        """Whether a failure is one to repeat after.

        Args:
            is_grpc: The caller speaks gRPC, which knows a lost connection as UNAVAILABLE and a timeout as
                DEADLINE_EXCEEDED (A6, A44).
            sent_before: An attempt before this one has sent a byte of the request.
        """
        on, kind = self.on, failure.kind
        if on & _ANY_RESET:
            return True
        # What never had a connection sent nothing, whatever an attempt before it did; what timed out is taken as sent.
        nothing_sent = kind in _NO_CONNECTION or not (failure.request_sent or sent_before)
        if on & _RESET_BEFORE_REQUEST and nothing_sent and kind is not FailureKind.TIMEOUT:
            return True
        if on & _CONNECT_FAILURE and kind in _NO_CONNECTION:
            return True
        if on & _REFUSED_STREAM and kind is FailureKind.REFUSED_STREAM:
            return True
        return is_grpc and bool(on & _BY_GRPC_STATUS.get(grpc_code(failure), 0))

    def wants_grpc_code(self, outcome: Outcome) -> bool:
        """Whether the status of an outcome, as a gRPC caller sees it, is one of the policy's gRPC words (A44)."""
        return bool(self.on & _BY_GRPC_STATUS.get(grpc_code(outcome), 0))


NO_RETRIES = RetryRules(RetryOn(0))
"""Nothing is repeated."""
