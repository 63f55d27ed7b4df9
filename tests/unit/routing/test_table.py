"""The table as a whole: which route, which cluster, which policies, which answers."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from meshlib.model.endpoint import Endpoint
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import (
    Fraction,
    HeaderMatcher,
    PathKind,
    PathMatcher,
    QueryMatcher,
    StringKind,
    StringMatcher,
)
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    DirectResponse,
    FaultAbort,
    FaultPolicy,
    HashPolicy,
    HeaderAdd,
    HeaderMutation,
    MirrorPolicy,
    NonForwarding,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.routing.fault import abort_reply
from meshlib.routing.table import InboundTable, RouteMatch, RouteTable
from meshlib.routing.trace import RouteTrace, Verdict

ROOT = PathMatcher(PathKind.PREFIX, "/")
ANY = RouteMatcher(ROOT)
CANARY = HeaderMatcher("x-canary", StringMatcher(StringKind.EXACT, "true"))
NR = LocalReply(404, "NR", "route_not_found")


class Bits:
    """Always draws the same 64 bits."""

    def __init__(self, number: int) -> None:
        self.number = number

    def random(self) -> float:
        raise AssertionError("routing draws bits")

    def getrandbits(self, k: int, /) -> int:
        assert k == 64
        return self.number


class NoRandomness(Bits):
    def __init__(self) -> None:
        super().__init__(0)

    def getrandbits(self, k: int, /) -> int:
        raise AssertionError("nothing here is random")


def to(cluster: str, match: RouteMatcher = ANY, **options: object) -> Route:
    return Route(match, RouteAction(SingleCluster(cluster)), name=f"to-{cluster}", **options)  # type: ignore[arg-type]


def weighted(*clusters: ClusterWeight, **options: object) -> Route:
    return Route(ANY, RouteAction(WeightedClusters(clusters, **options)))  # type: ignore[arg-type]


def configuration(*routes: Route, host: VirtualHost | None = None, **options: object) -> RouteConfiguration:
    base = host or VirtualHost("vh", ("svc",), ())
    return RouteConfiguration("rc", (replace(base, routes=routes),), **options)  # type: ignore[arg-type]


def table_of(config: RouteConfiguration, **listener: object) -> RouteTable:
    return RouteTable(ClientListener("svc", config, **listener), config)  # type: ignore[arg-type]


def table(*routes: Route, **options: object) -> RouteTable:
    return table_of(configuration(*routes, **options))  # type: ignore[arg-type]


def request(path: str = "/", *headers: tuple[str, str], authority: str = "svc", is_grpc: bool = False) -> RequestHead:
    return RequestHead("GET", authority, path, Headers(headers), is_grpc=is_grpc)


def matched(found: RouteMatch | LocalReply) -> RouteMatch:
    assert isinstance(found, RouteMatch)
    return found


def cluster_of(table: RouteTable, head: RequestHead, bits: int = 0) -> str:
    return matched(table.match(head, Bits(bits))).cluster


def test_first_route_whose_conditions_all_hold() -> None:
    routes = table(
        to("both", RouteMatcher(ROOT, headers=(CANARY,), query=(QueryMatcher("q", True),))),
        to("canary", RouteMatcher(ROOT, headers=(CANARY,))),
        to("api", RouteMatcher(PathMatcher(PathKind.PREFIX, "/api"))),
        to("rest"),
    )
    assert cluster_of(routes, request("/api?q", ("x-canary", "true"))) == "both"
    assert cluster_of(routes, request("/api", ("x-canary", "true"))) == "canary"
    assert cluster_of(routes, request("/api/1")) == "api"
    assert cluster_of(routes, request("/?/api")) == "rest"


def test_grpc_condition() -> None:
    routes = table(to("grpc", RouteMatcher(ROOT, grpc=True)), to("http"))
    assert cluster_of(routes, request(is_grpc=True)) == "grpc"
    assert cluster_of(routes, request("/", ("content-type", "application/grpc+json"))) == "grpc"
    assert cluster_of(routes, request()) == "http"


def test_connect_condition_is_the_method() -> None:
    routes = table(to("tunnel", RouteMatcher(PathMatcher(PathKind.CONNECT, ""))), to("rest"))
    assert cluster_of(routes, RequestHead("CONNECT", "svc", "", Headers())) == "tunnel"
    assert cluster_of(routes, request()) == "rest"


def test_unknown_authority_has_no_route() -> None:
    assert table(to("c")).match(request(authority="other"), NoRandomness()) == NR


def test_a_virtual_host_without_a_route_does_not_fall_back_to_the_catch_all() -> None:
    host = VirtualHost("named", ("svc",), (to("a", RouteMatcher(PathMatcher(PathKind.PREFIX, "/a"))),))
    config = RouteConfiguration("rc", (host, VirtualHost("any", ("*",), (to("b"),))))
    assert table_of(config).match(request("/x"), NoRandomness()) == NR


def test_authority_is_compared_without_case() -> None:
    assert cluster_of(table(to("c")), request(authority="SVC")) == "c"


def test_a_decision_without_chance_draws_nothing_and_allocates_nothing() -> None:
    routes = table(to("c"))
    assert routes.match(request(), NoRandomness()) is routes.match(request(), NoRandomness())


def test_what_a_match_holds() -> None:
    retry, metadata = RetryPolicy(frozenset({"5xx"})), {"meshlib": {"origin": "a.yaml:1"}}
    route = replace(to("c"), action=RouteAction(SingleCluster("c"), retry=retry), metadata=metadata)
    host = VirtualHost("vh", ("svc",), (), include_attempt_count=True)
    found = matched(table(route, host=host).match(request(), NoRandomness()))
    assert (found.cluster, found.virtual_host, found.route_name) == ("c", "vh", "to-c")
    assert (found.retry, found.metadata, found.include_attempt_count) == (retry, metadata, True)
    assert (found.action, found.fault, found.mirrors) == (route.action, None, ())


def test_retry_policy_of_the_virtual_host_counts_for_routes_without_one() -> None:
    of_host, of_route = RetryPolicy(frozenset({"5xx"})), RetryPolicy(frozenset({"reset"}))
    host = VirtualHost("vh", ("svc",), (), retry=of_host)
    own = replace(to("c"), action=RouteAction(SingleCluster("c"), retry=of_route))
    assert matched(table(to("c"), host=host).match(request(), Bits(0))).retry == of_host
    assert matched(table(own, host=host).match(request(), Bits(0))).retry == of_route


def test_fraction_takes_its_share_and_the_rest_goes_on() -> None:
    routes = table(to("some", RouteMatcher(ROOT, fraction=Fraction(30))), to("rest"))
    counts = Counter(cluster_of(routes, request(), bits) for bits in range(100))
    assert counts == {"some": 30, "rest": 70}


def test_weights_are_exact_over_all_residues() -> None:
    routes = table(weighted(ClusterWeight("a", 90), ClusterWeight("zero", 0), ClusterWeight("b", 10)))
    found = [cluster_of(routes, request(), bits) for bits in range(100)]
    assert found == ["a"] * 90 + ["b"] * 10


def test_one_number_feeds_fraction_and_weights() -> None:
    half = replace(
        weighted(ClusterWeight("a", 50), ClusterWeight("b", 50)), match=RouteMatcher(ROOT, fraction=Fraction(50))
    )
    routes = table(half, to("rest"))
    assert {cluster_of(routes, request(), bits) for bits in range(100)} == {"a", "rest"}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ((("x-rand", "9"),), "a"),
        ((("x-rand", "10"),), "b"),
        ((("x-rand", "110"),), "b"),  # modulo the sum
        ((("x-rand", "zz"),), "a"),  # the stream's number, which is 0 here
        ((("x-rand", "-10"),), "a"),
        ((("x-rand", "10"), ("x-rand", "10")), "a"),
        ((), "a"),
    ],
)
def test_a_header_can_choose_among_weights(headers: tuple[tuple[str, str], ...], expected: str) -> None:
    routes = table(weighted(ClusterWeight("a", 10), ClusterWeight("b", 90), header_name="X-Rand"))
    assert cluster_of(routes, request("/", *headers)) == expected


def test_the_hash_policy_can_choose_among_weights() -> None:
    clusters = WeightedClusters((ClusterWeight("a", 50), ClusterWeight("b", 50)), use_hash_policy=True)
    route = Route(ANY, RouteAction(clusters, hash_policies=(HashPolicy("header", "x-user"),)))
    routes = table(route)
    for user in ("u1", "u2", "u3"):
        head = request("/", ("x-user", user))
        assert len({cluster_of(routes, head, bits) for bits in range(100)}) == 1
    assert {cluster_of(routes, request(), bits) for bits in range(100)} == {"a", "b"}


def test_weights_that_add_up_to_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rc: virtual host 'vh', route 0: .*add up to 0"):
        table(weighted(ClusterWeight("a", 0)))


def test_cluster_named_by_a_header() -> None:
    routes = table(Route(ANY, RouteAction(ClusterHeader("X-Cluster"))))
    assert cluster_of(routes, request("/", ("x-cluster", "first"), ("x-cluster", "second"))) == "first"


@pytest.mark.parametrize("headers", [(), (("x-cluster", ""),)])
def test_missing_cluster_header_is_no_cluster(headers: tuple[tuple[str, str], ...]) -> None:
    mutation = HeaderMutation(response_add=(HeaderAdd("x-r", "%ROUTE_NAME%"),))
    action = RouteAction(ClusterHeader("x-cluster"), cluster_not_found_status=404)
    routes = table(Route(ANY, action, name="r", mutation=mutation))
    expected = LocalReply(404, "NC", "cluster_not_found", b"", (("x-r", "r"),))
    found = routes.match(request("/", *headers), Bits(0))
    assert isinstance(found, RouteMatch)
    assert found.cluster == ""
    assert found.cluster_not_found(request("/", *headers)) == expected


def test_redirect_and_direct_response_are_answers() -> None:
    redirect = table(Route(ANY, Redirect(https=True))).match(request("/a"), Bits(0))
    direct = table(Route(ANY, DirectResponse(403))).match(request("/a"), Bits(0))
    assert redirect == LocalReply(301, "", "direct_response", b"", (("location", "https://svc/a"),))
    assert direct == LocalReply(403, "", "direct_response")


def test_non_forwarding_leads_nowhere_in_a_client() -> None:
    mutation = HeaderMutation(response_add=(HeaderAdd("x", "1"),))
    routes = table(Route(ANY, NonForwarding(), mutation=mutation))
    assert routes.match(request(), Bits(0)) == LocalReply(503, "NC", "cluster_not_found", b"", (("x", "1"),))
    grpc = routes.match(request(is_grpc=True), Bits(0))
    assert isinstance(grpc, LocalReply)
    assert (grpc.grpc_status, grpc.body) == (14, b"Matching route has inappropriate action")


def test_grpc_call_without_a_route() -> None:
    reply = table(to("a", RouteMatcher(PathMatcher(PathKind.PATH, "/x")))).match(request(is_grpc=True), Bits(0))
    assert isinstance(reply, LocalReply)
    assert (reply.grpc_status, reply.body) == (14, b"No matching route found in xDS route config")


def policy(status: int) -> FaultPolicy:
    return FaultPolicy(abort=FaultAbort(Fraction(100), http_status=status))


def fault_status(config: RouteConfiguration, **listener: object) -> int | None:
    found = matched(table_of(config, **listener).match(request(), Bits(0))).fault
    return None if found is None or found.abort is None else found.abort.http_status


def test_most_specific_fault_wins() -> None:
    of_weight, of_route, of_host, of_config, of_filter = (policy(status) for status in range(501, 506))
    host = VirtualHost("vh", ("svc",), (), fault=of_host)
    entry = ClusterWeight("a", 1, fault=of_weight)
    route = weighted(entry)
    listener = {"has_fault_filter": True, "fault": of_filter}
    assert fault_status(configuration(replace(route, fault=of_route), host=host, fault=of_config), **listener) == 501
    route = weighted(replace(entry, fault=None))
    assert fault_status(configuration(replace(route, fault=of_route), host=host, fault=of_config), **listener) == 502
    assert fault_status(configuration(route, host=host, fault=of_config), **listener) == 503
    assert fault_status(configuration(route, fault=of_config), **listener) == 504
    assert fault_status(configuration(route), **listener) == 505


def test_without_the_filter_there_is_no_fault() -> None:
    assert fault_status(configuration(replace(to("a"), fault=policy(500)))) is None


def test_an_override_that_injects_nothing_switches_faults_off() -> None:
    route = replace(to("a"), fault=FaultPolicy())
    assert fault_status(configuration(route), has_fault_filter=True, fault=policy(500)) is None


def test_mirrors_are_sampled_for_each_request() -> None:
    policy = MirrorPolicy("copy", Fraction(10))
    action = RouteAction(SingleCluster("a"), mirrors=(policy,))
    routes = table(Route(ANY, action))
    found = [matched(routes.match(request(), Bits(bits))) for bits in range(100)]
    assert Counter(match.mirrors for match in found) == {(policy,): 10, (): 90}
    assert {match.cluster for match in found} == {"a"}


def test_header_mutations_of_all_levels() -> None:
    def level(name: str) -> HeaderMutation:
        return HeaderMutation(request_add=(HeaderAdd("x", name),), response_add=(HeaderAdd("y", name),))

    route = replace(weighted(ClusterWeight("a", 1, mutation=level("weight"))), mutation=level("route"))
    host = VirtualHost("vh", ("svc",), (), mutation=level("vh"))
    found = matched(table(route, host=host, mutation=level("rc")).match(request(), Bits(0)))
    assert found.rewrite(request()).headers.all("x") == ("weight", "route", "vh", "rc")
    assert found.response_headers(Headers()).all("y") == ("weight", "route", "vh", "rc")
    flagged = table(route, host=host, mutation=level("rc"), most_specific_mutations_win=True)
    assert matched(flagged.match(request(), Bits(0))).rewrite(request()).headers.all("x") == (
        "weight",
        "rc",
        "vh",
        "route",
    )


def test_a_route_that_changes_nothing_returns_what_it_got() -> None:
    found = matched(table(to("a")).match(request(), Bits(0)))
    head, headers = request(), Headers()
    assert found.rewrite(head) is head
    assert found.response_headers(headers) is headers


def test_endpoint_hostname_becomes_the_host_when_asked() -> None:
    endpoint = Endpoint("10.0.0.1:80", hostname="ep")
    automatic = table(Route(ANY, RouteAction(SingleCluster("a"), auto_host_rewrite=True)))
    found = matched(automatic.match(request(), Bits(0)))
    assert found.rewrite_for(request(), endpoint).authority == "ep"
    assert found.rewrite_for(request(), Endpoint("10.0.0.1:80")).authority == "svc"
    assert matched(table(to("a")).match(request(), Bits(0))).rewrite_for(request(), endpoint).authority == "svc"


def test_a_grpc_call_takes_the_endpoints_name_from_trusted_servers_alone() -> None:
    named = Endpoint("10.0.0.1:80", hostname="ep")
    logical = Endpoint("10.0.0.1:80", hostname="ep", logical_host="ep:80")
    head = RequestHead("POST", "svc", "/s/m", Headers(), is_grpc=True)

    def sent(endpoint: Endpoint, *, is_trusted: bool) -> RequestHead:
        action = RouteAction(SingleCluster("a"), auto_host_rewrite=True, is_trusted=is_trusted)
        return matched(table(Route(ANY, action)).match(head, Bits(0))).rewrite_for(head, endpoint)

    assert sent(named, is_trusted=False) is head
    assert sent(Endpoint("10.0.0.1:80"), is_trusted=True) is head
    assert (sent(named, is_trusted=True).authority, sent(named, is_trusted=True).headers.items) == ("ep", ())
    assert sent(logical, is_trusted=True).authority == "ep:80"


def test_local_replies_get_the_routes_headers() -> None:
    mutation = HeaderMutation(response_add=(HeaderAdd("x", "%UPSTREAM_CLUSTER%-%REQ(:path)%"),))
    found = matched(table(replace(to("a"), mutation=mutation)).match(request("/p"), Bits(0)))
    busy = LocalReply(503, "UO", "overflow", b"full")
    assert found.local_reply(busy, request("/p")).headers == (("x", "a-/p"), ("content-type", "text/plain"))
    assert found.cluster_not_found(request("/p")) == LocalReply(503, "NC", "cluster_not_found", b"", (("x", "-/p"),))
    plain = matched(table(to("a")).match(request(), Bits(0)))
    assert plain.local_reply(busy, request()) is busy


def test_hash_of_a_request() -> None:
    action = RouteAction(SingleCluster("a"), hash_policies=(HashPolicy("header", "x"),))
    found = matched(table(Route(ANY, action)).match(request(), Bits(0)))
    assert found.hash(request()) is None
    assert found.hash(request("/", ("x", "1"))) is not None
    assert matched(table(to("a")).match(request(), Bits(0))).hash(request("/", ("x", "1"))) is None


def test_a_bad_regex_names_its_route() -> None:
    with pytest.raises(ValueError, match=r"rc: virtual host 'vh', route 1 'to-b': .*missing \)"):
        table(to("a"), to("b", RouteMatcher(PathMatcher(PathKind.REGEX, "("))))


def test_ports_can_be_ignored() -> None:
    assert cluster_of(table(to("c"), ignore_port_in_host=True), request(authority="svc:80")) == "c"
    assert table(to("c")).match(request(authority="svc:80"), Bits(0)) == NR


# --- servers


def test_inbound_lets_in_what_matches_non_forwarding() -> None:
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/open")), NonForwarding())
    inbound = InboundTable(configuration(route, to("elsewhere", RouteMatcher(PathMatcher(PathKind.PREFIX, "/fwd")))))
    assert inbound.check(request("/open/1"), random.Random(1)) is None
    assert inbound.check(request("/closed"), random.Random(1)) == NR
    assert inbound.check(request("/fwd"), random.Random(1)) == NR
    assert inbound.check(request("/open", authority="other"), random.Random(1)) == NR


# --- explanations


def steps(trace: RouteTrace) -> list[tuple[Verdict, str]]:
    return [(step.verdict, step.reason) for step in trace.steps]


def test_trace_says_why_each_route_was_not_taken() -> None:
    routes = table(
        to("api", RouteMatcher(PathMatcher(PathKind.PREFIX, "/api"))),
        to("canary", RouteMatcher(ROOT, headers=(CANARY,))),
        to("query", RouteMatcher(ROOT, query=(QueryMatcher("q", True),))),
        to("some", RouteMatcher(ROOT, fraction=Fraction(5))),
        to("none", RouteMatcher(ROOT, fraction=Fraction(0))),
        to("rest"),
        to("never"),
    )
    trace = routes.trace(request("/x?y", ("x-canary", "false")))
    assert steps(trace) == [
        (Verdict.NO, 'not taken: the path is "/x"'),
        (Verdict.NO, 'not taken: wants header x-canary exact "true" (it is "false")'),
        (Verdict.NO, "not taken: wants query parameter q present"),
        (Verdict.MAYBE, "taken by 5 of 100 requests, by chance (no other condition)"),
        (Verdict.NO, "not taken: its share is 0 of 100"),
        (Verdict.YES, "taken (no other condition)"),
        (Verdict.NOT_REACHED, "not reached"),
    ]
    assert trace.chosen is not None
    assert trace.chosen.clusters == (("rest", 1),)
    assert trace.reason == 'virtual host vh: its domain "svc" matches "svc" exactly'


def test_trace_agrees_with_match() -> None:
    routes = table(to("canary", RouteMatcher(ROOT, headers=(CANARY,))), to("rest"))
    for head in (request(), request("/", ("x-canary", "true"))):
        chosen = routes.trace(head).chosen
        assert chosen is not None
        assert chosen.clusters[0][0] == cluster_of(routes, head)


def test_trace_names_the_domains_when_none_fits() -> None:
    trace = table(to("c")).trace(request(authority="other"))
    assert (trace.virtual_host, trace.chosen) == (None, None)
    assert trace.reason == 'no virtual host has a domain for "other" (domains: svc)'


def test_trace_says_where_each_action_leads() -> None:
    routes = table(
        Route(RouteMatcher(PathMatcher(PathKind.PATH, "/1")), Redirect()),
        Route(RouteMatcher(PathMatcher(PathKind.PATH, "/2")), DirectResponse(200)),
        Route(RouteMatcher(PathMatcher(PathKind.PATH, "/3")), NonForwarding()),
        Route(RouteMatcher(PathMatcher(PathKind.PATH, "/4")), RouteAction(ClusterHeader("x-c"))),
        weighted(ClusterWeight("a", 90), ClusterWeight("b", 10)),
    )
    assert [step.leads_to for step in routes.trace(request()).steps] == [
        "redirect 301",
        "direct response 200",
        "not forwarded",
        "to the cluster that header x-c names",
        "to clusters a 90 %, b 10 %",
    ]


def test_trace_does_not_show_credentials() -> None:
    matcher = HeaderMatcher("authorization", StringMatcher(StringKind.EXACT, "Bearer x"))
    routes = table(to("c", RouteMatcher(ROOT, headers=(matcher,))))
    text = str(routes.trace(request("/", ("authorization", "Bearer secret"))))
    assert "secret" not in text
    assert "its value is not shown" in text


def test_a_mutation_replaces_the_default_content_type_of_a_local_reply() -> None:
    mutation = HeaderMutation(response_add=(HeaderAdd("content-type", "a/b"),))
    found = matched(table(replace(to("a"), mutation=mutation)).match(request(), Bits(0)))
    abort = abort_reply(FaultAbort(Fraction(100), http_status=503))
    assert found.local_reply(abort, request()).headers == (("content-type", "a/b"),)
