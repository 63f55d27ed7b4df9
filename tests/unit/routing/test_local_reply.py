import json

import pytest

from meshlib.model.headers import AppendAction, HeaderAdd
from meshlib.model.listener import ClientListener
from meshlib.model.local_reply import (
    AllOf,
    AnyOf,
    BodyFormat,
    Comparison,
    GrpcStatusIs,
    HasFlag,
    JsonObject,
    ReplyMapper,
    ReplyRules,
    ReplyTest,
    RequestHas,
    Sampled,
    StatusIs,
    TookMs,
)
from meshlib.model.matcher import Fraction, HeaderMatcher, PathKind, PathMatcher
from meshlib.model.outcome import LocalReply
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, Moment, RequestHead
from meshlib.model.route import DirectResponse, Route, RouteAction, RouteMatcher, SingleCluster
from meshlib.routing.format import Facts, Scene
from meshlib.routing.local_reply import ReplyRewriter
from meshlib.routing.table import RouteTable
from meshlib.testing import FixedRng, builders

HEAD = RequestHead("GET", "svc", "/a?b", Headers((("x-1", "one"),)))
ABOUT = Scene(HEAD, flag="UH", details="no_healthy_upstream")


def rewritten(
    *mappers: ReplyMapper, form: BodyFormat | None = None, headers: tuple[tuple[str, str], ...] = (), body: bytes = b""
) -> tuple[int, bytes, dict[str, str]]:
    rewriter = ReplyRewriter(ReplyRules(mappers, form), Facts("route"))
    found = rewriter.rewrite(503, Headers(headers), body, HEAD, ABOUT)
    return found.status, found.body, dict(found.headers.items)


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        (StatusIs(Comparison.EQ, 503), True),
        (StatusIs(Comparison.EQ, 500), False),
        (StatusIs(Comparison.GE, 503), True),
        (StatusIs(Comparison.LE, 502), False),
        (StatusIs(Comparison.NE, 503), False),
        (HasFlag(), True),
        (HasFlag(frozenset({"UH", "NR"})), True),
        (HasFlag(frozenset({"NR"})), False),
        (RequestHas(HeaderMatcher("x-1", True)), True),
        (RequestHas(HeaderMatcher("x-2", True)), False),
        (AllOf((HasFlag(), StatusIs(Comparison.EQ, 500))), False),
        (AnyOf((HasFlag(), StatusIs(Comparison.EQ, 500))), True),
        (AllOf(), True),
        (AnyOf(()), False),
        (Sampled(Fraction(100)), True),
        (Sampled(Fraction(0)), False),
        (GrpcStatusIs(frozenset({14})), True),
        (GrpcStatusIs(frozenset({14}), is_excluded=True), False),
        (GrpcStatusIs(frozenset({2})), False),
        (TookMs(Comparison.GE, 0), False),  # nobody knows when it began
    ],
)
def test_the_tests_of_mappers(test: ReplyTest, holds: bool) -> None:
    assert rewritten(ReplyMapper(test, status=418))[0] == (418 if holds else 503)


@pytest.mark.parametrize(
    ("status", "expected"), [("14", True), ("0", False), ("99", False), ("x", False), ("²", False), ("", True)]
)
def test_a_grpc_status_of_its_own_comes_before_what_http_says(status: str, expected: bool) -> None:
    mapper = ReplyMapper(GrpcStatusIs(frozenset({14})), status=418)
    assert (418 if expected else 503) == rewritten(mapper, headers=(("grpc-status", status),))[0]


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (TookMs(Comparison.GE, 250), True),
        (TookMs(Comparison.GE, 251), False),
        (TookMs(Comparison.EQ, 250), True),
        (Sampled(Fraction(8)), True),
        (Sampled(Fraction(7)), False),
        (Sampled(Fraction(8), is_independent=True), False),  # the next number is 8
        (Sampled(Fraction(9), is_independent=True), True),
    ],
)
def test_tests_that_look_at_the_moment(test: ReplyTest, expected: bool) -> None:
    numbers = iter((107, 108))

    class Numbers(FixedRng):
        def getrandbits(self, k: int, /) -> int:
            return next(numbers)

    moment = Moment("vm", 100.0, Numbers(0.0))
    moment.goes_on(100.2509)
    facts = Facts()
    rewriter = ReplyRewriter(ReplyRules((ReplyMapper(test, status=418),)), facts)
    assert facts.needs_moment
    head = HEAD.but(moment=moment)
    assert (418 if expected else 503) == rewriter.rewrite(503, Headers(), b"", head, ABOUT).status


def test_the_first_mapper_that_fits_counts() -> None:
    first = ReplyMapper(AllOf(), status=500, body=b"sorry", headers=(HeaderAdd("x-was", "%RESP(:status)%"),))
    found = rewritten(first, ReplyMapper(AllOf(), status=400), body=b"no healthy upstream")
    assert found == (500, b"sorry", {"x-was": "503", "content-type": "text/plain"})


def test_a_format_says_what_kind_of_body_it_makes() -> None:
    form = BodyFormat("%RESPONSE_CODE% %RESPONSE_FLAGS% %LOCAL_REPLY_BODY% %REQ(x-9)%", content_type="text/html")
    headers = (("content-type", "old"),)
    expected = (503, b"503 UH down -", {"content-type": "text/html"})
    assert rewritten(form=form, headers=headers, body=b"down") == expected
    # A body that stays as it was keeps its type, and one that a mapper named itself stays in any case.
    assert rewritten(form=BodyFormat("%LOCAL_REPLY_BODY%"), headers=headers, body=b"down")[2] == dict(headers)
    own = HeaderAdd("content-type", "own", AppendAction.OVERWRITE_IF_EXISTS_OR_ADD)
    assert rewritten(ReplyMapper(AllOf(), headers=(own,)), form=form, body=b"down")[2] == {"content-type": "own"}


def test_json_has_types() -> None:
    fields = JsonObject(
        (
            ("absent", "%REQ(x-9)%"),
            ("both", "%REQ(x-1)%%REQ(x-9)%"),
            ("code", "%RESPONSE_CODE%"),
            ("inner", JsonObject((("absent", "%REQ(x-9)%"),))),
            ("list", (1.0, True, None, "%ROUTE_NAME%", "%REQ(x-9)%")),
        )
    )
    _, body, headers = rewritten(form=BodyFormat(None, fields, "application/json"))
    assert headers == {"content-type": "application/json"}
    assert body == (
        b'{"absent":null,"both":"one-","code":503,"inner":{"absent":null},"list":[1,true,null,"route",null]}\n'
    )
    _, body, _ = rewritten(form=BodyFormat(None, fields, "application/json", omits_empty=True))
    assert json.loads(body) == {"both": "one", "code": 503, "list": [1, True, "route"]}


def table(rules: ReplyRules) -> RouteTable:
    action = DirectResponse(404, b"gone")
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/a")), action, name="direct")
    routes = builders.target("svc", route).routes
    return RouteTable(ClientListener("svc", routes, reply_rules=rules), routes)


def test_answers_of_routes_and_of_no_route() -> None:
    rules = ReplyRules((ReplyMapper(HasFlag(frozenset({"NR"})), status=410),), BodyFormat("%ROUTE_NAME%:%PATH(NQ)%"))
    routes = table(rules)
    found = routes.match(HEAD, FixedRng(0.0))
    assert isinstance(found, LocalReply)
    assert (found.status, found.body) == (404, b"direct:/a")
    nowhere = routes.match(RequestHead("GET", "svc", "/b", Headers()), FixedRng(0.0))
    assert isinstance(nowhere, LocalReply)
    assert (nowhere.status, nowhere.flag, nowhere.body) == (410, "NR", b"-:/b")
    grpc = routes.match(RequestHead("POST", "svc", "/b", Headers(), is_grpc=True), FixedRng(0.0))
    assert isinstance(grpc, LocalReply)
    assert (grpc.status, grpc.grpc_status) == (404, 14)


def test_a_cluster_that_does_not_exist_has_no_name() -> None:
    rules = ReplyRules((), BodyFormat("[%UPSTREAM_CLUSTER%] %RESPONSE_FLAGS%"))
    routes = builders.target("svc", builders.any_path(RouteAction(SingleCluster("gone")))).routes
    match = RouteTable(ClientListener("svc", routes, reply_rules=rules), routes).match(HEAD, FixedRng(0.0))
    assert not isinstance(match, LocalReply)
    assert b"[-] NC" == match.cluster_not_found(HEAD).body


@pytest.mark.parametrize(("status", "grpc_status"), [(0, 14), (500, 2), (404, 12)])
def test_a_status_that_is_changed_has_another_grpc_status(status: int, grpc_status: int) -> None:
    rules = ReplyRules((ReplyMapper(HasFlag(frozenset({"UH"})), status=status, body=b"mapped"),))
    routes = builders.target("svc", builders.any_path(RouteAction(SingleCluster("c")))).routes
    head = RequestHead("POST", "svc", "/a", Headers(), is_grpc=True, profile=HTTP)
    match = RouteTable(ClientListener("svc", routes, reply_rules=rules), routes).match(head, FixedRng(0.0))
    assert not isinstance(match, LocalReply)
    found = match.local_reply(LocalReply(503, "UH", "no_healthy_upstream", b"x", (), 14), head)
    assert (found.status, found.grpc_status, dict(found.headers)["grpc-message"]) == (200, grpc_status, "mapped")
    own = match.local_reply(LocalReply(504, "UT", "max_duration_timeout", b"x", (), 4), head)
    assert own.grpc_status == 4
