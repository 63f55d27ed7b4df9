"""Laws of routing, each against an oracle that is slow and obvious."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.matching import compile_entries, compile_header
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import (
    Fraction,
    HeaderMatcher,
    PathKind,
    PathMatcher,
    QueryMatcher,
    RangeMatcher,
    StringKind,
    StringMatcher,
)
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import (
    AppendAction,
    ClusterHeader,
    ClusterWeight,
    DirectResponse,
    FaultAbort,
    FaultDelay,
    FaultPolicy,
    HeaderAdd,
    HeaderMutation,
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
from meshlib.routing.fault import decide_fault
from meshlib.routing.table import RouteMatch, RouteTable
from meshlib.routing.trace import Verdict
from meshlib.routing.virtual_host import DomainIndex

ROOT = PathMatcher(PathKind.PREFIX, "/")
VALUES = st.sampled_from(["", "a", "b", "ab", "A", "1", " 2", "-3", "x,y", "\xe9", "€"])
NAMES = st.sampled_from(["x-a", "x-b", "accept", ":path", ":method", "host", "x-bin"])
KINDS = st.sampled_from([StringKind.EXACT, StringKind.PREFIX, StringKind.SUFFIX, StringKind.CONTAINS])
PLAIN = st.builds(StringMatcher, KINDS, VALUES, st.booleans())
REGEXES = st.builds(StringMatcher, st.just(StringKind.REGEX), st.sampled_from(["a.*", "[ab]+", "", ".", "a|ab"]))
RANGES = st.builds(RangeMatcher, st.integers(-4, 2), st.integers(-1, 4))
HEADER_MATCHERS = st.builds(
    HeaderMatcher, NAMES, st.one_of(PLAIN, REGEXES, RANGES, st.booleans()), st.booleans(), st.booleans(), st.booleans()
)
HEADERS = st.lists(st.tuples(st.sampled_from(["x-a", "x-b", "accept", "x-bin", "x-cluster"]), VALUES), max_size=5)
PATHS = st.one_of(st.sampled_from(["", "/", "/a", "/a/b?q=a&q=b", "/a#f", "*", "?"]), st.text(max_size=8))
HEADS = st.builds(
    lambda method, authority, path, headers, is_grpc: RequestHead(
        method, authority, path, Headers(headers), is_grpc=is_grpc
    ),
    st.sampled_from(["GET", "POST", "CONNECT"]),
    st.one_of(st.sampled_from(["svc", "SVC:80", "a.svc", "", "[::1]:80"]), st.text(max_size=6)),
    PATHS,
    HEADERS,
    st.booleans(),
)


# --- domains


DOMAIN_TEXT = st.text("ab.", min_size=1, max_size=4)
DOMAINS = st.one_of(
    DOMAIN_TEXT, DOMAIN_TEXT.map(lambda text: "*" + text), DOMAIN_TEXT.map(lambda text: text + "*"), st.just("*")
)


def naive_domain(domains: list[str], host: str) -> str | None:
    """Every pattern is tried; the best by class, then by length, then by order."""
    best: tuple[int, int] | None = None
    found = None
    for domain in domains:
        if domain == "*":
            rank = (0, 0)
        elif domain.startswith("*"):
            if not (host.endswith(domain[1:]) and len(host) > len(domain) - 1):
                continue
            rank = (2, len(domain))
        elif domain.endswith("*"):
            if not (host.startswith(domain[:-1]) and len(host) > len(domain) - 1):
                continue
            rank = (1, len(domain))
        elif domain == host:
            rank = (3, 0)
        else:
            continue
        if best is None or rank > best:
            best, found = rank, domain
    return found


@given(st.lists(DOMAINS, max_size=8), st.text("ab.", max_size=6))
def test_domain_precedence(domains: list[str], host: str) -> None:
    index = DomainIndex([((domain,), domain) for domain in domains])
    assert index.find(host) == naive_domain(domains, host)
    assert index.find(host.upper()) == naive_domain(domains, host)


# --- headers


def naive_string(matcher: StringMatcher, text: str) -> bool:
    value = matcher.value
    if matcher.kind is StringKind.REGEX:
        return {
            "a.*": text.startswith("a"),
            "[ab]+": bool(text) and set(text) <= set("ab"),
            "": text == "",
            ".": len(text.encode("latin-1") if text != "€" else text.encode()) == 1,
            "a|ab": text in ("a", "ab"),
        }[value]
    if matcher.ignore_case:
        value = "".join(c.lower() if c.isascii() else c for c in value)
        text = "".join(c.lower() if c.isascii() else c for c in text)
    return {
        StringKind.EXACT: text == value,
        StringKind.PREFIX: text[: len(value)] == value,
        StringKind.SUFFIX: value == "" or text[-len(value) :] == value,
        StringKind.CONTAINS: text.find(value) >= 0,
    }[matcher.kind]


def naive_header(matcher: HeaderMatcher, entries: tuple[str, ...]) -> bool:
    test = matcher.test
    if isinstance(test, bool):
        return ((bool(entries) or matcher.treat_missing_as_empty) == test) != matcher.invert
    if not entries:
        if not matcher.treat_missing_as_empty:
            return False
        entries = ("",)
    if isinstance(test, RangeMatcher):
        numbers = {"1": 1, " 2": 2, "-3": -3}
        hit = any(entry in numbers and test.start <= numbers[entry] < test.end for entry in entries)
    elif matcher.exact_empty_matches_any and test.value == "":
        hit = True
    else:
        hit = any(naive_string(test, entry) for entry in entries)
    return hit != matcher.invert


@given(HEADER_MATCHERS, st.lists(VALUES, max_size=3).map(tuple))
def test_header_matcher(matcher: HeaderMatcher, entries: tuple[str, ...]) -> None:
    assert compile_entries(matcher)(entries) == naive_header(matcher, entries)


@given(HEADER_MATCHERS, HEADS)
def test_header_condition_on_a_request(matcher: HeaderMatcher, head: RequestHead) -> None:
    name = matcher.name
    entries = head.values(name)
    if head.is_grpc:
        hidden = name == "x-bin" or (name.startswith(":") and name != ":authority")
        entries = () if hidden else (",".join(entries),) if len(entries) > 1 else entries
    elif name == "accept" and len(entries) > 1:
        entries = (",".join(entry for entry in entries if entry),)
    # The oracle of strings knows the values of the strategy only.
    if all(entry in ("", "a", "b", "ab", "A", "1", " 2", "-3", "x,y", "\xe9") for entry in entries):
        assert compile_header(matcher)(head) == naive_header(matcher, entries)
    else:
        assert compile_header(matcher)(head) in (True, False)


# --- shares


def weighted_table(weights: list[int]) -> RouteTable:
    clusters = tuple(ClusterWeight(f"c{index}", weight) for index, weight in enumerate(weights))
    route = Route(RouteMatcher(ROOT), RouteAction(WeightedClusters(clusters)))
    config = RouteConfiguration("rc", (VirtualHost("vh", ("*",), (route,)),))
    return RouteTable(ClientListener("l", config), config)


class Bits:
    def __init__(self, number: int) -> None:
        self.number = number

    def random(self) -> float:
        raise AssertionError("routing draws bits")

    def getrandbits(self, k: int, /) -> int:
        return self.number


def cluster(table: RouteTable, rng: Bits | random.Random) -> str:
    found = table.match(RequestHead("GET", "svc", "/", Headers()), rng)
    assert isinstance(found, RouteMatch)
    return found.cluster


WEIGHTS = st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any)


@given(WEIGHTS)
def test_weights_are_exact_over_all_residues(weights: list[int]) -> None:
    table = weighted_table(weights)
    counts = Counter(cluster(table, Bits(number)) for number in range(sum(weights)))
    assert counts == {f"c{index}": weight for index, weight in enumerate(weights) if weight}


@settings(max_examples=20)
@given(WEIGHTS, st.integers(0, 2**32))
def test_weights_are_met_within_five_standard_deviations(weights: list[int], seed: int) -> None:
    table, rng, total = weighted_table(weights), random.Random(seed), sum(weights)
    draws = 2000
    counts = Counter(cluster(table, rng) for _ in range(draws))
    for index, weight in enumerate(weights):
        share = weight / total
        assert abs(counts[f"c{index}"] - draws * share) <= 5 * (draws * share * (1 - share)) ** 0.5 + 1e-9


@given(st.integers(0, 100), st.integers(0, 2**64 - 1))
def test_a_fraction_is_a_residue(numerator: int, bits: int) -> None:
    some = Route(RouteMatcher(ROOT, fraction=Fraction(numerator)), RouteAction(SingleCluster("some")))
    rest = Route(RouteMatcher(ROOT), RouteAction(SingleCluster("rest")))
    config = RouteConfiguration("rc", (VirtualHost("vh", ("*",), (some, rest)),))
    table = RouteTable(ClientListener("l", config), config)
    assert cluster(table, Bits(bits)) == ("some" if bits % 100 < numerator else "rest")


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 2**32))
def test_faults_have_at_most_one_delay_and_one_abort(delay: int, abort: int, seed: int) -> None:
    policy = FaultPolicy(FaultDelay(0.5, Fraction(delay)), FaultAbort(Fraction(abort), http_status=503))
    found = decide_fault(policy, RequestHead("GET", "svc", "/", Headers()), random.Random(seed))
    assert found.delay_s in (0.0, 0.5)
    assert delay > 0 or found.delay_s == 0
    assert delay < 100 or found.delay_s == 0.5
    assert abort > 0 or found.abort is None
    assert abort < 100 or found.abort is not None


# --- never raises, and explains what it does


PATH_MATCHERS = st.one_of(
    st.builds(
        PathMatcher,
        st.sampled_from([PathKind.PREFIX, PathKind.PATH, PathKind.SEPARATED_PREFIX]),
        st.sampled_from(["/", "/a", "/a/b", ""]),
        st.booleans(),
    ),
    st.builds(PathMatcher, st.just(PathKind.REGEX), st.sampled_from(["/a.*", ".*", "/[a-z]+"])),
    st.builds(PathMatcher, st.just(PathKind.TEMPLATE), st.sampled_from(["/*", "/{x}/**"])),
    st.builds(PathMatcher, st.just(PathKind.CONNECT), st.just("")),
)
ADDS = st.builds(
    HeaderAdd,
    st.sampled_from(["x-a", "x-new", "accept"]),
    st.sampled_from(["v", "%REQ(x-a)%", "%REQ(:path):3%", "%QUERY_PARAM(q)%", "%RESP(x-a)%"]),
    st.sampled_from(list(AppendAction)),
    st.booleans(),
)
ADD_TUPLES = st.lists(ADDS, max_size=2).map(tuple)
MUTATIONS = st.builds(HeaderMutation, st.just(()), ADD_TUPLES, st.sampled_from([(), ("x-a",)]), ADD_TUPLES)
ACTIONS = st.one_of(
    st.builds(
        RouteAction,
        st.one_of(
            st.just(SingleCluster("c")),
            st.just(ClusterHeader("x-cluster")),
            st.just(WeightedClusters((ClusterWeight("a", 1), ClusterWeight("b", 3)), header_name="x-a")),
        ),
        prefix_rewrite=st.sampled_from(["", "/new"]),
        host_rewrite_header=st.sampled_from(["", "x-a"]),
        append_x_forwarded_host=st.booleans(),
    ),
    st.builds(Redirect, https=st.booleans(), port=st.sampled_from([0, 1]), strip_query=st.booleans()),
    st.builds(DirectResponse, st.sampled_from([200, 201, 204, 503]), st.sampled_from([b"", b"x"])),
    st.just(NonForwarding()),
)
ROUTE_MATCHERS = st.builds(
    RouteMatcher,
    PATH_MATCHERS,
    st.lists(HEADER_MATCHERS, max_size=2).map(tuple),
    st.lists(st.builds(QueryMatcher, st.just("q"), st.one_of(PLAIN, st.booleans())), max_size=1).map(tuple),
    st.booleans(),
    st.one_of(st.none(), st.builds(Fraction, st.integers(0, 100))),
)
ROUTES = st.builds(Route, ROUTE_MATCHERS, ACTIONS, st.just("r"), MUTATIONS)
CONFIGURATIONS = st.builds(
    lambda routes, domains, ignore_port: RouteConfiguration(
        "rc", (VirtualHost("vh", tuple(domains), tuple(routes)),), ignore_port_in_host=ignore_port
    ),
    st.lists(ROUTES, max_size=4),
    st.lists(st.sampled_from(["svc", "*.svc", "svc*", "*"]), min_size=1, max_size=3),
    st.booleans(),
)


@given(CONFIGURATIONS, HEADS, st.integers(0, 2**64 - 1))
def test_match_and_what_follows_never_raise(config: RouteConfiguration, head: RequestHead, bits: int) -> None:
    table = RouteTable(ClientListener("l", config), config)
    found = table.match(head, Bits(bits))
    if isinstance(found, RouteMatch):
        out = found.rewrite(head)
        found.response_headers(Headers((("x-a", "1"),)), out)
        found.response_headers(Headers())
        found.hash(out)
        assert found.cluster_not_found(out).flag == "NC"
        assert found.local_reply(LocalReply(503, "UH", "no_healthy_upstream", b"x"), out).status == 503
    else:
        assert isinstance(found, LocalReply)
        assert 200 <= found.status <= 599


@given(CONFIGURATIONS, HEADS)
def test_the_trace_names_the_route_that_is_taken(config: RouteConfiguration, head: RequestHead) -> None:
    table = RouteTable(ClientListener("l", config), config)
    trace = table.trace(head)
    assert str(trace)
    # With these bits no share of less than everything is taken, so only the certain route can answer.
    found = table.match(head, Bits(99))
    if trace.chosen is None:
        assert isinstance(found, LocalReply)
        assert found.details == "route_not_found"
    elif isinstance(found, RouteMatch):
        assert found.action == config.virtual_hosts[0].routes[trace.chosen.number].action
    verdicts = [step.verdict for step in trace.steps]
    assert verdicts.count(Verdict.YES) <= 1
    if Verdict.YES in verdicts:
        assert set(verdicts[verdicts.index(Verdict.YES) + 1 :]) <= {Verdict.NOT_REACHED}
