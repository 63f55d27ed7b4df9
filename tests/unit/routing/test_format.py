import json

import pytest

from meshlib.model.endpoint import Endpoint
from meshlib.model.request import Headers, Moment, RequestHead
from meshlib.routing.format import Facts, Scene, compile_format, compile_value
from meshlib.routing.headers import with_headers
from meshlib.substitution import check_format

FACTS = Facts(
    route_name="r",
    cluster="c",
    metadata={"ns": {"k": "v", "o": {"q": 1.5, "p": 3.0}, "l": (1.0, "a"), "n": None}},
    host_metadata={"ns": {"k": "host"}},
)
HEAD = RequestHead("GET", "svc", "/a?q=1&%72=b%20c", Headers((("x-a", "abc"), ("x-a", "second"))))
RESPONSE = Headers((("x-up", "1"),))
ENDPOINT = Endpoint("127.0.0.1:80", hostname="a.example", metadata={"ns": {"zone": "z1"}})
SCENE = Scene(HEAD, RESPONSE, 200, "URX,UF", "via_upstream", ENDPOINT, 2)


def render(text: str, facts: Facts = FACTS) -> str:
    compiled = compile_format(text, facts)
    return compiled if isinstance(compiled, str) else compiled(SCENE)


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
        ("%QUERY_PARAM(q):0%", ""),
        ("%QUERY_PARAMS% %QUERY_PARAMS(DECODED)%", "q=1&%72=b%20c q=1&r=b%20c"),
        ("%PATH% %PATH(NQ)%%PATH(WQ:ORIG)%", "/a?q=1&%72=b%20c /a"),
        ("%METADATA(ROUTE:ns:k)%%METADATA(ROUTE:ns:o:q)%%METADATA(ROUTE:ns:n)%%METADATA(ROUTE:x)%", "v1.5"),
        ("%METADATA(VIRTUAL_HOST:ns:k)%%METADATA(VIRTUAL_HOST:x)%", "host"),
        ("%METADATA(ROUTE:ns:o)%%METADATA(ROUTE:ns:l)%", '{"p":3,"q":1.5}[1,"a"]'),
        ("%METADATA(UPSTREAM_HOST:ns:zone)%%UPSTREAM_METADATA(ns:zone)%%METADATA(DYNAMIC:a:b)%", "z1z1"),
        ("%RESPONSE_CODE% %RESPONSE_CODE_DETAILS% %RESPONSE_FLAGS%", "200 via_upstream URX,UF"),
        ("%RESPONSE_FLAGS_LONG%", "UpstreamRetryLimitExceeded,UpstreamConnectionFailure"),
        ("%UPSTREAM_HOST% %UPSTREAM_HOST_NAME% %UPSTREAM_REMOTE_PORT%", "127.0.0.1:80 a.example 80"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "127.0.0.1"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "2"),
        ("%DYNAMIC_METADATA(a:b)%%FILTER_STATE(a)%%TRAILER(x)%", ""),
        ("%REQ(?x-a)%", "abc"),
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
    assert compiled(Scene(RequestHead("GET", "svc", f"/a?q={value}", Headers(())))) == ""


def test_cluster_named_by_a_header_is_read_from_the_request() -> None:
    assert render("%UPSTREAM_CLUSTER%", Facts("r", None, "x-a")) == "abc"


def test_values_that_are_not_there_render_as_nothing() -> None:
    compiled = compile_format("%REQ(x-a)%%RESP(x-up)%%QUERY_PARAM(q)%-", FACTS)
    assert not isinstance(compiled, str)
    assert compiled(Scene(None)) == "-"


@pytest.mark.parametrize(
    "text",
    [
        "%",
        "100% sure",
        "%REQ%",
        "%REQ()%",
        "%NO_SUCH%",
        "%DURATION%",
        "%START_TIME:3%",
        "%START_TIME(%n)%",
        "%START_TIME(%-d)%",
        "%START_TIME(%10Y)%",
        "%HOSTNAME(x)%",
        "%HOSTNAME:3%",
        "%COALESCE%",
        "%COALESCE(x)%",
        "%COALESCE([])%",
        "%COALESCE({})%",
        '%COALESCE({"operators": []})%',
        '%COALESCE({"operators": [1]})%',
        '%COALESCE({"operators": ["REQ"]})%',
        '%COALESCE({"operators": ["NO_SUCH"]})%',
        '%COALESCE({"operators": ["DURATION"]})%',
        '%COALESCE({"operators": [{"param": "x"}]})%',
        '%COALESCE({"operators": [{"command": "REQ", "param": 1}]})%',
        '%COALESCE({"operators": [{"command": "REQ", "param": "x", "max_length": 0}]})%',
        '%COALESCE({"operators": [{"command": "REQ", "param": "x", "max_length": 2.0}]})%',
        '%COALESCE({"operators": [{"command": "REQ", "param": "x", "max_length": true}]})%',
        '%COALESCE({"operators": ["PROTOCOL"], "more": 18446744073709551615})%',
        '%COALESCE({"operators": ["PROTOCOL"], "more": NaN})%',
        r'%COALESCE({"operators": [{"command": "REQ", "param": "\ud800"}]})%',
        "%ENVIRONMENT(HOME)%",
        "%ROUTE_NAME:3%",
        "%ROUTE_NAME(x)%",
        "%REQ(a b)%",
        "%REQ(a?b?c)%",
        "%PATH(X)%",
        "%METADATA(CLUSTER:a:b)%",
        "%FILTER_STATE(a:FIELD)%",
        "%UPSTREAM_METADATA(a:b):2%",
        "%QUERY_PARAMS(RAW)%",
        "%req(x)%",
        "%QUERY_PARAM%",
    ],
)
def test_bad_format_is_named(text: str) -> None:
    assert check_format(text)


def test_good_format_has_no_complaint() -> None:
    assert check_format("%REQ(x?y):3% %%") == ""


def test_complaint_names_the_command() -> None:
    assert "%DURATION% is not supported" in check_format("a %DURATION%")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%START_TIME%", "2026-11-27T00:38:51.097Z"),
        ("%START_TIME()%", "2026-11-27T00:38:51.097Z"),
        ("%START_TIME(%s.%3f)%", "1795739931.097"),
        ("%EMIT_TIME%", "2026-11-27T00:38:52.250Z"),
        ("%HOSTNAME%", "vm"),
        ('%COALESCE({"operators": ["HOSTNAME"]}):1%', "v"),
    ],
)
def test_what_speaks_of_the_moment(text: str, expected: str) -> None:
    moment = Moment("vm", 1795739931.0973)
    moment.goes_on(1795739932.25)
    facts = Facts()
    compiled = compile_format(text, facts)
    assert not isinstance(compiled, str)
    assert compiled(Scene(RequestHead("GET", "svc", "/", Headers(), moment=moment))) == expected
    assert facts.needs_moment
    # Not known: absent.
    assert compiled(Scene(RequestHead("GET", "svc", "/", Headers()))) == ""


def test_a_moment_stays_with_a_head_that_is_changed() -> None:
    moment = Moment("vm", 1.0)
    head = RequestHead("GET", "svc", "/", Headers(), scheme="https", is_grpc=True, moment=moment)
    changed = head.but(headers=Headers((("x", "y"),)), authority="a", path="/b", scheme="http")
    assert (changed.method, changed.authority, changed.path, changed.scheme) == ("GET", "a", "/b", "http")
    assert changed.is_grpc
    assert changed.moment is moment
    assert with_headers(head, Headers()).moment is moment


@pytest.mark.parametrize(
    ("operators", "length", "expected"),
    [
        (["UPSTREAM_CLUSTER", "ROUTE_NAME"], "", "c"),
        ([{"command": "REQ", "param": "x-no"}, "ROUTE_NAME"], "", "r"),
        ([{"command": "REQ", "param": "x-a", "max_length": 2}, "ROUTE_NAME"], "", "ab"),
        ([{"command": "REQ", "param": "x-a", "max_length": 2}], ":1", "a"),
        ([{"command": "REQ", "param": "x-no"}], "", ""),
        (["TRAILER"], "", None),
        ([{"command": "COALESCE", "param": '{"operators": ["ROUTE_NAME"]}'}], "", "r"),
    ],
)
def test_the_first_value_there_is(operators: list[object], length: str, expected: str | None) -> None:
    text = f"%COALESCE({json.dumps({'operators': operators})}){length}%"
    if expected is None:
        assert check_format(text)
    else:
        assert render(text) == expected


def test_the_first_value_there_is_keeps_its_type() -> None:
    operators = [{"command": "METADATA", "param": "ROUTE:none"}, "RESPONSE_CODE"]
    assert compile_value(f"%COALESCE({json.dumps({'operators': operators})}):2%", FACTS, absent="")(SCENE) == 200


def test_what_is_absent_has_a_sign_of_its_own_in_hosts() -> None:
    compiled = compile_format("%REQ(x-no)%.%METADATA(ROUTE:x)%", FACTS, absent="-")
    assert not isinstance(compiled, str)
    assert compiled(SCENE) == "-.-"
