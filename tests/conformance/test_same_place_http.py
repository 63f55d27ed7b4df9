"""HTTP requests whose way is certain: Envoy, meshlib and the documents' author agree on it, to the byte where it matters."""

from dataclasses import dataclass, field

import pytest
from peers.processes import poll
from peers.upstreams import Answer, Step
from peers.world import World

DOCUMENTS = {
    "shop.yaml": r"""
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop, shop.example.com]
  http:
  - match: [{headers: {x-exact: {exact: "yes"}}}, {headers: {x-prefix: {prefix: gold-}}}, {headers: {x-regex: {regex: "v[0-9]+"}}}]
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{uri: {prefix: /without}, withoutHeaders: {x-flag: {exact: "on"}}}]
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{headers: {x-present: {}}}]
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{uri: {exact: /exact}}, {uri: {exact: /AnyCase}, ignoreUriCase: true}, {uri: {regex: "/report-[a-z]{3}"}}]
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{method: {exact: DELETE}}, {authority: {prefix: shop.default.}}, {queryParams: {debug: {exact: "1"}}}]
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{uri: {prefix: /api/}}]
    rewrite: {uri: /internal/}
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{uri: {regex: "/items/([0-9]+)"}}]
    rewrite: {uriRegexRewrite: {match: "/items/([0-9]+)", rewrite: "/item/\\1/show"}}
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {prefix: /host}}]
    rewrite: {authority: other.example}
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {prefix: /headers}}]
    headers:
      request: {set: {x-set: by-route, x-percent: "50%%"}, add: {x-add: more}, remove: [x-secret]}
      response: {set: {x-answer: by-route}, add: {x-two: second}, remove: [x-upstream]}
    route: [{destination: {host: shop, subset: v1}, headers: {request: {add: {x-add: of-destination}}}}]
  - match: [{uri: {prefix: /all-v1}}]
    route: [{destination: {host: shop, subset: v1}, weight: 100}, {destination: {host: shop, subset: v2}, weight: 0}]
  - match: [{uri: {prefix: /all-v2}}]
    route: [{destination: {host: shop, subset: v1}, weight: 0}, {destination: {host: shop, subset: v2}, weight: 100}]
  - match: [{uri: {prefix: /copied}}]
    mirror: {host: shadow}
    rewrite: {uri: /original}
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /new, authority: new.example, redirectCode: 302}
  - match: [{uri: {prefix: /docs/}}]
    redirect: {prefixRewrite: /manual/, scheme: https, port: 8443, redirectCode: 308}
  - match: [{uri: {exact: /teapot}}]
    directResponse: {status: 418, body: {string: "short and stout"}}
  - match: [{uri: {exact: /empty}}]
    directResponse: {status: 204}
  - match: [{uri: {exact: /abort}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {exact: /slow}}]
    fault: {delay: {fixedDelay: 0.2s, percentage: {value: 100}}}
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {exact: /slow-abort}}]
    fault: {delay: {fixedDelay: 0.1s, percentage: {value: 100}}, abort: {httpStatus: 429, percentage: {value: 100}}}
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {exact: /never-faulty}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 0}}}
    route: [{destination: {host: shop, subset: v1}}]
  - route: [{destination: {host: shop, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: picky}
spec:
  hosts: [picky]
  http:
  - match: [{uri: {prefix: /known}}]
    route: [{destination: {host: shop, subset: v1}}]
"""
}

# What a proxy adds of itself; and `connection`, which every hop writes anew.
PROXY_REQUEST_HEADERS = {"x-forwarded-proto", "x-request-id", "x-envoy-expected-rq-timeout-ms", "connection"}
PROXY_RESPONSE_HEADERS = {"server", "date", "x-envoy-upstream-service-time", "connection", "transfer-encoding"}


@dataclass(frozen=True)
class Case:
    """A request, and where it has to go.

    Attributes:
        version: Empty: no upstream gets it.
    """

    name: str
    url: str
    version: str = ""
    status: int = 200
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    authority: str = ""
    path: str = field(default="", kw_only=True)
    content: bytes | None = None


CASES = [
    Case("no rule but the last", "http://shop/", "v1"),
    Case("exact header", "http://shop/", "v2", headers=(("x-exact", "yes"),)),
    Case("exact header with more in it", "http://shop/", "v1", headers=(("x-exact", "yes!"),)),
    Case("exact header in another case", "http://shop/", "v1", headers=(("x-exact", "Yes"),)),
    Case("header name in another case", "http://shop/", "v2", headers=(("X-EXACT", "yes"),)),
    Case("header twice, one line matches", "http://shop/", "v2", headers=(("x-exact", "no"), ("x-exact", "yes"))),
    Case("header twice, together a match", "http://shop/", "v1", headers=(("x-regex", "v"), ("x-regex", "1"))),
    Case("header prefix", "http://shop/", "v2", headers=(("x-prefix", "gold-7"),)),
    Case("header regex", "http://shop/", "v2", headers=(("x-regex", "v12"),)),
    Case("header regex matches the whole value", "http://shop/", "v1", headers=(("x-regex", "v12a"),)),
    Case("header absent as demanded", "http://shop/without", "v2"),
    Case("header of another value", "http://shop/without", "v2", headers=(("x-flag", "off"),)),
    Case("header there that must not be", "http://shop/without", "v1", headers=(("x-flag", "on"),)),
    Case("header present", "http://shop/", "v2", headers=(("x-present", "anything"),)),
    Case("header present and empty", "http://shop/", "v2", headers=(("x-present", ""),)),
    Case("exact path", "http://shop/exact", "v2"),
    Case("exact path with a query", "http://shop/exact?a=b", "v2"),
    Case("exact path and a slash", "http://shop/exact/", "v1"),
    Case("exact path in another case", "http://shop/EXACT", "v1"),
    Case("path without regard to case", "http://shop/ANYcase", "v2"),
    Case("path regex", "http://shop/report-abc", "v2"),
    Case("path regex without the query", "http://shop/report-abc?x=report", "v2"),
    Case("path regex matches the whole path", "http://shop/report-abcd", "v1"),
    Case("escaped path", "http://shop/%65xact", "v1"),
    Case("method", "http://shop/", "v2", method="DELETE"),
    Case("another method with a body", "http://shop/", "v1", method="POST", content=b"some body"),
    Case("authority", "http://shop.default.svc/", "v2"),
    Case("authority with the port", "http://shop.default.svc:80/", "v2"),
    Case("authority in another case", "http://shop/", "v1", authority="SHOP"),
    Case("service by its full name and port", "http://shop:80/", "v1"),
    Case("host of the VirtualService", "http://shop.example.com/exact", "v2"),
    Case("Host header instead of the URL's host", "http://shop/", "v2", authority="shop.default.svc.cluster.local"),
    Case("query parameter", "http://shop/?debug=1", "v2"),
    Case("query parameter among others", "http://shop/?a=b&debug=1&c", "v2"),
    Case("query parameter of another value", "http://shop/?debug=11", "v1"),
    Case("prefix rewrite", "http://shop/api/users?id=7", "v2", path="/internal/users?id=7"),
    Case("prefix that is not there", "http://shop/api", "v1"),
    Case("regex rewrite", "http://shop/items/42?full=1", "v1", path="/item/42/show?full=1"),
    Case("host rewrite", "http://shop/host/x", "v1"),
    Case(
        "header changes", "http://shop/headers", "v1", headers=(("x-in", "abc"), ("x-secret", "s"), ("x-set", "mine"))
    ),
    Case("header added to one that is there", "http://shop/headers", "v1", headers=(("x-add", "mine"),)),
    Case("weights 100 and 0", "http://shop/all-v1", "v1"),
    Case("weights 0 and 100", "http://shop/all-v2", "v2"),
    Case("redirect", "http://shop/moved?a=b", status=302),
    Case("redirect of a prefix", "http://shop/docs/a/b?c=d", status=308),
    Case("direct response", "http://shop/teapot", status=418),
    Case("direct response without a body", "http://shop/empty", status=204),
    Case("no route", "http://picky/unknown", status=404),
    Case("the one route", "http://picky/known", "v1"),
    Case("unknown host in the Host header", "http://shop/", status=404, authority="nobody.example"),
    Case("host with a port that nobody has", "http://shop/", status=404, authority="shop:8080"),
    Case("injected abort", "http://shop/abort", status=555),
    Case("injected delay", "http://shop/slow", "v1"),
    Case("injected delay, then abort", "http://shop/slow-abort", status=429),
    Case("fault of 0 per cent", "http://shop/never-faulty", "v1"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("same-place"), DOCUMENTS) as world:
        for version in ("v1", "v2"):
            upstream = world.http("shop", version)
            upstream.usual = Step(headers=(("x-upstream", "was here"), ("x-two", "first")))
        world.shadow = world.http("shadow", "v1")
        world.start_envoy()
        world.start_mesh()
        world.envoy.wait_ready()
        yield world


def seen_headers(answer: Answer) -> list[tuple[str, str]]:
    assert answer.seen is not None
    return sorted(entry for entry in answer.seen.headers if entry[0] not in PROXY_REQUEST_HEADERS)


def response_headers(answer: Answer) -> dict[str, str]:
    # A body of no length has a length or none; httpx and Envoy differ in that for a 204, which has none by definition.
    ignored = PROXY_RESPONSE_HEADERS | ({"content-length"} if not answer.body or answer.version else set())
    return {name: value for name, value in answer.headers.items() if name not in ignored}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_request_goes_to_the_same_place(world, case):
    asked = (case.method, case.url, case.headers, case.content)
    by_envoy = world.ask_envoy(*asked, authority=case.authority)
    by_meshlib = world.ask_meshlib(*asked, authority=case.authority)

    assert (case.status, case.version) == (by_envoy.status, by_envoy.version)
    assert (case.status, case.version) == (by_meshlib.status, by_meshlib.version)
    assert response_headers(by_envoy) == response_headers(by_meshlib)
    if case.version:
        assert by_envoy.seen.method == by_meshlib.seen.method == case.method
        assert by_envoy.seen.path == by_meshlib.seen.path
        assert by_envoy.seen.authority == by_meshlib.seen.authority
        assert seen_headers(by_envoy) == seen_headers(by_meshlib)
        if case.path:
            assert case.path == by_meshlib.seen.path
    else:
        assert by_envoy.body == by_meshlib.body


def test_host_outside_the_mesh_is_not_found_by_both(world):
    assert 404 == world.ask_envoy("GET", "http://nobody.example/").status
    assert "NR" == world.ask_meshlib("GET", "http://nobody.example/").flag


def test_both_copy_a_request_to_the_mirror(world):
    """As with Istio, the copy names the host as it was."""
    for ask in (world.ask_envoy, world.ask_meshlib):
        world.shadow.seen.clear()
        answer = ask("POST", "http://shop/copied?a=b", [("x-mine", "1")], b"some body")
        assert (200, "v1") == (answer.status, answer.version)
        poll(lambda: world.shadow.seen, "the copy")
        (copy,) = world.shadow.seen
        assert ("POST", "/original?a=b", "shop") == (copy.method, copy.path, copy.authority)
        assert {("x-mine", "1"), ("content-length", "9")} <= set(copy.headers)


def test_both_delay_by_the_time_in_the_document(world):
    """Envoy counts from the time at which its event loop woke up, which may be some milliseconds ago."""
    for ask, early_s in ((world.ask_envoy, 0.05), (world.ask_meshlib, 0.0)):
        assert 0.2 - early_s <= ask("GET", "http://shop/slow").elapsed_s
        assert 0.1 - early_s <= ask("GET", "http://shop/slow-abort").elapsed_s


@pytest.mark.parametrize(
    ("path", "flag"), [("/abort", "FI"), ("/slow", "DI"), ("/slow-abort", "DI,FI"), ("/picky", "-")]
)
def test_meshlib_flags_injected_faults_as_envoy_does(world, path, flag):
    assert flag == world.ask_meshlib("GET", f"http://shop{path}").flag


def test_everything_was_accepted(world):
    world.server.wait_settled("envoy-1", "meshlib-1")
    world.check_envoy()
    assert 0 == world.server.rejection_count()
