"""Cases that combine what the other layers look at one by one: where requests go, what is repeated, copied and rewritten.

A case is a virtual host with its clusters, and a few requests, each with the script of its upstreams.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peers.envoy import socket_address
from peers.upstreams import Step

from differential.generate import HEADER_FILTER, MISSING_CLUSTER, TYPE, WEIGHT_HEADER, Json
from differential.hosts import PREVIOUS_HOSTS, HostGenerator
from differential.retries import LOCATIONS, Cases
from differential.sessions import FILTER, SESSION_TYPE, SessionGenerator
from differential.subsets import SubsetGenerator

__all__ = ["COPY_HOSTS", "HOSTS", "HTTP_OPTIONS", "Ask", "Case", "CombinationGenerator", "is_dead"]

HOSTS = tuple(f"127.77.0.{number}" for number in range(1, 97))
COPY_HOSTS = tuple(f"127.77.2.{number}" for number in range(1, 5))
_DEAD = "127.77.1."
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_CLUSTER_HEADER, _CLUSTER_HEADER_OF_COPIES = "x-cluster", "x-copy-cluster"
_RETRY_HOST = f"{TYPE}envoy.extensions.retry.host."
_BALANCERS = ("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM")
_EXTENSIONS = ("round_robin.v3.RoundRobin", "least_request.v3.LeastRequest", "random.v3.Random")
_SECOND = "/second"
_REQUEST_HEADERS = (
    ("x-key", "%REQ(x-other)%"),
    ("x-key", "fixed"),
    ("x-own", "%REQ(x-key)%"),
    ("x-envoy-max-retries", "2"),
    ("x-envoy-retry-on", "5xx"),
    ("x-may", "1"),
    ("x-added", "%REQ(x-other?x-key)%"),
    ("x-added", "%PROTOCOL%"),
)
_RESPONSE_HEADERS = (
    ("x-cluster", "%UPSTREAM_CLUSTER%"),
    ("x-route", "%ROUTE_NAME%"),
    ("x-attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
    ("x-code", "%RESPONSE_CODE%"),
    ("x-flags", "%RESPONSE_FLAGS%"),
    ("x-again", "of the route"),
    ("x-said", "%RESP(x-copied?x-again)%"),
)
_ACTIONS = ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")


def is_dead(address: str) -> bool:
    """Whether nobody listens at an address."""
    return address.startswith(_DEAD)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and what upstreams do when it comes."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    script: tuple[Step, ...]

    def to_json(self) -> Json:
        steps = [["reset"] if step.is_reset else [step.status, step.delay_s, *step.headers] for step in self.script]
        return {"method": self.method, "path": self.path, "headers": list(self.headers), "script": steps}

    @classmethod
    def from_json(cls, told: Json) -> "Ask":
        """Read what `to_json` wrote."""
        script = tuple(
            Step(is_reset=True) if step == ["reset"] else Step(step[0], step[1], headers=tuple(map(tuple, step[2:])))
            for step in told["script"]
        )
        return cls(told["method"], told["path"], tuple((name, value) for name, value in told["headers"]), script)


@dataclass(frozen=True, slots=True)
class Case:
    """
    Attributes:
        is_exact: No host is left to chance.
    """

    number: int
    is_exact: bool
    host: Json
    clusters: list[Json] = field(default_factory=list)
    asks: tuple[Ask, ...] = ()

    @property
    def domain(self) -> str:
        return f"case-{self.number}"

    @property
    def has_copies(self) -> bool:
        return any(cluster.get("name") == f"c{self.number}-copies" for cluster in self.clusters)

    def to_json(self) -> Json:
        asks = [ask.to_json() for ask in self.asks]
        return {
            "number": self.number,
            "exact": self.is_exact,
            "host": self.host,
            "clusters": self.clusters,
            "requests": asks,
        }

    @classmethod
    def from_json(cls, told: Json) -> "Case":
        """Read what `to_json` wrote."""
        asks = tuple(Ask.from_json(ask) for ask in told["requests"])
        return cls(told["number"], told["exact"], told["host"], told["clusters"], asks)


def _without_second_looks(cluster: Json) -> None:
    """Take off a cluster with subsets what has Envoy look at several of them for one attempt."""
    subsets = cluster.get("lb_subset_config")
    if subsets is None:
        subsets = cluster["load_balancing_policy"]["policies"][0]["typed_extension_config"]["typed_config"]
    for name in ("panic_mode_any", "metadata_fallback_policy"):
        subsets.pop(name, None)


class CombinationGenerator(SubsetGenerator, SessionGenerator):
    """Makes a case out of a seed."""

    primes = (3, 11, 101)
    ring_sizes = (1, 10, 50)
    host_counts = (0, 1, 2, 2, 3)
    fallbacks = ("NO_FALLBACK", "ANY_ENDPOINT", "ANY_ENDPOINT", "ANY_ENDPOINT", "DEFAULT_SUBSET")

    def __init__(self, seed: int | str, number: int, port: int) -> None:
        """Make it.

        Args:
            number: Of the case: its names begin with it.
            port: Of all upstreams.
        """
        super().__init__(seed)
        self._retries = Cases(f"{seed}/retries", has_grpc=False)
        self._number = number
        self._port = port
        self._host = 0
        # In what follows nothing is left to chance but the hosts, and these only where the case says so.
        self._is_exact = self._maybe(0.65)
        self._has_copies = self._maybe(0.3)
        self._session_kind = self._random.choice(("cookie", "header", "envelope")) if self._maybe(0.2) else ""
        self._is_tight = self._is_exact and self._maybe(0.1)
        # Some do not go together: see DIFFERENCES.md.
        self._is_redirecting = self._maybe(0.4)
        self._has_retry_priority = self._maybe(0.5)
        self._has_aggregate = not self._is_exact and not self._session_kind and self._maybe(0.4)

    def _pick(self, *items: Any) -> Any:
        return self._random.choice(items)

    def make(self) -> Case:
        names = [f"{self._number}-{letter}" for letter in "abc"[: self._pick(1, 2, 2, 3)]]
        clusters = [self.cluster(name) for name in names]
        self._leaves = [one["name"] for one in clusters]
        self._names = list(self._leaves)
        if self._has_aggregate:
            clusters.append(self._aggregate())
            self._names.append(clusters[-1]["name"])
        if self._has_copies:
            clusters.append(self._copy_cluster())
        return Case(self._number, self._is_exact, self._virtual_host(), clusters, self._asks())

    # Clusters.

    def _begin_cluster(self) -> None:
        # Hosts of the next cluster are others. Where hosts are a matter of chance, all of a cluster are alike.
        self._dead_share = self._pick(0.0, 0.0, 0.0, 0.3) if self._is_exact else self._pick(0.0, 0.0, 0.0, 1.0)
        self._dead_share *= not self._is_tight

    def _address(self, host: int) -> str:
        return f"{_DEAD}{host}:{self._port}" if self._maybe(self._dead_share) else f"{HOSTS[host - 1]}:{self._port}"

    def _endpoint(self) -> Json:
        result = super()._endpoint()
        known = result.setdefault("metadata", {}).setdefault("filter_metadata", {}).setdefault("envoy.lb", {})
        known["hash_key"] = f"key-{self._host}"  # the port in its address is another one in each run
        if self._maybe(0.25):
            known["canary"] = self._pick(True, True, False)
        return result

    def _fields(self) -> Json:
        return super()._fields() if self._is_exact or self._maybe(0.2) else {"lb_policy": self._pick(*_BALANCERS)}

    def _extension(self, is_localised: bool) -> Json:
        if self._is_exact or self._maybe(0.2):
            return super()._extension(is_localised)
        localised = {"locality_lb_config": {"locality_weighted_lb_config": {}}} if is_localised else {}
        return {"@type": f"{TYPE}envoy.extensions.load_balancing_policies.{self._pick(*_EXTENSIONS)}", **localised}

    def cluster(self, number: int | str) -> Json:
        kind: Any = self._pick(SubsetGenerator, HostGenerator, HostGenerator)
        if kind is HostGenerator and self._session_kind:
            kind = SessionGenerator
        result: Json = kind.cluster(self, number)
        if self._has_retry_priority and kind is SubsetGenerator:
            _without_second_looks(result)
        self._hosts = self._host
        if (breakers := self._breakers()) is not None:
            result["circuit_breakers"] = breakers
        options: Json = {}
        if self._maybe(0.08):
            options["retry_policy"] = self._retry_policy()
        if self._maybe(0.06):
            options["hash_policy"] = self._hash_policies()
        if self._has_copies and self._maybe(0.1):
            options["request_mirror_policies"] = self._copies(has_headers=False)
        return self._with_options(result, options)

    def _with_options(self, cluster: Json, options: Json) -> Json:
        """Give it options of HTTP; an answer that never comes must not meet a connection from before."""
        packed = {
            "@type": TYPE + HTTP_OPTIONS,
            "common_http_protocol_options": {"max_requests_per_connection": 1},
            "explicit_http_config": {"http_protocol_options": {}},
            **options,
        }
        return {**cluster, "typed_extension_protocol_options": {HTTP_OPTIONS: packed}}

    def _breakers(self) -> Json | None:
        if not self._maybe(0.35):
            return None
        return {"thresholds": [self._threshold(priority) for priority in self._pick((0,), (1,), (0, 1))]}

    def _threshold(self, priority: int) -> Json:
        result: Json = {"priority": ("DEFAULT", "HIGH")[priority]}
        if self._is_tight and self._maybe(0.7):
            result[self._pick("max_requests", "max_pending_requests")] = 0
        if self._maybe(0.5):
            result["max_retries"] = self._pick(0, 1, 2)
        if self._maybe(0.4):
            budget = {"budget_percent": {"value": self._pick(0, 20, 100)}, "min_retry_concurrency": self._pick(0, 1, 3)}
            result["retry_budget"] = {name: value for name, value in budget.items() if self._maybe(0.8)}
        return result

    def _aggregate(self) -> Json:
        name = f"c{self._number}-x"
        leaves = self._random.sample(self._leaves, self._random.randrange(1, len(self._leaves) + 1))
        config = {"@type": f"{TYPE}envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": leaves}
        result = {
            "name": name,
            "connect_timeout": "1s",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": config},
        }
        if (breakers := self._breakers()) is not None:
            result["circuit_breakers"] = breakers
        return result

    def _copy_cluster(self) -> Json:
        """Return a cluster for copies, with one host or with one for each version."""
        name = f"c{self._number}-copies"
        result: Json = {"name": name, "type": "STATIC", "connect_timeout": "1s"}
        hosts = COPY_HOSTS[:1]
        if self._maybe(0.4):
            hosts = COPY_HOSTS[:2]
            subsets: Json = {"subset_selectors": [{"keys": ["version"]}]}
            if self._maybe(0.5):
                subsets |= {"fallback_policy": "DEFAULT_SUBSET", "default_subset": {"version": "v2"}}
            result["lb_subset_config"] = subsets
        endpoints = [
            {
                "endpoint": {"address": socket_address(f"{host}:{self._port}")},
                "metadata": {"filter_metadata": {"envoy.lb": {"version": version}}},
            }
            for host, version in zip(hosts, ("v1", "v2"), strict=False)
        ]
        result["load_assignment"] = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
        return self._with_options(result, {})

    # Routes.

    def _virtual_host(self) -> Json:
        domain = f"case-{self._number}"
        routes = [self.route(f"{_SECOND}/")] if self._maybe(0.5) else []
        routes.append(self.route("/"))
        result: Json = {"name": domain, "domains": [domain], "routes": routes}
        for flag in (
            "include_request_attempt_count",
            "include_is_timeout_retry_header",
            "include_attempt_count_in_response",
        ):
            if self._maybe(0.3) and not (self._is_redirecting and "timeout" in flag):
                result[flag] = True
        if self._maybe(0.15):
            result["retry_policy"] = self._retry_policy()
        if self._has_copies and self._maybe(0.3):
            result["request_mirror_policies"] = self._copies()
        return result | self._mutations(0.2)

    def route(self, cluster: str) -> Json:
        """Return a route.

        Args:
            cluster: Its prefix.
        """
        prefix = cluster
        action = self._destination()
        if self._is_exact or self._maybe(0.5):
            action["hash_policy"] = self._hash_policies()
        if self._maybe(0.4):
            action["metadata_match"] = self._criteria()
        if self._maybe(0.75):
            action["retry_policy"] = self._retry_policy()
        if self._is_redirecting and self._maybe(0.6):
            action["internal_redirect_policy"] = self._retries.redirects()
        if self._has_copies and self._maybe(0.7):
            action["request_mirror_policies"] = self._copies()
        if self._maybe(0.15):
            action["priority"] = "HIGH"
        if self._maybe(0.1):
            action["prefix_rewrite"] = self._pick("/new", "/new/", "/")
        if self._maybe(0.2):
            kinds: tuple[Json, ...] = ({"host_rewrite_literal": "literal"}, {"host_rewrite_header": "x-other"})
            action |= self._pick(*kinds, {"auto_host_rewrite": True}) if self._is_exact else self._pick(*kinds)
            if self._maybe(0.3):
                action["append_x_forwarded_host"] = True
        result: Json = {"name": prefix, "match": {"prefix": prefix}, "route": action, **self._mutations(0.2)}
        filters: Json = {}
        if self._session_kind and self._maybe(0.85):
            policy = {"stateful_session": self._session(self._session_kind, prefix.strip("/"))}
            filters[FILTER] = {
                "@type": f"{SESSION_TYPE}PerRoute",
                **(policy if self._maybe(0.9) else {"disabled": True}),
            }
        if self._maybe(0.1):
            mutations = {"request_mutations": [{"append": self._added(_REQUEST_HEADERS)}]}
            filters[HEADER_FILTER] = {
                "@type": f"{TYPE}envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
                "mutations": mutations,
            }
        return {**result, "typed_per_filter_config": filters} if filters else result

    def _destination(self) -> Json:
        kind = self._pick("one", "one", "one", "weighted", "weighted", "header")
        if kind == "one":
            return {"cluster": self._pick(*self._names)}
        if kind == "header":
            found: Json = {"cluster_header": _CLUSTER_HEADER}
            if self._maybe(0.2):
                found["cluster_not_found_response_code"] = "NOT_FOUND"
            return found
        weighted: Json = {"clusters": [self._weighted(name) for name in self._names]}
        if self._is_exact and self._maybe(0.4):
            weighted["use_hash_policy"] = True
        else:
            weighted["header_name"] = WEIGHT_HEADER
        return {"weighted_clusters": weighted}

    def _weighted(self, name: str) -> Json:
        result: Json = {"name": name, "weight": self._pick(1, 2, 5)}
        if self._maybe(0.15):
            del result["name"]
            result["cluster_header"] = _CLUSTER_HEADER
        if self._maybe(0.4):
            result["metadata_match"] = self._criteria()
        if self._maybe(0.15):
            result["host_rewrite_literal"] = "of-weight"
        return result | self._mutations(0.2)

    def _mutations(self, chance: float) -> Json:
        result: Json = {}
        if self._maybe(chance):
            result["request_headers_to_add"] = [self._added(_REQUEST_HEADERS) for _ in range(self._pick(1, 2))]
        if self._maybe(chance / 2):
            # Without the header by which a split is drawn, it would be by chance where a redirect leads.
            weight = () if self._is_redirecting else (WEIGHT_HEADER,)
            result["request_headers_to_remove"] = [self._pick("x-other", "x-may", "x-envoy-retry-on", *weight)]
        if self._maybe(chance):
            headers = _RESPONSE_HEADERS if not self._is_redirecting else _RESPONSE_HEADERS[2:]
            result["response_headers_to_add"] = [self._added(headers) for _ in range(self._pick(1, 2))]
        if self._maybe(chance / 2):
            result["response_headers_to_remove"] = [self._pick("x-again", "x-copied", "x-envoy-attempt-count")]
        return result

    def _added(self, headers: Sequence[tuple[str, str]]) -> Json:
        name, value = self._pick(*headers)
        result: Json = {"header": {"key": name, "value": value}, "append_action": self._pick(*_ACTIONS)}
        if self._is_exact and name == "x-key" and value != "fixed":
            result["header"]["value"] = f"{value}-"  # never empty: each request has a hash
        return result

    def _retry_policy(self) -> Json:
        result = self._retries.policy()
        predicates: list[Json] = []
        if self._maybe(0.45):
            predicates.append(PREVIOUS_HOSTS)
        if self._maybe(0.2):
            config = {"@type": f"{_RETRY_HOST}omit_canary_hosts.v3.OmitCanaryHostsPredicate"}
            predicates.append({"name": "envoy.retry_host_predicates.omit_canary_hosts", "typed_config": config})
        if self._maybe(0.2):
            wanted = self._pick({"version": "v1"}, {"stage": "prod"}, {"version": "v1", "stage": "dev"})
            config = {
                "@type": f"{_RETRY_HOST}omit_host_metadata.v3.OmitHostMetadataConfig",
                "metadata_match": {"filter_metadata": {"envoy.lb": wanted}},
            }
            predicates.append({"name": "envoy.retry_host_predicates.omit_host_metadata", "typed_config": config})
        if predicates:
            result["retry_host_predicate"] = predicates
        if self._maybe(0.5):
            result["host_selection_retry_max_attempts"] = self._pick("1", "2", "5")
        if self._has_retry_priority and self._maybe(0.6):
            config = {
                "@type": f"{TYPE}envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                "update_frequency": self._pick(1, 2),
            }
            name = "envoy.retry_priorities.previous_priorities"
            result["retry_priority"] = {"name": name, "typed_config": config}
        return result

    def _copies(self, *, has_headers: bool = True) -> list[Json]:
        return [self._copy(has_headers=has_headers) for _ in range(self._pick(1, 1, 2))]

    def _copy(self, *, has_headers: bool) -> Json:
        result: Json = {"cluster": f"c{self._number}-copies"}
        if has_headers and self._maybe(0.2):
            result = {"cluster_header": _CLUSTER_HEADER_OF_COPIES}
        if self._maybe(0.4):
            result["runtime_fraction"] = {
                "default_value": {"numerator": self._pick(0, 100, 100), "denominator": "HUNDRED"}
            }
        if self._maybe(0.2):
            result["disable_shadow_host_suffix_append"] = True
        elif self._maybe(0.2):
            result["host_rewrite_literal"] = "of-copies"
        if self._maybe(0.25):
            result["request_headers_mutations"] = [
                self._pick({"append": self._added(_REQUEST_HEADERS)}, {"remove": "x-other"}) for _ in range(2)
            ]
        return result

    # Requests.

    def _asks(self) -> tuple[Ask, ...]:
        return tuple(self.ask() for _ in range(3 if self._is_exact else 5))

    def ask(self) -> Ask:
        """Return a request; in an exact case it has a hash, and what else chooses clusters is always by its headers."""
        headers = []
        if self._is_exact or self._maybe(0.6):
            headers.append(("x-key", f"user-{self._random.randrange(10**6)}"))
        for name, value in (("x-other", "a"), ("x-other", "b-1"), ("x-own", "o")):
            if self._maybe(0.4):
                headers.append((name, value))
        headers.append((WEIGHT_HEADER, str(self._random.randrange(20))))
        if self._maybe(0.9):
            headers.append((_CLUSTER_HEADER, MISSING_CLUSTER if self._maybe(0.05) else self._pick(*self._names)))
        if self._has_copies and self._maybe(0.8):
            headers.append((_CLUSTER_HEADER_OF_COPIES, f"c{self._number}-copies"))
        if self._session_kind and self._maybe(0.8) and self._hosts:
            host = self._random.randrange(1, self._hosts + 1)
            headers.append(self._mark(self._session_kind, f"{HOSTS[host - 1]}:{self._port}"))
        headers += (item for item in self._retries.headers() if "timeout" not in item[0] and "hedge" not in item[0])
        steps = self._pick(0, 1, 1, 2, 3, 4)
        slow = 0.05 if self._is_exact else 0.0
        locations = (*LOCATIONS, f"http://case-{self._number}{_SECOND}/x?y", f"http://case-{self._number}/x")
        script = tuple(self._retries.step(self._maybe(0.3), slow, locations) for _ in range(steps))
        path = self._pick("/x", "/x", "/deep/x?q=1", f"{_SECOND}/x")
        return Ask(self._pick("GET", "GET", "GET", "POST", "HEAD"), path, tuple(headers), script)
