import pytest
import xxhash

from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import HashPolicy, MadeCookie, RegexRewrite
from meshlib.routing.hash_policy import CookieMaker, compile_hash


def digest(text: str, seed: int = 0) -> int:
    return xxhash.xxh64_intdigest(text.encode(), seed)


def rotl(value: int) -> int:
    return (value << 1 | value >> 63) & (2**64 - 1)


def hash_of(
    policies: list[HashPolicy], *headers: tuple[str, str], path: str = "/", is_grpc: bool = False
) -> int | None:
    return compile_hash(policies)(RequestHead("GET", "svc", path, Headers(headers), is_grpc=is_grpc))


HEADER = HashPolicy("header", "x")


def test_header() -> None:
    assert hash_of([HEADER], ("x", "a")) == digest("a")
    assert hash_of([HEADER]) is None


def test_entries_of_a_header_are_sorted_and_chained() -> None:
    expected = digest("b", digest("a"))
    assert hash_of([HEADER], ("x", "b"), ("x", "a")) == expected
    assert hash_of([HEADER], ("x", "a"), ("x", "b")) == expected


def test_grpc_joins_entries() -> None:
    assert hash_of([HEADER], ("x", "b"), ("x", "a"), is_grpc=True) == digest("b,a")


def test_regex_rewrites_the_value() -> None:
    policy = HashPolicy("header", "x", regex=RegexRewrite("^user-([0-9]+).*", r"\1"))
    assert hash_of([policy], ("x", "user-7-abc")) == digest("7")


@pytest.mark.parametrize(("line", "expected"), [("a=1; s=v", "v"), ('s="v"', "v"), ("s=v; s=w", "v")])
def test_cookie(line: str, expected: str) -> None:
    assert hash_of([HashPolicy("cookie", "s")], ("cookie", line)) == digest(expected)


def test_missing_cookie_has_no_value() -> None:
    assert hash_of([HashPolicy("cookie", "s")], ("cookie", "a=1; s=")) is None


def test_query_parameter() -> None:
    policy = [HashPolicy("query_parameter", "q")]
    assert hash_of(policy, path="/?q=1&q=2") == digest("1")
    assert hash_of(policy, path="/?q") == digest("")
    assert hash_of(policy, path="/") is None


def test_values_are_combined_in_order() -> None:
    policies = [HEADER, HashPolicy("header", "y")]
    assert hash_of(policies, ("x", "a"), ("y", "b")) == rotl(digest("a")) ^ digest("b")
    assert hash_of(policies, ("y", "b")) == digest("b")


def test_terminal_policy_ends_the_list_once_there_is_a_hash() -> None:
    policies = [HashPolicy("header", "x", terminal=True), HashPolicy("header", "y")]
    assert hash_of(policies, ("x", "a"), ("y", "b")) == digest("a")
    assert hash_of(policies, ("y", "b")) == digest("b")


@pytest.mark.parametrize("kind", ["source_ip", "filter_state"])
def test_sources_that_a_client_lacks_yield_nothing(kind: str) -> None:
    assert hash_of([HashPolicy(kind, "k")]) is None


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="moon_phase"):
        compile_hash([HashPolicy("moon_phase")])


MADE = HashPolicy("cookie", "s", made=MadeCookie(5, "/p", (("SameSite", "Lax"), ("Secure", ""))))


@pytest.mark.parametrize("line", ["a=1", "s="])
def test_a_cookie_is_made_for_a_caller_without(line: str) -> None:
    maker = CookieMaker(0xCD23ADD25D2631C7)
    head = RequestHead("GET", "svc", "/", Headers([("cookie", line)]))
    assert digest("cd23add25d2631c7") == compile_hash([MADE])(head, maker)
    # As a real Envoy writes it.
    assert ['s="cd23add25d2631c7"; Max-Age=5; Path=/p; SameSite=Lax; Secure; HttpOnly'] == maker.lines


def test_a_made_cookie_comes_back_to_the_same_hash() -> None:
    maker = CookieMaker(7)
    first = compile_hash([MADE])(RequestHead("GET", "svc", "/", Headers()), maker)
    cookie = maker.lines[0].partition(";")[0]
    assert first == hash_of([MADE], ("cookie", cookie))


def test_a_cookie_for_the_session_names_no_age() -> None:
    maker = CookieMaker(7)
    compile_hash([HashPolicy("cookie", "s", made=MadeCookie())])(RequestHead("GET", "svc", "/", Headers()), maker)
    assert ['s="0000000000000007"; HttpOnly'] == maker.lines


def test_of_grpc_calls_only_headers_are_hashed() -> None:
    query = HashPolicy("query_parameter", "q")
    assert hash_of([MADE, query], ("cookie", "s=v"), path="/?q=1", is_grpc=True) is None
