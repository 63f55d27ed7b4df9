"""Local rate limits with descriptors: random filters, rules and requests, counted alike by meshlib and a real Envoy.

    python -m differential.limits --managers 40 --requests 20 --seed 7

Each connection manager has a filter of its own, so its buckets are its own; the routes are the same for all. Buckets
fill so slowly that time decides nothing.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from differential import subject
from differential.command import arguments_of, compare
from differential.envoy_side import EnvoySide
from differential.generate import TYPE, Json, Request
from meshlib.call import Attempt, Call, Done
from meshlib.model.outcome import LocalReply, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import Snapshot, TargetConfig
from meshlib.protos import from_dict
from meshlib.testing import FakeClock, builders, mesh_source
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import RDS

FILTER = "limit"
LIMIT = TYPE + "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
ALWAYS = {"default_value": {"numerator": 100}}
HEADERS = ("x-1", "x-2")
VALUES = ("a", "b", "c")
PATHS = ("/", "/a", "/b?q=a", "/b?q=a%20b&q=c", "/b", "/c?r")
OVERRIDDEN = "/own"
SECURE = "tls"
RESET = "x-ratelimit-reset"
TOLD = ("x-ratelimit-limit", "x-ratelimit-remaining", RESET, "x-late")

Answer = tuple[int, tuple[tuple[str, str], ...]]
"""Status, and what the response says of the limit."""


@dataclass(slots=True)
class LimitReport:
    seed: int
    requests: int = 0
    limited: int = 0
    descriptors: int = 0
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.requests} requests, {len(self.disagreements)} disagreements; {self.limited} limited, "
            f"{self.descriptors} counted by a descriptor"
        )


class LimitGenerator:
    """Makes filters, routes and requests out of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(f"limits/{seed}")

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _bucket(self, *most: int) -> Json:
        return {
            "max_tokens": self._random.choice(most),
            "tokens_per_fill": self._random.choice((1, 2)),
            "fill_interval": self._random.choice(("600s", "900s")),
        }

    def _action(self) -> Json:
        chance = self._random
        match chance.randrange(6):
            case 0:
                value = {"descriptor_value": chance.choice(VALUES)}
                return {"generic_key": value if self._maybe(0.5) else {**value, "descriptor_key": "k"}}
            case 1:
                skips = {"skip_if_absent": True} if self._maybe(0.4) else {}
                return {"request_headers": {"header_name": chance.choice(HEADERS), "descriptor_key": "k", **skips}}
            case 2:
                skips = {"skip_if_absent": True} if self._maybe(0.4) else {}
                return {"query_parameters": {"query_parameter_name": "q", "descriptor_key": "k", **skips}}
            case 3:
                expected = {} if self._maybe(0.5) else {"expect_match": self._maybe(0.5)}
                headers = [{"name": "x-1", "string_match": {"exact": "a"}}]
                return {"header_value_match": {"descriptor_value": "a", "headers": headers, **expected}}
            case 4:
                parameters = [{"name": "q", "string_match": {"prefix": "a"}}]
                return {"query_parameter_value_match": {"descriptor_value": "a", "query_parameters": parameters}}
            case _:
                path = [{"key": chance.choice(("tier", "none"))}]
                default = {"default_value": "a"} if self._maybe(0.4) else {}
                return {
                    "metadata": {
                        "descriptor_key": "k",
                        "metadata_key": {"key": "ns", "path": path},
                        "source": chance.choice(("ROUTE_ENTRY", "ROUTE_ENTRY", "DYNAMIC")),
                        **default,
                        **({"skip_if_absent": True} if self._maybe(0.4) else {}),
                    }
                }

    def _rule(self, *, is_filter: bool) -> Json:
        result: Json = {"actions": [self._action() for _ in range(self._random.choice((1, 1, 2)))]}
        if not is_filter:
            if self._maybe(0.3):
                result["stage"] = 1
            if self._maybe(0.1):
                result["disable_key"] = "off"
        elif self._maybe(0.3):
            result["hits_addend"] = {"number": 2} if self._maybe(0.5) else {"format": "%REQ(x-hits)%"}
        return result

    def _entry(self) -> Json:
        """Make an entry, most often one that the rules make too."""
        key = self._random.choice(("generic_key", "k", "k", "header_match", "query_match"))
        made = ("a", "a", "a", "a") if key.endswith("_match") else VALUES
        return {"key": key, "value": self._random.choice((*made, "", "gold"))}

    def _descriptors(self) -> list[Json]:
        found: dict[str, Json] = {}
        for _ in range(self._random.choice((1, 2, 4))):
            entries = [self._entry() for _ in range(self._random.choice((1, 1, 1, 2)))]
            # Of several that fit a request which stand for any value, Envoy takes one by the order of a hash table.
            key = json.dumps(
                [entry["key"] for entry in entries] if any(not one["value"] for one in entries) else entries
            )
            found[key] = {"entries": entries, "token_bucket": self._bucket(0, 1, 2, 3, 8)}
        return list(found.values())

    def limit(self) -> Json:
        result: Json = {
            "@type": LIMIT,
            "stat_prefix": "limit",
            "token_bucket": self._bucket(0, 3, 8, 50, 50, 50),
            "filter_enabled": ALWAYS,
            "filter_enforced": ALWAYS,
            "response_headers_to_add": [{"header": {"key": "x-late", "value": "%REQ(x-1)%"}}],
        }
        if self._maybe(0.8):
            result["enable_x_ratelimit_headers"] = "DRAFT_VERSION_03"
        if self._maybe(0.9):
            result["descriptors"] = self._descriptors()
        if self._maybe(0.5):
            result["rate_limits"] = [self._rule(is_filter=True) for _ in range(self._random.choice((1, 2, 3)))]
        if self._maybe(0.3):
            result["stage"] = 1
        if self._maybe(0.6):
            result["vh_rate_limits"] = self._random.choice(("OVERRIDE", "INCLUDE", "IGNORE"))
        if self._maybe(0.4):
            result["always_consume_default_token_bucket"] = self._maybe(0.3)
        if self._maybe(0.2):
            result["max_dynamic_descriptors"] = 1
        return result

    def certain(self) -> Json:
        """Make a connection manager whose filter counts each request by a descriptor, whatever the seed."""
        key = {"key": "generic_key", "value": "a"}
        return self._manager(
            {
                "@type": LIMIT,
                "stat_prefix": "limit",
                "token_bucket": self._bucket(50),
                "filter_enabled": ALWAYS,
                "filter_enforced": ALWAYS,
                "enable_x_ratelimit_headers": "DRAFT_VERSION_03",
                "descriptors": [{"entries": [key], "token_bucket": self._bucket(2, 3, 8)}],
                "rate_limits": [{"actions": [{"generic_key": {"descriptor_value": "a"}}]}],
            }
        )

    def manager(self) -> Json:
        return self._manager(self.limit())

    def _manager(self, limit: Json) -> Json:
        router = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}
        return {"http_filters": [{"name": FILTER, "typed_config": limit}, router]}

    def routes(self) -> Json:
        routes = []
        for name in (OVERRIDDEN, "/a", "/b", "/"):
            action: Json = {"cluster": "a"}
            if self._maybe(0.7):
                action["rate_limits"] = [self._rule(is_filter=False) for _ in range(self._random.choice((1, 2)))]
            if self._maybe(0.3):
                action["include_vh_rate_limits"] = True
            route: Json = {"name": name, "match": {"prefix": name}, "route": action}
            if self._maybe(0.5):
                route["metadata"] = {"filter_metadata": {"ns": {"tier": "gold"}}}
            if name == OVERRIDDEN:
                route["typed_per_filter_config"] = {FILTER: self.limit()}
            routes.append(route)
        host: Json = {"name": "v", "domains": ["*"], "routes": routes}
        if self._maybe(0.7):
            host["rate_limits"] = [self._rule(is_filter=False) for _ in range(2)]
        # What is answered before any route is met by the filters of the connection manager, whatever the host says.
        secure = {**host, "name": "w", "domains": [SECURE], "require_tls": "ALL"}
        return {"name": "differential", "virtual_hosts": [host, secure]}

    def request(self, manager: int) -> Request:
        headers = [(name, self._random.choice(VALUES)) for name in HEADERS if self._maybe(0.6)]
        if self._maybe(0.6):
            headers.append(("x-hits", self._random.choice(("2", "1.9", "0", "x"))))
        # Envoy's connection managers share the buckets of an override in their common routes.
        path = OVERRIDDEN if not manager and self._maybe(0.7) else self._random.choice(PATHS)
        return Request("GET", path, SECURE if self._maybe(0.1) else "shop", tuple(headers), manager)


def ask_envoy(side: EnvoySide, routes: Json, requests: Sequence[Request]) -> list[Answer] | str:
    """Return what a real Envoy answers; or why it does not take the routes."""
    if (refusal := side.install(routes)) is not None:
        return refusal.reason
    answers = [side._send(request) for request in requests]
    return [(one["status"], tuple((k, v) for k, v in sorted(one["headers"]) if k in TOLD)) for one in answers]


def ask_meshlib(managers: Sequence[Json], routes: Json, requests: Sequence[Request]) -> list[Answer] | str:
    """Return what meshlib answers."""
    packed = from_dict("envoy.config.route.v3.RouteConfiguration", routes).SerializeToString()
    decoded = decode_resource(RDS, packed)
    if decoded.errors:
        return "\n".join(decoded.errors)
    found = decoded.value
    assert isinstance(found, RouteConfiguration)
    targets = {
        str(number): TargetConfig(replace(subject.listener(manager), routes=found), found)
        for number, manager in enumerate(managers)
    }
    snapshot = Snapshot(targets=targets, clusters={"a": builders.cluster("a", "127.0.0.1:1")})
    mesh = mesh_source(snapshot, clock=FakeClock(), rng=random.Random(0))
    answers = []
    for request in requests:
        head = RequestHead(request.method, request.authority, request.path, Headers(request.headers))
        call = Call(mesh.wait_target(str(request.manager)), head, rng=mesh.rng, now=mesh.clock())
        step = call.start(mesh.clock())
        if isinstance(step, Attempt):
            step = call.finished(Response(200), mesh.clock())
        assert isinstance(step, Done) and isinstance(step.result, LocalReply | Response)
        result = step.result
        headers = result.headers if isinstance(result, LocalReply) else call.response_headers(Headers()).items
        call.close(mesh.clock())
        answers.append((result.status, tuple(sorted((k, v) for k, v in headers if k in TOLD))))
    return answers


def agree(envoy: Answer, meshlib: Answer, took_s: float) -> bool:
    """Whether both answered the same; Envoy's buckets filled a little meanwhile, so that there the wait is shorter."""
    there, here = dict(envoy[1]), dict(meshlib[1])
    resets = [int(said.pop(RESET, 0)) for said in (there, here)]
    return (envoy[0], there) == (meshlib[0], here) and 0 <= resets[1] - resets[0] <= took_s + 1


def run(seed: int, managers: int, requests: int, folder: Path) -> LimitReport:
    """Compare the two."""
    generator, report = LimitGenerator(seed), LimitReport(seed)
    made = [generator.manager(), generator.certain(), *(generator.manager() for _ in range(managers - 2))]
    routes = generator.routes()
    asked = [generator.request(number) for number in range(len(made)) for _ in range(requests)]
    with EnvoySide(folder, managers=made) as side:
        began = time.monotonic()
        envoy = ask_envoy(side, routes, asked)
        took_s = time.monotonic() - began
    meshlib = ask_meshlib(made, routes, asked)
    if isinstance(envoy, str) or isinstance(meshlib, str):
        if isinstance(envoy, str) != isinstance(meshlib, str):
            report.disagreements.append(json.dumps({"routes": routes, "envoy": envoy, "meshlib": meshlib}))
        return report
    for number, (request, one, other) in enumerate(zip(asked, envoy, meshlib, strict=True)):
        report.requests += 1
        report.limited += one[0] == 429
        default = made[request.manager]["http_filters"][0]["typed_config"]["token_bucket"]["max_tokens"]
        report.descriptors += any(name == TOLD[0] and value != str(default) for name, value in one[1])
        if not agree(one, other, took_s):
            before = [earlier.to_json() for earlier in asked[:number] if earlier.manager == request.manager]
            told = {
                "manager": made[request.manager]["http_filters"][0]["typed_config"],
                "routes": routes,
                "before": before,
                "request": request.to_json(),
                "envoy": one,
                "meshlib": other,
            }
            report.disagreements.append(json.dumps(told))
    return report


def main() -> int:
    parser = arguments_of("differential.limits", "local rate limits with Envoy's")
    parser.add_argument("--managers", type=int, default=40)
    parser.add_argument("--requests", type=int, default=20, help="for each connection manager")
    return compare(parser, lambda given, seed, folder: run(seed, given.managers, given.requests, folder))


if __name__ == "__main__":
    sys.exit(main())
