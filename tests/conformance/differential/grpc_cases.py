"""Random services for gRPC calls, whose outcome leaves nothing to chance: resources, a call, and a script for the servers.

Each case is a service of its own: a listener, a route configuration, and clusters with their endpoints.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peers.envoy import socket_address
from peers.upstreams import LOOPBACK

from differential.generate import TYPE, Json
from differential.grpc_upstreams import GrpcStep

__all__ = ["KINDS", "GrpcCase", "GrpcCaseMaker"]

_MANAGER = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = TYPE + "envoy.extensions.filters.http."
_POLICIES = TYPE + "envoy.extensions.load_balancing_policies."
METHOD, FIRST = "/test.Greeter/Hello", "/test.Greeter/First"
KINDS = ("matching", "hashing", "retries", "timeouts", "answers", "clusters")
SHORT_S, LONG_S, SLOW_S = 0.5, 20.0, 1.2
"""A limit, one that is never reached, and an answer between the two: far apart, for a busy machine. C-core counts the
limits of a route by a clock of its own, which was seen some seconds ahead: so every answer is late for the first one."""
LIMITS = ("max_stream_duration", "grpc_timeout_header_max")
ADS: Json = {"ads": {}, "resource_api_version": "V3"}
# Nobody listens at this port of these addresses.
DEAD = f"{LOOPBACK}:1"


@dataclass(frozen=True, slots=True)
class GrpcCall:
    """A call, and how servers answer it."""

    method: str = METHOD
    metadata: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    script: tuple[GrpcStep, ...] = ()


@dataclass(frozen=True, slots=True)
class GrpcCase:
    """One service with its calls.

    Attributes:
        service: Its name; that of its resources too.
        resources: In proto3 JSON, each with its `@type`.
    """

    number: int
    kind: str
    service: str
    resources: tuple[Json, ...]
    calls: tuple[GrpcCall, ...]


@dataclass(slots=True)
class Service:
    """A service in the making."""

    name: str
    resources: list[Json] = field(default_factory=list)

    def cluster(self, suffix: str, groups: Sequence[Json], policy: Json | None = None, **fields: Any) -> str:
        """Add a cluster with its endpoints and return its name."""
        name = f"{self.name}-{suffix}"
        options = fields.pop("options", {})
        listed = {} if policy is None else {"load_balancing_policy": _list(policy)}
        # gRPC knows no panic; for meshlib that has to be said.
        listed["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
        source = {"type": "EDS", "eds_cluster_config": {"eds_config": ADS}}
        self.resources.append(
            {"@type": TYPE + "envoy.config.cluster.v3.Cluster", "name": name, **source, **listed, **fields}
        )
        kind = TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment"
        self.resources.append({"@type": kind, "cluster_name": name, "endpoints": list(groups), **options})
        return name

    def listen(self, routes: Sequence[Json], *filters: Json, host: Json | None = None, **manager: Any) -> None:
        """Add the listener and the routes."""
        router = {"name": "router", "typed_config": {"@type": _FILTERS + "router.v3.Router"}}
        made = {
            "@type": _MANAGER,
            "stat_prefix": "m",
            "rds": {"route_config_name": self.name, "config_source": ADS},
            "http_filters": [*filters, router],
            **manager,
        }
        listener = {"name": self.name, "api_listener": {"api_listener": made}}
        virtual = {"name": "v", "domains": ["*"], "routes": list(routes), **(host or {})}
        self.resources.append({"@type": TYPE + "envoy.config.listener.v3.Listener", **listener})
        self.resources.append(
            {
                "@type": TYPE + "envoy.config.route.v3.RouteConfiguration",
                "name": self.name,
                "virtual_hosts": [virtual],
            }
        )


def _list(policy: Json) -> Json:
    return {"policies": [{"typed_extension_config": {"name": "p", "typed_config": policy}}]}


class GrpcCaseMaker:
    """Makes cases out of a seed.

    Args:
        seed: Decides everything but the ports.
        ports: Of the servers.
    """

    def __init__(self, seed: str, ports: Sequence[int]) -> None:
        self._random = random.Random(seed)
        self._ports = ports

    def _maybe(self, chance: float = 0.5) -> bool:
        return self._random.random() < chance

    def _pick(self, *items: Any) -> Any:
        return self._random.choice(items)

    def make(self, number: int, kind: str = "") -> GrpcCase:
        """Return a case of a kind, or of any."""
        kind = kind or self._pick(*KINDS)
        service = Service(f"s{number}")
        makers: dict[str, Callable[[Service], Sequence[GrpcCall]]] = {
            "matching": self._matching,
            "hashing": self._hashing,
            "retries": self._retries,
            "timeouts": self._timeouts,
            "answers": self._answers,
            "clusters": self._clusters,
        }
        calls = makers[kind](service)
        return GrpcCase(number, kind, service.name, tuple(service.resources), tuple(calls))

    def _group(self, *hosts: int | str, priority: int = 0, zone: str = "a", weight: int = 1, **fields: Any) -> Json:
        """Return endpoints of one locality: numbers of servers, or addresses."""
        addresses = [host if isinstance(host, str) else f"{LOOPBACK}:{self._ports[host]}" for host in hosts]
        entries = [{"endpoint": {"address": socket_address(address)}, **fields} for address in addresses]
        locality = {"region": "r", "zone": zone}
        return {
            "priority": priority,
            "locality": locality,
            "load_balancing_weight": weight,
            "lb_endpoints": entries,
        }

    # Which route.

    def _matching(self, service: Service) -> Sequence[GrpcCall]:
        clusters = [service.cluster(str(host), [self._group(host)]) for host in range(3)]
        routes = [self._route(clusters) for _ in range(self._pick(1, 2, 3, 5))]
        service.listen(routes, host={"domains": self._domains(service.name)})
        return [self._asking() for _ in range(6)]

    def _domains(self, name: str) -> list[str]:
        return self._pick([name], ["*"], [f"{name[:1]}*"], [f"*{name[1:]}"], ["other", name.upper()], ["other"])  # type: ignore[no-any-return]

    def _route(self, clusters: Sequence[str]) -> Json:
        path = self._pick(
            {"prefix": "/"},
            {"prefix": ""},
            {"prefix": "/test.Greeter/"},
            {"prefix": "/TEST.greeter/"},
            {"prefix": "/test.G"},
            {"path": METHOD},
            {"path": "/test.greeter/hello"},
            {"safe_regex": {"regex": "/test[.][A-Z].*"}},
            {"safe_regex": {"regex": "/test.Greeter"}},
            {"safe_regex": {"regex": ".*/Hello"}},
        )
        match = {**path}
        if "safe_regex" not in path and self._maybe(0.3):
            match["case_sensitive"] = False
        if self._maybe(0.6):
            match["headers"] = [self._header() for _ in range(self._pick(1, 1, 2))]
        if self._maybe(0.15):
            match["runtime_fraction"] = {"default_value": {"numerator": self._pick(0, 100)}}
        if self._maybe(0.12):
            return {"match": match, "non_forwarding_action": {}}
        if self._maybe(0.1):
            return {"match": match, "redirect": {"host_redirect": "x"}}
        if self._maybe(0.2):
            weights = self._pick((0, 100, 0), (100, 0, 0), (0, 0, 1))
            weighted = [{"name": name, "weight": weight} for name, weight in zip(clusters, weights, strict=True)]
            return {"match": match, "route": {"weighted_clusters": {"clusters": weighted}}}
        return {"match": match, "route": {"cluster": self._pick(*clusters)}}

    def _header(self) -> Json:
        name = self._pick("x-a", "x-b", "content-type", "x-c-bin", "user-agent", "te")
        condition = self._pick(
            {"exact_match": self._pick("a", "b", "a,b", "1")},
            {"prefix_match": "a"},
            {"suffix_match": "b"},
            {"contains_match": ","},
            {"safe_regex_match": {"regex": self._pick("a.*", "[0-9]+", "a")}},
            {"range_match": {"start": "0", "end": self._pick("2", "10")}},
            {"present_match": True},
            {"present_match": False},
            {"string_match": {"exact": "A", "ignore_case": True}},
            {"string_match": {"prefix": "A", "ignore_case": True}},
            {"string_match": {"exact": "application/grpc"}},
        )
        invert = {"invert_match": True} if self._maybe(0.25) else {}
        return {"name": name, **condition, **invert}

    def _asking(self) -> GrpcCall:
        metadata = []
        for name in ("x-a", "x-b"):
            for _ in range(self._pick(0, 1, 1, 2)):
                metadata.append((name, self._pick("a", "b", "A", "1", "12", "-1", "", "a,b", "x y")))
        return GrpcCall(self._pick(METHOD, METHOD, "/test.Greeter/hello", "/test.Other/X"), tuple(metadata))

    # Which endpoint.

    def _hashing(self, service: Service) -> Sequence[GrpcCall]:
        sizes: Json = {}
        if self._maybe(0.7):
            sizes["minimum_ring_size"] = self._pick(1, 3, 10, 100, 1024, 4096)
        if self._maybe(0.4):
            sizes["maximum_ring_size"] = max(int(sizes.get("minimum_ring_size", 1024)), self._pick(10, 200, 4096))
        hosts = self._random.sample(range(len(self._ports)), self._pick(1, 2, 4, 6))
        cut = self._pick(len(hosts), self._random.randint(1, len(hosts)))
        groups = []
        for zone, part in (("a", hosts[:cut]), ("b", hosts[cut:])):
            if part:
                group = self._group(*part, zone=zone, weight=1)
                for entry in group["lb_endpoints"]:
                    if self._maybe(0.4):
                        entry["load_balancing_weight"] = self._pick(1, 2, 3, 10)
                groups.append(group)
        policy = {"@type": _POLICIES + "ring_hash.v3.RingHash", "hash_function": "XX_HASH", **sizes}
        fields: Json = {"lb_policy": "RING_HASH", "ring_hash_lb_config": sizes}
        cluster = service.cluster("c", groups, policy) if self._maybe() else service.cluster("c", groups, **fields)
        hashes: list[Json] = []
        if self._maybe(0.3):
            rewrite = {"pattern": {"regex": "([a-z]+)-.*"}, "substitution": "\\1"}
            hashes.append({"header": {"header_name": "x-first", "regex_rewrite": rewrite}, "terminal": self._maybe()})
        if self._maybe(0.15):
            hashes.append({"cookie": {"name": "c"}})
        hashes.append({"header": {"header_name": "x-key"}})
        service.listen([{"match": {"prefix": "/"}, "route": {"cluster": cluster, "hash_policy": hashes}}])
        return [self._hashed() for _ in range(12)]

    def _hashed(self) -> GrpcCall:
        metadata = [("x-key", f"user-{self._random.randrange(10**6)}")]
        if self._maybe(0.4):
            metadata.append(("x-first", self._pick("abc-1", "abc-2", "x")))
        if self._maybe(0.15):
            metadata.append(("x-key", "twice"))
        return GrpcCall(metadata=tuple(metadata))

    # How often.

    def _retries(self, service: Service) -> Sequence[GrpcCall]:
        words = self._random.sample(
            ("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable", "5xx", "reset"),
            self._pick(0, 1, 2, 4),
        )
        policy: Json = {
            "retry_on": ",".join(words),
            "retry_back_off": {"base_interval": "0.01s", **({"max_interval": "0.02s"} if self._maybe() else {})},
        }
        if self._maybe(0.8):
            policy["num_retries"] = self._pick(1, 2, 3, 4, 7)
        cluster = service.cluster("c", [self._group(0)])
        action: Json = {"cluster": cluster}
        host: Json = {}
        if self._maybe(0.75):
            action["retry_policy"] = policy
        if self._maybe(0.3):
            host["retry_policy"] = {**policy, "num_retries": 2}
        service.listen([{"match": {"prefix": "/"}, "route": action}], host=host)
        return [GrpcCall(script=tuple(self._failing() for _ in range(self._pick(0, 1, 2, 3, 6)))) for _ in range(4)]

    def _failing(self) -> GrpcStep:
        code = self._pick(1, 4, 8, 13, 14, 14, 14, 2, 5)
        pushback = self._pick("", "", "", "", "1", "5", "-1", "x") if self._maybe() else ""
        return GrpcStep(code, pushback=pushback)

    # How long.

    def _timeouts(self, service: Service) -> Sequence[GrpcCall]:
        def limit() -> str:
            return str(self._pick(f"{SHORT_S}s", f"{LONG_S}s", "0s"))

        cluster = service.cluster("c", [self._group(0)])
        action: Json = {"cluster": cluster}
        if self._maybe(0.7):
            names = self._pick(("max_stream_duration",), ("grpc_timeout_header_max",), LIMITS)
            made = {name: limit() for name in names}
            action["max_stream_duration"] = made
        if self._maybe(0.2):
            action["timeout"] = f"{SHORT_S}s"  # which is HTTP's
        manager: Json = {}
        if self._maybe(0.4):
            manager["common_http_protocol_options"] = {"max_stream_duration": limit()}
        # A first call without limits, so that connecting is not what takes the time.
        free = {"cluster": cluster, "max_stream_duration": {"max_stream_duration": "0s"}}
        first = {"match": {"path": FIRST}, "route": free}
        service.listen([first, {"match": {"prefix": "/"}, "route": action}], **manager)
        calls = [GrpcCall(FIRST)]
        for _ in range(2):
            step = GrpcStep(delay_s=SLOW_S)
            calls.append(GrpcCall(timeout_s=self._pick(SHORT_S, LONG_S, LONG_S), script=(step,)))
        return calls

    # What the mesh itself says.

    def _answers(self, service: Service) -> Sequence[GrpcCall]:
        groups = [self._group(0)]
        fields: Json = {}
        filters: list[Json] = []
        kind = self._pick("none", "sick", "drops", "breaker", "fault", "fault", "fault", "refused", "nothing")
        match kind:
            case "none":
                groups = self._pick([], [self._group()])
            case "sick":
                groups = [self._group(0, health_status=self._pick("UNHEALTHY", "DRAINING", "TIMEOUT"))]
            case "drops":
                share = {"numerator": self._pick(0, 100), "denominator": "HUNDRED"}
                drops = [{"category": "c", "drop_percentage": share}]
                fields["options"] = {"policy": {"drop_overloads": drops}}
            case "breaker":
                fields["circuit_breakers"] = {"thresholds": [{"max_requests": self._pick(0, 1)}]}
            case "refused":
                groups = [self._group(DEAD)]
            case "fault":
                filters = [{"name": "fault", "typed_config": self._fault()}]
        cluster = service.cluster("c", groups, **fields)
        service.listen([{"match": {"prefix": "/"}, "route": {"cluster": cluster}}], *filters)
        return [GrpcCall(metadata=tuple(self._fault_headers())) for _ in range(3)]

    def _fault(self) -> Json:
        def share() -> Json:
            return {"numerator": self._pick(0, 100, 100), "denominator": self._pick("HUNDRED", "HUNDRED", "MILLION")}

        def full(of: Json) -> Json:
            scale = {"HUNDRED": 100, "MILLION": 1_000_000}[of["denominator"]]
            return {**of, "numerator": scale if of["numerator"] else 0}

        result: Json = {"@type": _FILTERS + "fault.v3.HTTPFault"}
        if self._maybe(0.8):
            how = self._pick(
                {"grpc_status": self._random.randrange(17)},
                {"http_status": self._pick(400, 401, 403, 404, 429, 500, 502, 503, 504)},
                {"header_abort": {}},
            )
            result["abort"] = {**how, "percentage": full(share())}
        if self._maybe(0.3):
            how = self._pick({"fixed_delay": "0.05s"}, {"header_delay": {}})
            result["delay"] = {**how, "percentage": full(share())}
        if self._maybe(0.2):
            # C-core aborts beyond the limit where it would have delayed too: see DIFFERENCES.md.
            result["max_active_faults"] = 5 if "delay" in result else self._pick(0, 5)
        return result

    def _fault_headers(self) -> list[tuple[str, str]]:
        # C-core reads no `x-envoy-fault-abort-request`, and another header than the gRFC's for the percentage.
        values = {
            "x-envoy-fault-abort-grpc-request": ("14", "5", "16"),
            "x-envoy-fault-delay-request": ("20", "0", "x"),
            "x-envoy-fault-delay-request-percentage": ("100", "0"),
        }
        return [(name, self._pick(*given)) for name, given in values.items() if self._maybe(0.35)]

    # Which cluster, and which of its priorities.

    def _clusters(self, service: Service) -> Sequence[GrpcCall]:
        match self._pick("priorities", "priorities", "turns", "dns", "aggregate", "aggregate", "first"):
            case "priorities":
                cluster = service.cluster("c", self._priorities())
            case "turns":
                # One of them answers; gRPC picks among endpoints that it is connected to.
                dead = [f"{LOOPBACK}:{port}" for port in range(1, self._pick(2, 3, 4))]
                cluster = service.cluster("c", [self._group(0, *dead)])
            case "dns":
                cluster = f"{service.name}-dns"
                self._add_dns(service, cluster, host=self._pick(0, 1))
            case "first":
                hosts = self._random.sample((0, 1, 2, DEAD), self._pick(1, 2, 3))
                policy = {"@type": _POLICIES + "pick_first.v3.PickFirst"}
                cluster = service.cluster("c", [self._group(*hosts)], policy)
            case _:
                cluster = self._aggregate(service)
        service.listen([{"match": {"prefix": "/"}, "route": {"cluster": cluster}}])
        return [GrpcCall() for _ in range(3)]

    def _priorities(self, *, first: int = 0) -> list[Json]:
        """Return priorities with one server each; one of them, dead or sick, may be passed over."""
        groups = []
        for priority in range(self._pick(1, 2, 3)):
            fields = {"health_status": "UNHEALTHY"} if self._maybe(0.3) else {}
            # gRPC refuses a list of endpoints that has an address twice.
            host = f"{LOOPBACK}:{priority + 1}" if self._maybe(0.3) else first + priority
            groups.append(self._group(host, priority=priority, zone=f"z{priority}", **fields))
        return groups

    def _add_dns(self, service: Service, name: str, host: int) -> None:
        entry = {"endpoint": {"address": socket_address(f"localhost:{self._ports[host]}")}}
        service.resources.append(
            {
                "@type": TYPE + "envoy.config.cluster.v3.Cluster",
                "name": name,
                "type": "LOGICAL_DNS",
                "dns_lookup_family": "V4_ONLY",
                "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [entry]}]},
            }
        )

    def _aggregate(self, service: Service) -> str:
        below = []
        for number in range(self._pick(1, 2, 3)):
            if self._maybe(0.25):
                below.append(f"{service.name}-dns{number}")
                self._add_dns(service, below[-1], host=number)
            else:
                below.append(service.cluster(f"leaf{number}", self._priorities(first=number)))
        name = f"{service.name}-all"
        packed = {"@type": TYPE + "envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": below}
        service.resources.append(
            {
                "@type": TYPE + "envoy.config.cluster.v3.Cluster",
                "name": name,
                "cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": packed},
            }
        )
        return name
