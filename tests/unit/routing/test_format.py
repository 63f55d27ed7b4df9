import json

import pytest

from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Connected
from meshlib.model.request import Headers, Moment, RequestHead
from meshlib.routing.format import Facts, Scene, compile_format, compile_value
from meshlib.routing.headers import with_headers
from meshlib.substitution import check_format

FACTS = Facts(
    route_name="r",
    cluster="c",
    metadata={"ns": {"k": "v", "o": {"q": 1.5, "p": 3.0}, "l": (1.0, "a"), "n": None}},
    host_metadata={"ns": {"k": "host"}},
    listener="shop",
    listener_metadata={"ns": {"k": "listener"}},
)
HEAD = RequestHead("GET", "svc", "/a?q=1&%72=b%20c", Headers((("x-a", "abc"), ("x-a", "second"))))
RESPONSE = Headers((("x-up", "1"),))
ENDPOINT = Endpoint("127.0.0.1:80", hostname="a.example", metadata={"ns": {"zone": "z1"}})
SCENE = Scene(HEAD, RESPONSE, 200, "URX,UF", "via_upstream", ENDPOINT, 2, connected=Connected("HTTP/2", "[::1]:9"))


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
        ("%METADATA(LISTENER:ns:k)% %LISTENER_NAME%%METADATA(LISTENER_FILTER_CHAIN:ns:k)%", "listener shop"),
        ("%UPSTREAM_HOSTS_ATTEMPTED% %UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%", "127.0.0.1:80 127.0.0.1"),
        ("%UPSTREAM_HOST_NAMES_ATTEMPTED%", "a.example"),
        ("%UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT%", "a.example"),
        ("%UPSTREAM_PROTOCOL% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_LOCAL_PORT%", "HTTP/2 [::1]:9 9"),
        ("%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "::1"),
        ("%GRPC_STATUS%%GRPC_STATUS_NUMBER%%DURATION%%UNIQUE_ID%%STREAM_ID%%CLUSTER_METADATA(ns:k)%", ""),
    ],
)
def test_format(text: str, expected: str) -> None:
    assert render(text) == expected


def test_of_an_endpoint_without_a_connection_only_the_host_is_known() -> None:
    compiled = compile_format("%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%%UPSTREAM_HOSTS_ATTEMPTED%", FACTS)
    assert not isinstance(compiled, str)
    assert compiled(Scene(HEAD, RESPONSE, endpoint=ENDPOINT, details="no_healthy_upstream")) == "127.0.0.1:80 "


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
        "%BYTES_SENT%",
        "%DURATION:3%",
        "%UNIQUE_ID(x)%",
        "%GRPC_STATUS(x)%",
        "%GRPC_STATUS:3%",
        "%CLUSTER_METADATA(a:b):3%",
        "%UPSTREAM_HOSTS_ATTEMPTED:3%",
        "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT:3%",
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
        '%COALESCE({"operators": ["BYTES_SENT"]})%',
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
        "%METADATA(FILTER:a:b)%",
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
    assert "%BYTES_SENT% is not supported" in check_format("a %BYTES_SENT%")


class Counter:
    """Random bits that are not random."""

    def __init__(self) -> None:
        self.bits = 0

    def random(self) -> float:
        raise AssertionError("ids are made of bits")

    def getrandbits(self, k: int, /) -> int:
        self.bits += 1
        return self.bits


def metadata_of(cluster: str) -> dict[str, dict[str, object]]:
    return {"c": {"ns": {"k": "cluster", "n": 2.0}}, "abc": {"ns": {"k": "named"}}}[cluster]


def moment_head(*headers: tuple[str, str]) -> RequestHead:
    moment = Moment("here", 100.0, Counter(), metadata_of)
    moment.goes_on(100.0129)
    return RequestHead("GET", "svc", "/", Headers((("x-a", "abc"), *headers)), moment=moment)


def rendered(text: str, scene: Scene, facts: Facts = FACTS) -> str:
    compiled = compile_format(text, facts)
    return compiled if isinstance(compiled, str) else compiled(scene)


def test_ids_are_of_the_call_and_of_each_time() -> None:
    text = "%UNIQUE_ID% %UNIQUE_ID% %STREAM_ID%"
    one, other, call = rendered(text, scene := Scene(moment_head())).split(" ")
    # 64 bits were drawn for shares of requests already.
    assert (one, other) == ("00000000-0000-4002-8000-000000000003", "00000000-0000-4004-8000-000000000005")
    assert call == "00000000-0000-4006-8000-000000000007" == rendered("%STREAM_ID%", scene)
    assert rendered("%STREAM_ID%", Scene(moment_head(("x-request-id", "mine")))) == "mine"


def test_metadata_of_the_cluster_is_as_it_is_when_the_call_is_made() -> None:
    scene = Scene(moment_head())
    text = "%METADATA(CLUSTER:ns:k)% %CLUSTER_METADATA(ns)% %METADATA(CLUSTER:ns:k):2%"
    assert rendered(text, scene) == 'cluster {"k":"cluster","n":2} cl'
    assert rendered("%METADATA(CLUSTER:ns:k)%", scene, Facts("r", None, "x-a")) == "named"
    assert rendered("%METADATA(CLUSTER:ns:k)%", scene, Facts()) == ""
    facts = Facts(cluster="c")
    compile_format("%METADATA(CLUSTER:ns:k)%", facts)
    assert facts.needs_moment


def test_durations_are_whole_milliseconds() -> None:
    answered = Scene(moment_head(), RESPONSE, details="via_upstream")
    assert rendered("%DURATION% %RESPONSE_DURATION%", answered) == "12 12"
    assert rendered("%DURATION% %RESPONSE_DURATION%", Scene(moment_head(), RESPONSE, details="x")) == "12 "


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (200, "0", "OK OK 0"),
        (200, "1", "Canceled CANCELLED 1"),
        (503, "8", "ResourceExhausted RESOURCE_EXHAUSTED 8"),
        (200, " +3", "InvalidArgument INVALID_ARGUMENT 3"),
        (200, "17", "17 17 17"),
        (200, "-1", "-1 -1 -1"),
        (200, "abc", "-1 -1 -1"),
        (200, "", "Unknown UNKNOWN 2"),
        (503, None, "Unavailable UNAVAILABLE 14"),
        (0, None, "  "),
    ],
)
def test_grpc_status(status: int, text: str | None, expected: str) -> None:
    head = RequestHead("POST", "svc", "/", Headers((("content-type", "application/grpc"),)), is_grpc=True)
    response = Headers(() if text is None else (("grpc-status", text),))
    formats = "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%"
    assert rendered(formats, Scene(head, response, status)) == expected
    changed = with_headers(head, Headers((("content-type", "text/plain"),)))
    assert rendered(formats, Scene(changed, response, status)) == "  "


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
