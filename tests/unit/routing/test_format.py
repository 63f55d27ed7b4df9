import pytest

from meshlib.model.request import Headers, RequestHead
from meshlib.routing.format import Facts, check_format, compile_format

FACTS = Facts(route_name="r", cluster="c")
HEAD = RequestHead("GET", "svc", "/a?q=1&%72=b%20c", Headers((("x-a", "abc"), ("x-a", "second"))))
RESPONSE = Headers((("x-up", "1"),))


def render(text: str, facts: Facts = FACTS) -> str:
    compiled = compile_format(text, facts)
    return compiled if isinstance(compiled, str) else compiled(HEAD, RESPONSE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("50%%", "50%"),
        ("a%REQ(x-no)%b", "ab"),
        ("%REQ(X-A)%", "abc"),
        ("%REQ(x-a):1%", "a"),
        ("%REQ(x-no?x-a)%", "abc"),
        ("%REQUEST_HEADER(x-a)%", "abc"),
        ("%REQ(:path)% %REQ(:method)% %REQ(:authority)%", "/a?q=1&%72=b%20c GET svc"),
        ("%RESP(x-up)%/%RESPONSE_HEADER(x-no?x-up)%", "1/1"),
        ("%ROUTE_NAME%@%UPSTREAM_CLUSTER%", "r@c"),
        ("%PROTOCOL%", "HTTP/1.1"),
        ("%QUERY_PARAM(q)%", "1"),
        ("%QUERY_PARAM(r)%", "b c"),
        ("%QUERY_PARAM(none)%", ""),
        ("%ROUTE_NAME:0%", ""),
    ],
)
def test_format(text: str, expected: str) -> None:
    assert render(text) == expected


def test_constant_format_is_text() -> None:
    assert compile_format("%ROUTE_NAME% 100%%", FACTS) == "r 100%"


@pytest.mark.parametrize("value", ["a%0d%0ax-evil:%201", "a%0a", "%00", "%7f", "a%1b[31m"])
def test_query_cannot_bring_the_end_of_a_header(value: str) -> None:
    compiled = compile_format("%QUERY_PARAM(q)%", FACTS)
    assert not isinstance(compiled, str)
    assert compiled(RequestHead("GET", "svc", f"/a?q={value}", Headers(())), None) == ""


def test_cluster_named_by_a_header_is_read_from_the_request() -> None:
    assert render("%UPSTREAM_CLUSTER%", Facts("r", None, "x-a")) == "abc"


def test_values_that_are_not_there_render_as_nothing() -> None:
    compiled = compile_format("%REQ(x-a)%%RESP(x-up)%%QUERY_PARAM(q)%-", FACTS)
    assert not isinstance(compiled, str)
    assert compiled(None, None) == "-"


@pytest.mark.parametrize(
    "text",
    [
        "%",
        "100% sure",
        "%REQ%",
        "%REQ()%",
        "%NO_SUCH%",
        "%UPSTREAM_HOST%",
        "%ROUTE_NAME(x)%",
        "%req(x)%",
        "%QUERY_PARAM%",
    ],
)
def test_bad_format_is_named(text: str) -> None:
    assert check_format(text)


def test_good_format_has_no_complaint() -> None:
    assert check_format("%REQ(x?y):3% %%") is None


def test_complaint_names_the_command() -> None:
    assert "%UPSTREAM_HOST% is not supported" in (check_format("a %UPSTREAM_HOST%") or "")
