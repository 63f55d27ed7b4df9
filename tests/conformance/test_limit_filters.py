"""Filters that limit what goes out: the same manager in a real Envoy and in meshlib's call."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from differential import limits
from differential.command import new_seed
from peers.envoy import TYPE, Envoy, find_envoy, reserve_port, socket_address, static_cluster
from peers.upstreams import LOOPBACK, HttpUpstream, Step

from meshlib.call import Attempt, Call, Done
from meshlib.events import Event
from meshlib.model.cluster import Cluster, StaticDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.listener import ClientListener, ServerListener
from meshlib.model.outcome import LocalReply, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import ClusterConfig, InboundConfig, Snapshot, TargetConfig
from meshlib.protos import from_dict
from meshlib.runtime.context import HANDED_ON
from meshlib.runtime.tracing import Tracing
from meshlib.servers.inbound import Inbound
from meshlib.servers.peer import ANONYMOUS
from meshlib.testing import FakeClock, FakeMesh, mesh_source
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import LDS

pytestmark = pytest.mark.envoy

Json = dict[str, Any]
FILTERS = "envoy.extensions.filters.http."
ROUTER = {"name": "router", "typed_config": {"@type": f"{TYPE}{FILTERS}router.v3.Router"}}
SHOWN = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "x-mine", "content-type")
CALLER = httpx.Client(trust_env=False)  # to make one takes longer than to use it
ALWAYS = {"default_value": {"numerator": 100}}
BUCKET = {"max_tokens": 2, "tokens_per_fill": 1, "fill_interval": "600s"}


def http_filter(kind: str, **fields: Any) -> Json:
    return {"name": kind.partition(".")[0], "typed_config": {"@type": f"{TYPE}{FILTERS}{kind}", **fields}}


def rate_limit(**fields: Any) -> Json:
    defaults = {"stat_prefix": "limit", "token_bucket": BUCKET, "filter_enabled": ALWAYS, "filter_enforced": ALWAYS}
    return http_filter("local_ratelimit.v3.LocalRateLimit", **{**defaults, **fields})


def admission(**fields: Any) -> Json:
    defaults = {
        "success_criteria": {"http_criteria": {"http_success_status": [{"start": 100, "end": 500}]}},
        "max_rejection_probability": {"default_value": {"value": 100}},
    }
    return http_filter("admission_control.v3.AdmissionControl", **{**defaults, **fields})


def manager(filters: Sequence[Json], **overrides: Any) -> Json:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "up"}}
    if overrides:
        route["typed_per_filter_config"] = overrides
    return {
        "@type": f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "limits",
        "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
        "http_filters": [*filters, ROUTER],
    }


@pytest.fixture
def upstream() -> Iterator[HttpUpstream]:
    found = HttpUpstream("up")
    yield found
    found.close()


@pytest.fixture
def envoy(tmp_path: Path, upstream: HttpUpstream) -> Iterator[Callable[[Json], Envoy]]:
    running: list[tuple[Envoy, Any]] = []

    def start(manager: Json) -> Envoy:
        held = reserve_port()
        address = f"{LOOPBACK}:{held.getsockname()[1]}"
        chain = {"filters": [{"name": "manager", "typed_config": manager}]}
        listener = {"name": "l", "address": socket_address(address), "filter_chains": [chain]}
        resources = {"listeners": [listener], "clusters": [static_cluster("up", f"{LOOPBACK}:{upstream.port}")]}
        try:
            found = Envoy("envoy", {"static_resources": resources}, tmp_path)
        except BaseException:
            held.close()
            raise
        found.listen = address
        running.append((found, held))
        found.wait_ready()
        return found

    yield start
    for found, held in running:
        found.stop()
        held.close()


def decoded(manager: Json) -> ClientListener:
    listener = {"name": "l", "api_listener": {"api_listener": manager}}
    result = decode_resource(LDS, from_dict("envoy.config.listener.v3.Listener", listener).SerializeToString())
    assert () == result.errors
    assert isinstance(result.value, ClientListener)
    return result.value


def mesh_of(manager: Json) -> FakeMesh:
    listener = decoded(manager)
    assert isinstance(listener.routes, RouteConfiguration)
    group = LocalityEndpoints(Locality(), (Endpoint("10.0.0.1:80"),))
    assignment = ClusterLoadAssignment("up", (group,))
    cluster = ClusterConfig(Cluster("up", StaticDiscovery(assignment)), assignment)
    snapshot = Snapshot(targets={"l": TargetConfig(listener, listener.routes)}, clusters={"up": cluster})
    return mesh_source(snapshot, clock=FakeClock(), rng=Random(1))


Seen = tuple[int, str, dict[str, str], str]
"""Status, body, headers, and what the upstream got as `x-added`."""


def by_meshlib(mesh: FakeMesh, status: int = 200, path: str = "/") -> Seen:
    target = mesh.wait_target("l")
    head = RequestHead("GET", "l", path, Headers())
    call = Call(target, head, rng=mesh.rng, now=mesh.clock())
    step = call.start(mesh.clock())
    added = ""
    if isinstance(step, Attempt):
        added = step.head.headers.get("x-added") or ""
        step = call.finished(Response(status), mesh.clock())
    assert isinstance(step, Done)
    result = step.result
    body = "" if not isinstance(result, LocalReply) else result.body.decode()
    headers = Headers(result.headers) if isinstance(result, LocalReply) else call.response_headers(Headers())
    call.close(mesh.clock())
    assert isinstance(result, LocalReply | Response)
    shown = {name: value for name, value in headers.items if name in SHOWN}
    return result.status, body, shown, added


def inbound_of(manager: Json) -> Inbound:
    """The same manager as that of a server, which lets in what Envoy forwards."""
    (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
    let_in = {"name": "v", "domains": ["*"], "routes": [{**route, "non_forwarding_action": {}}]}
    let_in["routes"][0].pop("route")
    config = {**manager, "route_config": {"name": "r", "virtual_hosts": [let_in]}}
    chain = {"filters": [{"name": "manager", "typed_config": config}]}
    listener = {"name": "l", "address": socket_address("10.0.0.1:80"), "filter_chains": [chain]}
    result = decode_resource(LDS, from_dict("envoy.config.listener.v3.Listener", listener).SerializeToString())
    assert () == result.errors
    assert isinstance(result.value, ServerListener) and isinstance(result.value.routes, RouteConfiguration)
    return Inbound(ServerMesh(InboundConfig(result.value, result.value.routes)), kind="http")


class ServerMesh:
    """A mesh with one inbound configuration."""

    def __init__(self, config: InboundConfig) -> None:
        self.clock = FakeClock()
        self.rng = Random(1)
        self.is_disabled = False
        self.tracing = Tracing()
        self.handed_on = HANDED_ON
        self.has_inbound = True
        self.default_inbound_address: str | None = "10.0.0.1:80"
        self.announced_addresses: dict[str, str] = {}
        self.leaving_addresses: dict[str, InboundConfig] = {}
        self.forwarded: dict[str, str] = {}
        self.current: InboundConfig | None = config

    def inbound(self, address: str) -> "ServerMesh":
        return self

    def wait_ready(self, timeout_s: float) -> InboundConfig:
        assert self.current is not None
        return self.current

    def emit(self, event: Event) -> None:
        """Nobody listens."""


def by_server(inbound: Inbound) -> Seen:
    request = inbound.begin(RequestHead("GET", "l", "/", Headers()), ANONYMOUS, local=("", 0), remote="10.0.0.2")
    reply = request.reply
    status, body = (200, "") if reply is None else (reply.status, reply.body.decode())
    headers = request.response_headers if reply is None else reply.headers
    request.finish(status)
    return status, body, {name: value for name, value in headers if name in SHOWN}, ""


def by_envoy(envoy: Envoy, upstream: HttpUpstream, path: str = "/") -> Seen:
    before = len(upstream.seen)
    answer = CALLER.get(f"http://{envoy.listen}{path}")
    is_local = len(upstream.seen) == before
    added = "" if is_local else dict(upstream.seen[-1].headers).get("x-added", "")
    names = SHOWN if is_local else SHOWN[:-1]
    shown = {name: answer.headers[name] for name in names if name in answer.headers}
    return answer.status_code, answer.text if is_local else "", shown, added


@pytest.mark.parametrize(
    "managers",
    [
        pytest.param(manager([rate_limit()]), id="plain"),
        pytest.param(manager([rate_limit(filter_enabled={"default_value": {"numerator": 0}})]), id="not enabled"),
        pytest.param(
            manager(
                [
                    rate_limit(
                        filter_enforced={"default_value": {"numerator": 0}},
                        request_headers_to_add_when_not_enforced=[{"header": {"key": "x-added", "value": "late"}}],
                    )
                ]
            ),
            id="not enforced",
        ),
        pytest.param(
            manager(
                [
                    rate_limit(
                        status={"code": 503},
                        enable_x_ratelimit_headers="DRAFT_VERSION_03",
                        response_headers_to_add=[{"header": {"key": "x-mine", "value": "limited"}}],
                    )
                ]
            ),
            id="headers",
        ),
        pytest.param(manager([rate_limit(status={"code": 302})]), id="status below 400"),
        pytest.param(
            manager(
                [rate_limit(token_bucket={**BUCKET, "max_tokens": 100})],
                local_ratelimit=rate_limit(token_bucket={**BUCKET, "max_tokens": 1})["typed_config"],
            ),
            id="override",
        ),
        pytest.param(
            manager(
                [rate_limit()],
                local_ratelimit={
                    "@type": f"{TYPE}envoy.config.route.v3.FilterConfig",
                    "disabled": True,
                    "config": {},
                },
            ),
            id="switched off",
        ),
    ],
)
def test_rate_limits_answer_as_envoy(managers: Json, envoy: Callable[[Json], Envoy], upstream: HttpUpstream) -> None:
    """In a client, and in a server, unless it is about something that a server refuses."""
    running, mesh = envoy(managers), mesh_of(managers)
    began = time.monotonic()
    seen = [by_envoy(running, upstream) for _ in range(4)]
    took_s = time.monotonic() - began
    assert_same(seen, [by_meshlib(mesh) for _ in range(4)], took_s)
    if "request_headers_to_add_when_not_enforced" not in managers["http_filters"][0]["typed_config"]:
        inbound = inbound_of(managers)
        assert_same(seen, [by_server(inbound) for _ in range(4)], took_s)


ABORT = http_filter("fault.v3.HTTPFault", abort={"http_status": 418, "percentage": {"numerator": 100}})
TOLD = rate_limit(
    enable_x_ratelimit_headers="DRAFT_VERSION_03",
    response_headers_to_add=[{"header": {"key": "x-mine", "value": "limited"}}],
)


@pytest.mark.parametrize(
    "filters",
    [
        pytest.param([TOLD], id="limit"),
        pytest.param([ABORT, TOLD], id="fault before"),
        pytest.param([TOLD, ABORT], id="fault after"),
        pytest.param([rate_limit(token_bucket={**BUCKET, "max_tokens": 1}), admission()], id="two"),
    ],
)
def test_filters_come_before_routes_that_answer_as_in_envoy(
    filters: list[Json], envoy: Callable[[Json], Envoy], upstream: HttpUpstream
) -> None:
    """A redirect, a direct response with a bucket of its own, one without the filter, and no route at all."""
    config = manager(filters)
    own = rate_limit(token_bucket={**BUCKET, "max_tokens": 1})["typed_config"]
    off = {"@type": f"{TYPE}envoy.config.route.v3.FilterConfig", "disabled": True, "config": {}}
    config["route_config"]["virtual_hosts"][0]["routes"] = [
        {"match": {"path": "/away"}, "redirect": {"path_redirect": "/here"}},
        {
            "match": {"path": "/own"},
            "direct_response": {"status": 200, "body": {"inline_string": "own"}},
            "response_headers_to_add": [{"header": {"key": "x-mine", "value": "route"}}],
            "typed_per_filter_config": {"local_ratelimit": own},
        },
        {
            "match": {"path": "/off"},
            "direct_response": {"status": 203},
            "typed_per_filter_config": {"local_ratelimit": off},
        },
    ]
    running, mesh = envoy(config), mesh_of(config)
    paths = ["/own", "/own", "/off", "/away", "/nowhere", "/off", "/nowhere", "/away"]
    began = time.monotonic()
    seen = [by_envoy(running, upstream, path) for path in paths]
    assert_same(seen, [by_meshlib(mesh, path=path) for path in paths], time.monotonic() - began)
    assert [] == upstream.seen


def assert_same(envoy: list[Seen], here: list[Seen], took_s: float) -> None:
    """Envoy's buckets filled a little while it was asked."""
    waits = [[int(shown.get(limits.RESET, 0)) for _, _, shown, _ in seen] for seen in (envoy, here)]
    assert all(0 <= ours - theirs <= took_s + 1 for theirs, ours in zip(*waits, strict=True)), (waits, took_s)
    assert [without_wait(one) for one in envoy] == [without_wait(one) for one in here]


def without_wait(seen: Seen) -> Seen:
    status, body, shown, added = seen
    return status, body, {name: "told" if name == limits.RESET else value for name, value in shown.items()}, added


def test_descriptors_are_counted_as_by_envoy(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    report = limits.run(new_seed(), 15, 15, tmp_path)
    record_property("report", str(report))
    assert [] == report.disagreements[:1], str(report)
    assert report.limited and report.descriptors


def test_a_failing_service_is_refused_as_often_as_by_envoy(
    envoy: Callable[[Json], Envoy], upstream: HttpUpstream
) -> None:
    """All fail: n failures in the window refuse the next with n / (n + 1)."""
    config = manager([admission(sr_threshold={"default_value": {"value": 100}})])
    running, mesh = envoy(config), mesh_of(config)
    upstream.usual = Step(status=500)
    counts = []
    for ask in (lambda: by_envoy(running, upstream), lambda: by_meshlib(mesh, 500)):
        answers = [ask() for _ in range(300)]
        refused = [answer for answer in answers if 503 == answer[0]]
        assert {(503, "", (), "")} == {(one[0], one[1], tuple(one[2].items()), one[3]) for one in refused}
        counts.append(len(refused))
    # About ln(300) / ... requests get through; both are draws of the same law.
    assert all(240 < count < 299 for count in counts), counts


def test_healthy_services_are_never_refused(envoy: Callable[[Json], Envoy], upstream: HttpUpstream) -> None:
    config = manager([admission()])
    running, mesh = envoy(config), mesh_of(config)
    assert {200} == {by_envoy(running, upstream)[0] for _ in range(50)}
    assert {200} == {by_meshlib(mesh)[0] for _ in range(50)}


def test_requests_beyond_the_measured_concurrency_are_refused_alike(
    envoy: Callable[[Json], Envoy], upstream: HttpUpstream
) -> None:
    """While the latency is being measured, the limit is the least."""
    config = manager(
        [
            http_filter(
                "adaptive_concurrency.v3.AdaptiveConcurrency",
                gradient_controller_config={
                    "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
                    "min_rtt_calc_params": {"interval": "600s", "min_concurrency": 2},
                },
            )
        ]
    )
    running, mesh = envoy(config), mesh_of(config)
    target = mesh.wait_target("l")
    calls = [Call(target, RequestHead("GET", "l", "/", Headers()), rng=mesh.rng, now=0.0) for _ in range(3)]
    steps = [call.start(mesh.clock()) for call in calls]
    assert [Attempt, Attempt, Done] == [type(step) for step in steps]
    refused = steps[2]
    assert isinstance(refused, Done) and isinstance(refused.result, LocalReply)

    upstream.usual = Step(delay_s=1.0)
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: httpx.get(f"http://{running.listen}/", trust_env=False), range(3)))
    statuses = sorted(answer.status_code for answer in answers)
    (by_peer,) = [answer for answer in answers if answer.status_code == 503]
    assert [200, 200, 503] == statuses
    assert (refused.result.status, refused.result.body.decode()) == (503, by_peer.text)
    for call in calls:
        call.close(mesh.clock())


INVALID = {
    "fill interval": rate_limit(token_bucket={**BUCKET, "fill_interval": "0.04s"}),
    "no criteria": http_filter("admission_control.v3.AdmissionControl"),
    "threshold": admission(sr_threshold={"default_value": {"value": 0.5}}),
    "range": admission(success_criteria={"http_criteria": {"http_success_status": [{"start": 300, "end": 200}]}}),
    "no interval": http_filter(
        "adaptive_concurrency.v3.AdaptiveConcurrency",
        gradient_controller_config={
            "concurrency_limit_params": {"concurrency_update_interval": "0.1s"},
            "min_rtt_calc_params": {},
        },
    ),
    "no update interval": http_filter(
        "adaptive_concurrency.v3.AdaptiveConcurrency",
        gradient_controller_config={
            "concurrency_limit_params": {},
            "min_rtt_calc_params": {"interval": "1s"},
        },
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_envoy_refuses_is_refused(name: str, tmp_path: Path) -> None:
    config = manager([INVALID[name]])
    chain = {"filters": [{"name": "manager", "typed_config": config}]}
    listener = {"name": "l", "address": socket_address(f"{LOOPBACK}:0"), "filter_chains": [chain]}
    resources = {"listeners": [listener], "clusters": [static_cluster("up", f"{LOOPBACK}:1")]}
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps({"static_resources": resources}))
    done = subprocess.run([find_envoy(), "--mode", "validate", "-c", path], capture_output=True, text=True, timeout=30)
    assert done.returncode, done.stdout
    with pytest.raises(AssertionError):
        decoded(config)
