"""Conditions on strings and headers; the tables are Envoy's, checked against Envoy 1.40."""

import sys

import pytest

from meshlib.matching import (
    ascii_lower,
    compile_entries,
    compile_header,
    compile_regex,
    compile_response_header,
    compile_string,
    describe_header,
    parse_int,
)
from meshlib.model.matcher import HeaderMatcher, RangeMatcher, StringKind, StringMatcher
from meshlib.model.request import Headers, RequestHead

EXACT, PREFIX, SUFFIX, CONTAINS, REGEX = (
    StringKind.EXACT,
    StringKind.PREFIX,
    StringKind.SUFFIX,
    StringKind.CONTAINS,
    StringKind.REGEX,
)


def exact(value: str, *, ignore_case: bool = False) -> StringMatcher:
    return StringMatcher(EXACT, value, ignore_case)


def request(*headers: tuple[str, str], is_grpc: bool = False) -> RequestHead:
    return RequestHead("GET", "svc", "/a?b=c", Headers(headers), is_grpc=is_grpc)


@pytest.mark.parametrize(
    ("kind", "value", "ignore_case", "text", "expected"),
    [
        (EXACT, "a", False, "a", True),
        (EXACT, "a", False, "A", False),
        (EXACT, "A", True, "a", True),
        (EXACT, "", False, "", True),
        (EXACT, "", False, "a", False),
        (PREFIX, "ab", False, "abc", True),
        (PREFIX, "ab", False, "Abc", False),
        (PREFIX, "AB", True, "abc", True),
        (SUFFIX, "bc", False, "abc", True),
        (SUFFIX, "bc", False, "abcd", False),
        (SUFFIX, "BC", True, "abc", True),
        (CONTAINS, "b", False, "abc", True),
        (CONTAINS, "B", False, "abc", False),
        (CONTAINS, "B", True, "abc", True),
        (EXACT, "Ä", True, "ä", False),
        (REGEX, "a.*", False, "abc", True),
        (REGEX, "b", False, "abc", False),
        (REGEX, "a|ab", False, "ab", True),
    ],
)
def test_string_matcher(kind: StringKind, value: str, ignore_case: bool, text: str, expected: bool) -> None:
    assert compile_string(StringMatcher(kind, value, ignore_case))(text) == expected


def test_regex_reads_bytes_as_latin1() -> None:
    matches = compile_regex("a.c")
    assert matches("a\xe9c") is True
    assert matches("a\u20acc") is False  # three bytes on the wire


def test_regex_matches_the_whole_text_also_when_it_is_large() -> None:
    matches = compile_regex("(a|b)*c{1000}")
    assert matches("ab" + "c" * 1000) is True
    assert matches("ab" + "c" * 999) is False


@pytest.mark.parametrize("pattern", ["x*a?", "(x|b)*c{0,1000}"])
def test_long_texts_are_matched_and_not_kept(pattern: str) -> None:
    matches = compile_regex(pattern)
    text = "x" * 100_000
    references = sys.getrefcount(text)
    assert matches(text)
    assert not matches(text + "y")
    assert references == sys.getrefcount(text)


def test_regex_answers_the_same_twice() -> None:
    matches = compile_regex("[0-9]+")
    assert [matches(text) for text in ("1", "x", "1", "x")] == [True, False, True, False]


def test_bad_regex_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"missing \)"):
        compile_regex("(")


def test_regex_with_ignore_case_is_refused() -> None:
    with pytest.raises(ValueError, match="ignore_case"):
        compile_string(StringMatcher(REGEX, "a", ignore_case=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", 3), (" 3", 3), ("3 ", 3), ("+3", 3), ("-3", -3), ("1.0", None), ("0x1", None), ("", None), ("+", None),
     ("1_000", None), ("٣", None), ("9223372036854775807", 2**63 - 1), ("9223372036854775808", None), ("- 1", None)],
)  # fmt: skip
def test_integers(text: str, expected: int | None) -> None:
    assert parse_int(text) == expected


def test_ascii_lower_leaves_other_letters() -> None:
    assert ascii_lower("AÄZ") == "aÄz"


A = exact("a")
PRESENT: list[tuple[HeaderMatcher, tuple[str, ...], bool]] = [
    # a missing header
    (HeaderMatcher("h", A), (), False),
    (HeaderMatcher("h", A, invert=True), (), False),
    (HeaderMatcher("h", A, treat_missing_as_empty=True), (), False),
    (HeaderMatcher("h", A, invert=True, treat_missing_as_empty=True), (), True),
    (HeaderMatcher("h", exact(""), treat_missing_as_empty=True), (), True),
    (HeaderMatcher("h", True), (), False),
    (HeaderMatcher("h", True, invert=True), (), True),
    (HeaderMatcher("h", False), (), True),
    (HeaderMatcher("h", False, invert=True), (), False),
    (HeaderMatcher("h", True, treat_missing_as_empty=True), (), True),
    (HeaderMatcher("h", False, treat_missing_as_empty=True), (), False),
    # one entry
    (HeaderMatcher("h", True), ("",), True),
    (HeaderMatcher("h", False), ("x",), False),
    (HeaderMatcher("h", A), ("a",), True),
    (HeaderMatcher("h", A, invert=True), ("a",), False),
    (HeaderMatcher("h", A, invert=True), ("b",), True),
    (HeaderMatcher("h", exact("")), ("x",), False),
    (HeaderMatcher("h", exact(""), exact_empty_matches_any=True), ("x",), True),
    (HeaderMatcher("h", exact(""), exact_empty_matches_any=True), (), False),
    # several entries: each by itself, the inversion of all
    (HeaderMatcher("h", A), ("b", "a"), True),
    (HeaderMatcher("h", A), ("b,a",), False),
    (HeaderMatcher("h", A, invert=True), ("b", "a"), False),
    (HeaderMatcher("h", A, invert=True), ("b", "c"), True),
    # ranges
    (HeaderMatcher("h", RangeMatcher(0, 5)), ("0",), True),
    (HeaderMatcher("h", RangeMatcher(0, 5)), ("5",), False),
    (HeaderMatcher("h", RangeMatcher(-3, 0)), (" -3",), True),
    (HeaderMatcher("h", RangeMatcher(0, 5)), ("x",), False),
    (HeaderMatcher("h", RangeMatcher(0, 5), invert=True), ("x",), True),
]


@pytest.mark.parametrize(("matcher", "entries", "expected"), PRESENT)
def test_header_matcher(matcher: HeaderMatcher, entries: tuple[str, ...], expected: bool) -> None:
    assert compile_entries(matcher)(entries) == expected


@pytest.mark.parametrize(("matcher", "entries", "expected"), PRESENT)
def test_header_matcher_on_a_request(matcher: HeaderMatcher, entries: tuple[str, ...], expected: bool) -> None:
    assert compile_header(matcher)(request(*(("h", entry) for entry in entries))) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [(":method", "GET"), (":authority", "svc"), ("host", "svc"), (":path", "/a?b=c"), (":scheme", "http")],
)
def test_pseudo_headers_can_be_matched(name: str, value: str) -> None:
    assert compile_header(HeaderMatcher(name, exact(value)))(request()) is True


def test_repeated_inline_header_is_one_value() -> None:
    head = request(("accept", "a"), ("accept", "b"))
    assert compile_header(HeaderMatcher("accept", exact("a,b")))(head) is True
    assert compile_header(HeaderMatcher("accept", exact("a")))(head) is False


def test_repeated_cookie_lines_stay_apart() -> None:
    head = request(("cookie", "a"), ("cookie", "b"))
    assert compile_header(HeaderMatcher("cookie", exact("a")))(head) is True


def test_grpc_joins_entries() -> None:
    head = request(("x", "a"), ("x", "b"), is_grpc=True)
    assert compile_header(HeaderMatcher("x", exact("a,b")))(head) is True
    assert compile_header(HeaderMatcher("x", A))(head) is False


@pytest.mark.parametrize("name", ["x-bin", "te", ":path", ":method", ":scheme"])
def test_grpc_client_conditions_do_not_see(name: str) -> None:
    head = request(("x-bin", "1"), ("te", "trailers"), is_grpc=True)
    assert compile_header(HeaderMatcher(name, True))(head) is False


def test_grpc_content_type_is_constant() -> None:
    assert compile_header(HeaderMatcher("content-type", exact("application/grpc")))(request(is_grpc=True)) is True


def test_grpc_server_conditions_see_method_and_path() -> None:
    head = RequestHead("POST", "svc", "/p.S/M", Headers(), is_grpc=True)
    assert compile_header(HeaderMatcher(":path", exact("/p.S/M")), server=True)(head) is True
    assert compile_header(HeaderMatcher(":method", exact("POST")), server=True)(head) is True
    assert compile_header(HeaderMatcher(":scheme", True), server=True)(head) is False


def test_response_header() -> None:
    holds = compile_response_header(HeaderMatcher("x-retry", exact("1")))
    assert holds(Headers((("x-retry", "0"), ("x-retry", "1")))) is True
    assert holds(Headers()) is False


def test_repeated_inline_response_header_is_one_value() -> None:
    holds = compile_response_header(HeaderMatcher("vary", exact("a,b")))
    assert holds(Headers((("vary", "a"), ("vary", "b")))) is True


@pytest.mark.parametrize(
    ("matcher", "expected"),
    [
        (HeaderMatcher("x", A), 'header x exact "a"'),
        (HeaderMatcher("x", A, invert=True), 'header x not exact "a"'),
        (HeaderMatcher("x", True), "header x present"),
        (HeaderMatcher("x", True, invert=True), "header x absent"),
        (HeaderMatcher("x", RangeMatcher(1, 2)), "header x integer in [1, 2)"),
        (HeaderMatcher("x", exact(""), exact_empty_matches_any=True), "header x any value"),
        (HeaderMatcher("x", A, treat_missing_as_empty=True), 'header x exact "a", missing counts as empty'),
        (HeaderMatcher("x", exact("a", ignore_case=True)), 'header x exact "a" (any case)'),
    ],
)
def test_description(matcher: HeaderMatcher, expected: str) -> None:
    assert describe_header(matcher) == expected
