import pytest

from meshlib.model.matcher import Fraction, PathKind, PathMatcher, QueryMatcher, StringKind, StringMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.matchers import (
    compile_path,
    compile_query,
    describe_path,
    describe_query,
    in_fraction,
    is_grpc_request,
    path_of,
    query_value,
)

PREFIX, PATH, REGEX, SEPARATED = PathKind.PREFIX, PathKind.PATH, PathKind.REGEX, PathKind.SEPARATED_PREFIX


@pytest.mark.parametrize(
    ("kind", "value", "case_sensitive", "path", "expected"),
    [
        (PREFIX, "/", True, "/x", True),
        (PREFIX, "/a", True, "/ab", True),
        (PREFIX, "/a", True, "/A", False),
        (PREFIX, "/a", False, "/AB", True),
        (PATH, "/a", True, "/a", True),
        (PATH, "/a", True, "/a/", False),
        (PATH, "/A", False, "/a", True),
        (SEPARATED, "/s", True, "/s", True),
        (SEPARATED, "/s", True, "/s/", True),
        (SEPARATED, "/s", True, "/s/1", True),
        (SEPARATED, "/s", True, "/sx", False),
        (SEPARATED, "/S", False, "/s/1", True),
        (REGEX, "/a/[0-9]+", True, "/a/12", True),
        (REGEX, "/a", True, "/a/12", False),
        (REGEX, "/a", False, "/A", False),  # a regex decides about case itself
        (PathKind.TEMPLATE, "/v/{x}/w/**", True, "/v/1/w/", True),
        (PathKind.CONNECT, "", True, "/any", True),
    ],
)
def test_path(kind: PathKind, value: str, case_sensitive: bool, path: str, expected: bool) -> None:
    assert compile_path(PathMatcher(kind, value, case_sensitive))(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"), [("/a", "/a"), ("/a?b", "/a"), ("/a#b", "/a"), ("/a?b#c", "/a"), ("/a#b?c", "/a"), ("", "")]
)
def test_path_without_query(path: str, expected: str) -> None:
    assert path_of(path) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", None), ("/?q=1", "1"), ("/?a=2&q=1", "1"), ("/?q=1&q=2", "1"), ("/?q", ""), ("/?q=", ""), ("/?%71=1", None),
     ("/?q=a=b", "a=b"), ("/?Q=1", None), ("/?q=%20", "%20"), ("/?q=1#x", "1")],
)  # fmt: skip
def test_query_value_is_the_first_and_undecoded(path: str, expected: str | None) -> None:
    assert query_value(path, "q") == expected


@pytest.mark.parametrize(
    ("test", "path", "expected"),
    [
        (StringMatcher(StringKind.EXACT, "1"), "/?q=1", True),
        (StringMatcher(StringKind.EXACT, "1"), "/", False),
        (True, "/?q", True),
        (True, "/", False),
        (False, "/?q", False),
        (False, "/", True),
    ],
)
def test_query_condition(test: StringMatcher | bool, path: str, expected: bool) -> None:
    assert compile_query(QueryMatcher("q", test))(RequestHead("GET", "s", path, Headers())) == expected


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [("application/grpc", True), ("application/grpc+proto", True), ("application/grpcx", False), ("text/plain", False)],
)
def test_grpc_request_by_content_type(content_type: str, expected: bool) -> None:
    head = RequestHead("POST", "s", "/", Headers((("content-type", content_type),)))
    assert is_grpc_request(head) == expected


def test_grpc_call_is_a_grpc_request() -> None:
    assert is_grpc_request(RequestHead("POST", "s", "/", Headers(), is_grpc=True)) is True


def test_fraction_counts_exactly_its_residues() -> None:
    assert sum(in_fraction(Fraction(7, 100), number) for number in range(100)) == 7
    assert in_fraction(Fraction(0, 100), 0) is False
    assert all(in_fraction(Fraction(100, 100), number) for number in range(100))


def test_descriptions() -> None:
    assert describe_path(PathMatcher(PREFIX, "/a", case_sensitive=False)) == 'path prefix "/a" (any case)'
    assert describe_path(PathMatcher(PathKind.CONNECT, "")) == "method CONNECT"
    assert describe_query(QueryMatcher("q", True)) == "query parameter q present"
    assert describe_query(QueryMatcher("q", StringMatcher(StringKind.EXACT, "1"))) == 'query parameter q exact "1"'
