"""Random route configurations, in proto3 JSON, and requests that are likely to meet them.

Alphabets are small, so that matches happen. Everything is decided by the seed, and every decision is deterministic:
weights are chosen by a header, fractions and percentages are 0 or 100.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from differential.formats import body_format, made_choice, made_time
from meshlib.model.request import is_grpc_type

Json = dict[str, Any]
T = TypeVar("T")

TYPE = "type.googleapis.com/"
FAULT_FILTER = "envoy.filters.http.fault"
HEADER_FILTER = "envoy.filters.http.header_mutation"
FAULT_HEADERS = {
    "x-envoy-fault-abort-request": ("503", "200", "599", "600", "199", "x", "+418"),
    "x-envoy-fault-abort-grpc-request": ("5", "0", "x"),
    "x-envoy-fault-abort-request-percentage": ("0", "100", "1000", "x", "-1"),
    "x-envoy-downstream-service-node": ("n1", "n3", ""),
}
WEIGHT_HEADER = "x-weight"
CLUSTERS = ("a", "b")
MISSING_CLUSTER = "nowhere"
LISTENER_PORT = ":10099"
"""In texts: the port of the listener."""

DOMAINS = (
    "shop",
    "*.shop",
    "shop.*",
    "*",
    "eu.shop",
    "*.eu.shop",
    "SHOP:80",
    "*-eu",
    "sh*",
    "shop:81",
    "[::1]",
    "*shop:80",
)
AUTHORITIES = (
    "shop", "SHOP", "eu.shop", "a.eu.shop", ".shop", "shop:80", "shop:81", "shop.", "shop.eu", "x-eu", "-eu", "shd",
    "other", "[::1]:80", "[::1]",
)  # fmt: skip
PATHS = (
    "/", "/a", "/a/b", "/a/b/c", "/ab", "/A/b", "/a/", "/v1/x", "/v1/x/y", "/x;p=1/y", "/a%2Fb", "//a", "/v2", "/a.b", "/a;x=1/b", "/a/b;c",
)  # fmt: skip
QUERIES = ("", "", "", "?q=a", "?q", "?q=", "?q=a&q=b", "?r=b&q=1", "?%71=a", "?", "?q=a=b", "?r")
HEADERS = ("x-1", "x-2", "accept", "user-agent", "cookie", "x-set")
VALUES = ("a", "b", "ab", "A", "a,b", "1", "-3", "v1", "", "+5", "a b")
REGEXES = ("a.*", "[ab]+", "a|b", "v[0-9]", ".*,.*", "A?a", ".*", "")
TEMPLATES = (
    "/{p}",
    "/a/{p}",
    "/{p}/{q=**}",
    "/v1/*/{p}",
    "/{p=a/*}",
    "/**/{p=b}",
    "/{p}%2F{q}",
    "/a*",
    "/{p}.b",
    "/**",
)
TEMPLATE_REWRITES = ("/n/{p}", "/{p}/{p}", "/n", "/{q}", "n", "/n/{p}-x")
PATH_REGEXES = ("/a.*", "/[a-z]", "/v[0-9]/(.*)", ".*", "/a/(b)/?(c?)", "/(a|v1)/.+")
FORMATS = (
    "a", "b", "%REQ(x-1)%", "%REQ(x-9?x-2)%", "%REQ(:path)%", "%REQ(:authority)%", "50%%", "%REQ(x-1):1%", "",
    "%REQ(x-9)%", "%UPSTREAM_CLUSTER%", "%REQ(x-set)%-y", "%ROUTE_NAME%", "%PATH(NQ)%", "%QUERY_PARAM(q)%",
    "%QUERY_PARAMS%", "%RESPONSE_CODE%%RESPONSE_FLAGS%", "%RESPONSE_CODE_DETAILS%", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "%METADATA(ROUTE:ns:k)%", "%METADATA(ROUTE:ns)%", "%METADATA(VIRTUAL_HOST:ns:k)%", "%DYNAMIC_METADATA(a:b)%", "%UPSTREAM_HOST_NAME%", "%UPSTREAM_HOST%", "%REQ(?x-1)%",
    "%METADATA(CLUSTER:ns:k)%", "%CLUSTER_METADATA(ns)%", "%METADATA(CLUSTER:ns:o:n):1%", "%METADATA(LISTENER:ns:k)%",
    "%METADATA(LISTENER_FILTER_CHAIN:ns:k)%", "%METADATA(CLUSTER)%", "%METADATA(NONE:ns)%", "%UPSTREAM_PROTOCOL%",
    "%UPSTREAM_HOSTS_ATTEMPTED%", "%UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT%", "%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
    "%GRPC_STATUS%", "%GRPC_STATUS(SNAKE_STRING)%", "%GRPC_STATUS_NUMBER%",
    "%RESP(x-up)%", "%PATH(WQ:ORIG)%", "%TRAILER(x)%", "14", "7", "99",
)  # fmt: skip
PIECES = (
    "a", "b", "v1", "x", "/", "/", "/", "//", ".", "..", "/.", "/..", "/../", "%2F", "%2f", "%5C", "%5c", "\\", "%2e", "%2E.",
    ";p", "..;p/", "%41", "%7e", "%20", "%zz", "%", "%00", "<", "^", "~", "[", "%c3%a9",
)  # fmt: skip
PORTS = ("", "", ":80", LISTENER_PORT, LISTENER_PORT, ":", ":abc", ":081")


LAYERS = ("all", "matching", "rewriting", "clusters", "answers")
"""Everything at once; conditions; what is changed in a request; where it goes; what is answered instead."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request; header names are in lower case and may repeat.

    Attributes:
        authority: `LISTENER_PORT` in it stands for the port that the request is sent to.
        manager: Which of the connection managers takes it.
    """

    method: str
    path: str
    authority: str
    headers: tuple[tuple[str, str], ...]
    manager: int = 0

    @property
    def is_grpc(self) -> bool:
        """Whether the content type is gRPC's, with or without a suffix."""
        return any(name == "content-type" and is_grpc_type(value) for name, value in self.headers)

    def to_json(self) -> Json:
        return {"method": self.method, "path": self.path, "authority": self.authority, "headers": list(self.headers)}


def _template(kind: str, **fields: str) -> Json:
    name = f"envoy.extensions.path.{kind}.uri_template.v3.UriTemplate{kind.capitalize()}Config"
    return {"name": "template", "typed_config": {"@type": TYPE + name, **fields}}


def spoilt_path(chance: random.Random) -> str:
    """Return a path without query that may be written otherwise."""
    return "/" + "".join(chance.choice(PIECES) for _ in range(chance.choice((1, 2, 3, 5))))


def spoilt_host(chance: random.Random, hosts: Sequence[str]) -> str:
    """Return an authority that may have a dot and a port."""
    host = chance.choice(hosts)
    if ":" in host:
        return host
    return host + ("." if chance.random() < 0.4 else "") + chance.choice(PORTS)


class Generator:
    """Makes configurations and requests out of a seed."""

    def __init__(self, seed: int | str, layer: str = "all", managers: int = 1) -> None:
        """Make a generator.

        Args:
            layer: What configurations are mostly about: one of `LAYERS`.
            managers: How many connection managers there are.
        """
        self._managers = managers
        self._random = random.Random(f"{layer}/{seed}" if layer != "all" else seed)
        self._layer = layer
        self._has_filters = self._maybe(0.3)

    def _pick(self, items: Sequence[T]) -> T:
        return self._random.choice(items)

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _some(self, make: Callable[[], T], *counts: int) -> list[T]:
        return [make() for _ in range(self._pick(counts))]

    # Configurations.

    def configuration(self) -> Json:
        domains = list(DOMAINS)
        self._random.shuffle(domains)
        hosts = []
        for number in range(self._pick((1, 1, 2, 3))):
            taken = [domains.pop() for _ in range(self._pick((1, 2, 3)))]
            if number == 0 and "shop" in domains and self._maybe(0.95):
                domains.remove("shop")
                taken.append("shop")
            names = (f"r{number}.{index}" for index in range(self._pick((1, 3, 6))))
            routes = [self._route(name) for name in names]
            if self._maybe(0.6):
                routes.append({**self._route(f"r{number}.last"), "match": {"prefix": "/"}})
            asked = {"matcher": self._tree(routes)} if self._maybe(0.1) else {"routes": routes}
            host = {"name": f"v{number}", "domains": taken, **asked, **self._mutations(0.15)}
            if self._maybe(0.3):
                host["metadata"] = {"filter_metadata": {"ns": {"k": self._pick(("h", 2, [True]))}}}
            hosts.append(host)
        result: Json = {"name": "differential", "virtual_hosts": hosts, **self._mutations(0.15)}
        if self._maybe(0.3):
            result["most_specific_header_mutations_wins"] = True
        if self._maybe(0.3):
            result["ignore_port_in_host_matching"] = True
        if self._maybe(0.1):
            result["ignore_path_parameters_in_path_matching"] = True
        if self._maybe(0.1):
            result["vhost_header"] = "x-host"
        if self._maybe(0.1):
            self._pick(hosts)["require_tls"] = self._pick(("ALL", "EXTERNAL_ONLY"))
        if self._maybe(0.05):
            self._spoil(result)
        return result

    def _spoil(self, result: Json) -> None:
        """Make a configuration one that has to be refused."""
        hosts = [host for host in result["virtual_hosts"] if "routes" in host]
        if not hosts:
            return
        host = self._pick(hosts)
        route = self._pick(host["routes"])
        match self._pick(("regex", "domain", "both rewrites", "no path", "no weight", "no domains", "bad format")):
            case "regex":
                route["match"] = {"safe_regex": {"regex": "(a"}}
            case "domain":
                host["domains"].append(host["domains"][0])
            case "both rewrites":
                route.pop("redirect", None), route.pop("direct_response", None)
                rewrite = {"pattern": {"regex": "a"}, "substitution": "b"}
                route["route"] = {"cluster": "a", "prefix_rewrite": "/n", "regex_rewrite": rewrite}
            case "no path":
                route["match"] = {}
            case "no weight":
                route.pop("redirect", None), route.pop("direct_response", None)
                route["route"] = {"weighted_clusters": {"clusters": [{"name": "a", "weight": 0}]}}
            case "no domains":
                host["domains"] = []
            case "bad format":
                route["request_headers_to_add"] = [{"header": {"key": "x-1", "value": "%REQ(x-1"}}]

    def _tree(self, routes: list[Json]) -> Json:
        """Make a matcher tree that leads to routes."""

        def leaf() -> Json:
            if self._maybe(0.2):
                return {"matcher": self._tree(routes)}
            several = self._maybe(0.3)
            config = {"routes": self._some(lambda: self._pick(routes), 1, 2)} if several else self._pick(routes)
            kind = "RouteList" if several else "Route"
            return {"action": {"name": "a", "typed_config": {"@type": f"{TYPE}envoy.config.route.v3.{kind}", **config}}}

        def value() -> Json:
            name = self._pick((*HEADERS[:3], ":path"))
            kind = f"{TYPE}envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
            return {"name": "header", "typed_config": {"@type": kind, "header_name": name}}

        def predicate(depth: int = 0) -> Json:
            kind = self._pick(("single", "single", "and", "or", "not")) if depth < 2 else "single"
            if kind == "single":
                test = self._string()
                if "safe_regex" in test:
                    test["safe_regex"]["google_re2"] = {}
                return {"single_predicate": {"input": value(), "value_match": test}}
            if kind == "not":
                return {"not_matcher": predicate(depth + 1)}
            return {f"{kind}_matcher": {"predicate": [predicate(depth + 1), predicate(depth + 1)]}}

        result: Json = {"on_no_match": leaf()} if self._maybe(0.7) else {}
        if self._maybe(0.5):
            entries = self._some(lambda: {"predicate": predicate(), "on_match": leaf()}, 1, 2)
            result["matcher_list"] = {"matchers": entries}
        else:
            keys = {self._pick(("a", "ab", "", "/", "/a", "b", "1")): leaf() for _ in range(3)}
            kind = self._pick(("exact_match_map", "prefix_match_map"))
            result["matcher_tree"] = {"input": value(), kind: {"map": keys}}
        return result

    def _route(self, name: str) -> Json:
        match = self._match()
        result: Json = {
            "name": name,
            "match": match,
            **self._action("path_match_policy" in match),
            **self._mutations(0.3),
        }
        if self._maybe(0.3):
            result["metadata"] = {"filter_metadata": {"ns": {"k": self._pick(("v", 1.5, True, [1, "a"], {"b": None}))}}}
        if self._maybe(0.3):
            result.setdefault("typed_per_filter_config", {})[FAULT_FILTER] = self._fault()
        return result

    def _match(self) -> Json:
        if self._layer in ("rewriting", "clusters", "answers") and self._maybe(0.6):
            return {"prefix": self._pick(("/", "/a", "/v1"))}
        kind = self._random.random()
        result: Json
        if kind < 0.4:
            result = {"prefix": self._pick(("/", "/a", "/a/", "/A", "/v1", "/x", ""))}
        elif kind < 0.6:
            result = {"path": self._pick(PATHS)}
        elif kind < 0.72:
            result = {"path_separated_prefix": self._pick(("/a", "/A", "/v1/x"))}
        elif kind < 0.82:
            result = {"path_match_policy": _template("match", path_template=self._pick(TEMPLATES))}
        else:
            result = {"safe_regex": {"regex": self._pick(PATH_REGEXES)}}
        if not result.keys() & {"safe_regex", "path_match_policy"} and self._maybe(0.2):
            result["case_sensitive"] = False
        if self._maybe(0.35):
            result["headers"] = self._some(self._header, 1, 1, 2)
        if self._maybe(0.2):
            result["query_parameters"] = self._some(self._parameter, 1, 1, 2)
        if self._maybe(0.08):
            result["grpc"] = {}
        if self._maybe(0.08):
            result["runtime_fraction"] = {"default_value": {"numerator": self._pick((0, 100))}}
        if self._maybe(0.08):
            result |= self._proxy_condition()
        return result

    def _proxy_condition(self) -> Json:
        """What a caller in the same process never fulfils, or always."""
        if self._maybe(0.4):
            return {"tls_context": {"presented": self._pick((True, False))}}
        if self._maybe(0.3):
            return {"filter_state": [{"key": "k", "string_match": {"prefix": "v"}}]}
        value = self._pick(({"null_match": {}}, {"present_match": True}, {"string_match": {"exact": "v"}}))
        invert = {"invert": True} if self._maybe(0.5) else {}
        return {"dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": value, **invert}]}

    def _string(self, values: Sequence[str] = ("a", "b", "ab", "A", "a,b", "v1", "1")) -> Json:
        kind = self._pick(("exact", "prefix", "suffix", "contains", "safe_regex"))
        if kind == "safe_regex":
            return {kind: {"regex": self._pick(REGEXES[:-1])}}
        ignore = {"ignore_case": True} if self._maybe(0.3) else {}
        return {kind: self._pick(values), **ignore}

    def _header(self) -> Json:
        pseudo = (":path", ":method", ":authority", "host")
        result: Json = {"name": self._pick((*HEADERS, *pseudo, "X-1"))}
        kind = self._random.random()
        if kind < 0.55:
            # Which digits the port of the listener has is chance.
            has_port = result["name"] in (":authority", "host")
            result["string_match"] = self._string(("a", "b", "ab", "A", "shop")) if has_port else self._string()
        elif kind < 0.7:
            result["range_match"] = {"start": self._pick(("-3", "0", "1")), "end": self._pick(("2", "5", "10"))}
        elif kind < 0.9:
            result["present_match"] = self._pick((True, False))
        if self._maybe(0.3):
            result["invert_match"] = True
        if self._maybe(0.3):
            result["treat_missing_header_as_empty"] = True
        return result

    def _parameter(self) -> Json:
        result: Json = {"name": self._pick(("q", "r", "s"))}
        kind = self._random.random()
        if kind < 0.5:
            result["string_match"] = self._string()
        elif kind < 0.8:
            result["present_match"] = self._pick((True, False))
        return result

    def _action_kind(self) -> float:
        """Return a number below 1; the layer says which part of the range it comes from."""
        low, high = {
            "matching": (0.12, 0.2),
            "rewriting": (0.5, 1.0),
            "clusters": (0.2, 0.7),
            "answers": (0.0, 0.3),
        }.get(self._layer, (0.0, 1.0))
        return self._random.uniform(low, high) if self._maybe(0.9) else self._random.random()

    def _action(self, has_template: bool) -> Json:
        kind = self._action_kind()
        if kind < 0.12:
            return {"redirect": self._redirect()}
        if kind < 0.2:
            body: Json = {"body": {"inline_string": "hello"}} if self._maybe(0.7) else {}
            if self._maybe(0.3):
                body["body_format"] = body_format(self._random)
            return {"direct_response": {"status": self._pick((200, 201, 204, 302, 404, 503)), **body}}
        result: Json = {}
        if kind < 0.28:
            result["cluster_header"] = "x-cluster"
        elif kind < 0.5:
            by_header = [self._weight("", (50,))] if self._maybe(0.2) else []
            result["weighted_clusters"] = {
                "clusters": [self._weight("a", (0, 1, 30)), *by_header, self._weight("b", (1, 70))],
                "header_name": WEIGHT_HEADER,
            }
        else:
            result["cluster"] = self._pick((*CLUSTERS, *CLUSTERS, MISSING_CLUSTER))
        if self._maybe(0.1):
            result["cluster_not_found_response_code"] = self._pick(("NOT_FOUND", "INTERNAL_SERVER_ERROR"))
        result |= self._rewrite(has_template) | self._host_rewrite()
        return {"route": result}

    def _weight(self, name: str, weights: Sequence[int]) -> Json:
        host = {"host_rewrite_literal": "weighted.host"} if self._maybe(0.3) else {}
        who = {"name": name} if name else {"cluster_header": "x-cluster"}
        return {**who, "weight": self._pick(weights), **self._mutations(0.2), **host}

    def _rewrite(self, has_template: bool) -> Json:
        kind = self._random.random()
        if has_template and kind < 0.4:
            return {"path_rewrite_policy": _template("rewrite", path_template_rewrite=self._pick(TEMPLATE_REWRITES))}
        if kind < 0.25:
            return {"prefix_rewrite": self._pick(("/", "/new", "/n/", "x"))}
        if kind < 0.4:
            return {"regex_rewrite": self._regex_rewrite()}
        if kind < 0.5:
            return {
                "path_rewrite": self._pick(
                    ("/n%PATH(NQ)%", "/%REQ(x-weight):1%", "%REQ(x-host)%", "/n", "/%ROUTE_NAME%")
                )
            }
        return {}

    def _regex_rewrite(self) -> Json:
        pattern = self._pick(("/a", "[a-z]", "a*", "(/)([a-z]*)", "b$", "^/"))
        return {"pattern": {"regex": pattern}, "substitution": self._pick(("/Z", r"<\0>", "", r"\\"))}

    def _host_rewrite(self) -> Json:
        kind = self._random.random()
        result: Json = {}
        if kind < 0.2:
            result["host_rewrite_literal"] = "literal.host"
        elif kind < 0.4:
            result["host_rewrite_header"] = self._pick(("x-1", "x-set", "x-2"))
        elif kind < 0.5:
            result["auto_host_rewrite"] = True
        elif kind < 0.6:
            result["host_rewrite"] = self._pick(("%REQ(x-1)%.host", "h%RESPONSE_CODE%", "%REQ(x-set)%", "%ROUTE_NAME%"))
        elif kind < 0.7:
            result["host_rewrite_path_regex"] = self._regex_rewrite()
        if result and self._maybe(0.3):
            result["append_x_forwarded_host"] = True
        return result

    def _redirect(self) -> Json:
        result: Json = {}
        kind = self._random.random()
        if kind < 0.4:
            result["https_redirect"] = True
        elif kind < 0.6:
            result["scheme_redirect"] = self._pick(("https", "http", "foo"))
        if self._maybe(0.4):
            result["host_redirect"] = self._pick(("new.host", "new.host:8"))
        if self._maybe(0.3):
            result["port_redirect"] = self._pick((8443, 80, 443))
        kind = self._random.random()
        if kind < 0.3:
            result["path_redirect"] = self._pick(("/p", "/p?z=1", "p"))
        elif kind < 0.5:
            result["prefix_rewrite"] = self._pick(("/n", "n"))
        elif kind < 0.7:
            result["regex_rewrite"] = self._regex_rewrite()
        if self._maybe(0.3):
            result["strip_query"] = True
        if self._maybe(0.5):
            result["response_code"] = self._pick(("FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"))
        return result

    def _mutations(self, chance: float) -> Json:
        if self._layer == "matching":
            return {}
        chance *= {"rewriting": 2.0, "clusters": 0.4}.get(self._layer, 1.0)
        result: Json = {}
        if self._maybe(chance):
            result["request_headers_to_add"] = self._some(self._addition, 1, 2, 3)
        if self._maybe(chance / 2):
            result["request_headers_to_remove"] = [self._pick(("x-1", "x-2", "x-set", "accept"))]
        if self._maybe(chance):
            result["response_headers_to_add"] = self._some(self._addition, 1, 2)
        if self._has_filters and self._maybe(chance):
            result["typed_per_filter_config"] = {HEADER_FILTER: self._header_filter()}
        if self._maybe(chance / 2):
            result["response_headers_to_remove"] = [self._pick(("x-set", "content-type", "x-up"))]
        return result

    def _header_filter(self) -> Json:
        if self._maybe(0.15):
            return {"@type": TYPE + "envoy.config.route.v3.FilterConfig", "disabled": True, "config": {}}

        def change() -> Json:
            kind = self._random.random()
            if kind < 0.25:
                return {"remove": self._pick(("x-1", "x-2", "x-set", "x-up", "accept"))}
            if kind < 0.4:
                return {"remove_on_match": {"key_matcher": {"prefix": self._pick(("x-n", "x-se", "x-u"))}}}
            return {"append": self._addition()}

        mutations = {
            name: self._some(change, 1, 2) for name in ("request_mutations", "response_mutations") if self._maybe(0.7)
        }
        if self._maybe(0.3):
            mutations["query_parameter_mutations"] = self._some(self._query_change, 1, 2)
        kind = TYPE + "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"
        return {"@type": kind, "mutations": mutations}

    def _query_change(self) -> Json:
        key = self._pick(("q", "r", "n"))
        if self._maybe(0.3):
            return {"remove": key}
        action = self._pick(
            ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")
        )
        value = self._pick(("a", "b", "%REQ(x-weight)%", "%ROUTE_NAME%", ""))
        return {"append": {"record": {"key": key, "value": value}, "action": action}}

    def _addition(self) -> Json:
        name = self._pick(
            ("x-set", "x-1", "x-2", "X-New", "accept", "user-agent", "location", "content-type", "grpc-status")
        )
        action = self._pick(
            ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")
        )
        empty = {"keep_empty_value": True} if self._maybe(0.3) else {}
        return {"header": {"key": name, "value": self._format()}, "append_action": action, **empty}

    def _format(self) -> str:
        kind = self._random.random()
        if kind < 0.85:
            return self._pick(FORMATS)
        if kind < 0.93:
            return made_time(self._random)
        return made_choice(self._random)

    def _fault(self) -> Json:
        status = self._pick(({"http_status": 429}, {"http_status": 555}, {"header_abort": {}}))
        result: Json = {
            "@type": TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault",
            "abort": {**status, "percentage": {"numerator": self._pick((0, 100, 100))}},
        }
        if self._maybe(0.4):
            result["headers"] = self._some(self._header, 1, 2)
        if self._maybe(0.2):
            result["upstream_cluster"] = self._pick(CLUSTERS)
        if self._maybe(0.2):
            result["downstream_nodes"] = ["n1", "n2"]
        return result

    # Requests.

    def request(self) -> Request:
        is_grpc = self._maybe(0.15)
        headers = []
        for name in HEADERS:
            for _ in range(self._pick((0, 0, 1, 1, 2))):
                headers.append((name, self._pick(VALUES)))
        for name, values in FAULT_HEADERS.items():
            if self._maybe(0.3):
                headers.append((name, self._pick(values)))
        if self._maybe(0.5):
            headers.append(("x-cluster", self._pick((*CLUSTERS, "", MISSING_CLUSTER))))
        if self._maybe(0.5):
            headers.append(("x-host", self._pick(AUTHORITIES) if self._maybe(0.3) else "shop"))
        if is_grpc:
            headers.append(("content-type", self._pick(("application/grpc", "application/grpc+proto"))))
        elif self._maybe(0.2):
            headers.append(
                (
                    "content-type",
                    self._pick(("text/plain", "application/grpcx", "application/grpc-web", "application/json")),
                )
            )
        headers.append((WEIGHT_HEADER, str(self._random.randrange(200))))
        self._random.shuffle(headers)
        method = "POST" if is_grpc else self._pick(("GET", "GET", "POST", "PUT", "DELETE"))
        path, query = self._pick(PATHS), self._pick(QUERIES)
        if self._has_filters and "%" in query:
            query = "?q=a"  # Envoy writes it decoded once the query has been changed: see DIFFERENCES.md
        authority = self._pick(AUTHORITIES) if self._maybe(0.3) else "shop"
        manager = self._random.randrange(self._managers)
        if manager and self._maybe(0.5):
            path = spoilt_path(self._random)
        if manager and self._maybe(0.4):
            authority = spoilt_host(self._random, AUTHORITIES)
        return Request(method, path + query, authority, tuple(headers), manager)
