"""Which outcomes a policy's words repeat; the table of resets is Envoy's `wouldRetryFromReset`."""

import pytest

from meshlib.model.matcher import HeaderMatcher, StringKind, StringMatcher
from meshlib.model.outcome import GRPC_OK, Failure, FailureKind, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.resilience.retry import RetryOn, RetryRules, parse_retry_on

WORDS = ("connect-failure", "refused-stream", "reset-before-request", "reset", "5xx", "gateway-error")
OTHER_WORDS = (
    "retriable-4xx",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "unavailable",
    "nonsense",
)


def rules(*words: str, **options: object) -> RetryRules:
    return RetryRules.of_policy(RetryPolicy(frozenset(words), **options))  # type: ignore[arg-type]


def head(**headers: str) -> RequestHead:
    return RequestHead("GET", "a", "/", Headers((name.replace("_", "-"), value) for name, value in headers.items()))


def response(status: int, **headers: str) -> Response:
    return Response(status, Headers((name.replace("_", "-"), value) for name, value in headers.items()))


@pytest.mark.parametrize(
    ("failure", "sent_before", "expected"),
    [
        # connect-failure, refused-stream, reset-before-request, reset, 5xx, gateway-error
        (Failure(FailureKind.CONNECT, False), False, (1, 0, 1, 1, 1, 1)),
        (Failure(FailureKind.CONNECT, False), True, (1, 0, 1, 1, 1, 1)),
        (Failure(FailureKind.IDENTITY, False), False, (1, 0, 1, 1, 1, 1)),
        (Failure(FailureKind.RESET, False), False, (0, 0, 1, 1, 1, 1)),
        (Failure(FailureKind.RESET, False), True, (0, 0, 0, 1, 1, 1)),
        (Failure(FailureKind.RESET, True), False, (0, 0, 0, 1, 1, 1)),
        (Failure(FailureKind.STREAM_RESET, True), False, (0, 0, 0, 1, 1, 1)),
        (Failure(FailureKind.REFUSED_STREAM, False), False, (0, 1, 1, 1, 1, 1)),
        (Failure(FailureKind.REFUSED_STREAM, True), False, (0, 1, 0, 1, 1, 1)),
        (Failure(FailureKind.TIMEOUT, True), False, (0, 0, 0, 1, 1, 1)),
        (Failure(FailureKind.TIMEOUT, False), False, (0, 0, 0, 1, 1, 1)),
    ],
)
def test_table_of_resets(failure: Failure, sent_before: bool, expected: tuple[int, ...]) -> None:
    found = tuple(int(rules(word).wants_failure(failure, sent_before=sent_before)) for word in WORDS)

    assert found == expected


@pytest.mark.parametrize("kind", list(FailureKind))
@pytest.mark.parametrize("word", OTHER_WORDS)
def test_other_words_do_not_repeat_after_a_reset(kind: FailureKind, word: str) -> None:
    assert not rules(word).wants_failure(Failure(kind, False))


@pytest.mark.parametrize(
    ("word", "statuses"),
    [
        ("5xx", {500, 501, 502, 503, 504, 599}),
        ("gateway-error", {502, 503, 504}),
        ("retriable-4xx", {409}),
        ("retriable-status-codes", {404, 501}),
        ("connect-failure", set()),
        ("reset", set()),
        ("unavailable", set()),
    ],
)
def test_statuses(word: str, statuses: set[int]) -> None:
    policy = rules(word, retriable_status_codes=(404, 501))
    asked = (200, 404, 409, 429, 499, 500, 501, 502, 503, 504, 599, 600)

    assert {status for status in asked if policy.wants_response(Response(status))} == statuses


def test_status_codes_need_their_word() -> None:
    assert not rules("retriable-4xx", retriable_status_codes=(404,)).wants_response(Response(404))


def test_retriable_headers_need_their_word_and_a_match() -> None:
    matcher = HeaderMatcher("x-again", StringMatcher(StringKind.EXACT, "yes"))
    policy = rules("retriable-headers", retriable_headers=(matcher,))

    assert policy.wants_response(response(200, x_again="yes"))
    assert not policy.wants_response(response(200, x_again="no"))
    assert not rules("5xx", retriable_headers=(matcher,)).wants_response(response(200, x_again="yes"))


def test_rate_limited_response_is_repeated_by_its_own_word_alone() -> None:
    limited = response(503, x_envoy_ratelimited="true")

    assert not rules("5xx", "gateway-error", "retriable-status-codes").wants_response(limited)
    assert rules("envoy-ratelimited").wants_response(limited)
    assert rules("envoy-ratelimited").wants_response(response(200, x_envoy_ratelimited="")), "any value, any status"
    assert not rules("envoy-ratelimited").wants_response(response(503))


@pytest.mark.parametrize(
    ("word", "code"),
    [("cancelled", 1), ("deadline-exceeded", 4), ("resource-exhausted", 8), ("internal", 13), ("unavailable", 14)],
)
def test_grpc_words_look_at_the_status_in_the_headers(word: str, code: int) -> None:
    policy = rules(word)

    assert {status for status in range(17) if policy.wants_response(Response(200, grpc_status=status))} == {code}
    assert policy.wants_response(response(200, grpc_status=str(code))), "the request need not be a gRPC one"
    assert not policy.wants_response(response(200, grpc_status="x"))
    assert policy.wants_grpc_code(Response(200, grpc_status=code))


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (FailureKind.CONNECT, "unavailable"),
        (FailureKind.RESET, "unavailable"),
        (FailureKind.STREAM_RESET, "unavailable"),
        (FailureKind.REFUSED_STREAM, "unavailable"),
        (FailureKind.TIMEOUT, "deadline-exceeded"),
    ],
)
def test_grpc_caller_knows_failures_by_their_status(kind: FailureKind, word: str) -> None:
    assert rules(word).wants_failure(Failure(kind, True), is_grpc=True)
    assert not rules("internal").wants_failure(Failure(kind, True), is_grpc=True)


def test_words_are_trimmed_and_unknown_ones_mean_nothing() -> None:
    assert (
        parse_retry_on([" 5xx ", "reset", "http3-post-connect-failure", "what"]) == RetryOn.SERVER_ERROR | RetryOn.RESET
    )
    assert not rules("what").wants_response(Response(500))


def test_without_a_policy_nothing_is_repeated() -> None:
    nothing = RetryRules.of_policy(None)

    assert not nothing.on
    assert not nothing.wants_response(Response(503))
    assert not nothing.wants_failure(Failure(FailureKind.CONNECT, False))


def test_request_can_ask_for_retries_without_a_policy() -> None:
    found = RetryRules.of_policy(None).for_request(head(x_envoy_retry_on="5xx, nonsense"))

    assert found.wants_response(Response(500))
    assert found.num_retries == 1


def test_request_adds_conditions_to_the_policy() -> None:
    found = rules("connect-failure", num_retries=2).for_request(head(x_envoy_retry_grpc_on="unavailable,5xx"))

    assert found.wants_failure(Failure(FailureKind.CONNECT, False))
    assert found.wants_response(response(200, grpc_status="14"))
    assert not found.wants_response(Response(500)), "5xx is no word of x-envoy-retry-grpc-on"
    assert found.num_retries == 2


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("7", 7), ("x", 2), ("-1", 2), ("", 2)])
def test_request_replaces_the_number(text: str, expected: int) -> None:
    assert rules("5xx", num_retries=2).for_request(head(x_envoy_max_retries=text)).num_retries == expected


def test_the_number_that_a_request_asks_for_is_not_read_where_nothing_is_repeated() -> None:
    """It bounds hedges too: Envoy 1.40 then hedges as often as the policy says."""
    asked = head(x_envoy_max_retries="0")
    may = RetryRules.of_policy(
        RetryPolicy(
            frozenset({"5xx"}),
            retriable_request_headers=(HeaderMatcher("x-may", StringMatcher(StringKind.EXACT, "1")),),
        )
    )
    assert (0, 1) == (may.for_request(asked).on, may.for_request(asked).num_retries)
    allowed = head(x_envoy_max_retries="0", x_may="1")
    assert 0 == may.for_request(allowed).num_retries
    assert 1 == rules("nonsense").for_request(asked).num_retries


@pytest.mark.parametrize(("own", "asked", "expected"), [(2, "999999999", 100), (300, "999999", 300), (300, "7", 7)])
def test_request_cannot_ask_for_retries_without_end(own: int, asked: str, expected: int) -> None:
    assert rules("5xx", num_retries=own).for_request(head(x_envoy_max_retries=asked)).num_retries == expected


def test_request_extends_codes_and_header_names() -> None:
    policy = rules("retriable-status-codes", "retriable-headers", retriable_status_codes=(418,))
    found = policy.for_request(
        head(x_envoy_retriable_status_codes="404, 405,x", x_envoy_retriable_header_names="X-A, x-b")
    )

    assert {status for status in (404, 405, 418, 500) if found.wants_response(Response(status))} == {404, 405, 418}
    assert found.wants_response(response(200, x_a="1"))
    assert found.wants_response(response(200, x_b=""))
    assert not found.wants_response(response(200, x_c="1"))


def test_requests_that_match_none_of_the_request_headers_are_not_repeated() -> None:
    policy = rules("5xx", retriable_request_headers=(HeaderMatcher("x-retry-me", True),))

    assert policy.needs_request
    assert policy.for_request(head(x_retry_me="1")).wants_response(Response(500))
    assert not policy.for_request(head()).wants_response(Response(500))
    # As seen in Envoy 1.40: what the request asks for itself is cleared too.
    assert not policy.for_request(head(x_envoy_retry_on="reset")).wants_failure(Failure(FailureKind.RESET, True))


def test_request_headers_that_must_match_clear_what_the_request_asks_for_too():
    policy = RetryPolicy(frozenset({"5xx"}), retriable_request_headers=(HeaderMatcher("x-may", True),))
    head = RequestHead("GET", "a", "/", Headers((("x-envoy-retry-on", "retriable-4xx"),)))
    rules = RetryRules.of_policy(policy).for_request(head)
    assert rules.on == 0
    assert rules.can_hedge


def test_status_is_a_header_too():
    policy = RetryPolicy(
        frozenset({"retriable-headers"}),
        retriable_headers=(HeaderMatcher(":status", StringMatcher(StringKind.EXACT, "404")),),
    )
    rules = RetryRules.of_policy(policy)
    assert [rules.wants_response(Response(status)) for status in (404, 500)] == [True, False]


@pytest.mark.parametrize("words", [(), *((word,) for word in (*WORDS, *OTHER_WORDS)), WORDS + OTHER_WORDS])
@pytest.mark.parametrize("codes", [(), (200,), (503,)])
def test_no_rule_wants_the_calls_that_it_spares(words: tuple[str, ...], codes: tuple[int, ...]) -> None:
    absent = HeaderMatcher("x-a", StringMatcher(StringKind.EXACT, "1"), invert=True)
    found = rules(*words, retriable_status_codes=codes, retriable_headers=(absent,))
    assert not (found.spares_ok and found.wants_response(GRPC_OK))
    if set(words) <= {"unavailable", "5xx", "connect-failure", "refused-stream", "reset"}:
        assert found.spares_ok
