"""Runtime values change in meshlib what they change in a real Envoy: the same layer, listener and cluster in both."""

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from peers.envoy import TYPE, Envoy, reserve_port, socket_address, static_cluster
from peers.upstreams import LOOPBACK, HttpUpstream, Step

from meshlib.clients.httpx_sync import MeshTransport
from meshlib.model.discovery import RuntimeLayer
from meshlib.model.snapshot import Snapshot
from meshlib.protos import from_dict
from meshlib.runtime.clock import monotonic
from meshlib.testing import mesh_source
from meshlib.xds.cache import ResourceCache, ResourceState
from meshlib.xds.decode import decode_resource
from meshlib.xds.decode_runtime import runtime_values
from meshlib.xds.dependencies import resolve
from meshlib.xds.follow_resources import Facts
from meshlib.xds.problems import Problems
from meshlib.xds.resources import CDS, LDS

pytestmark = pytest.mark.envoy

Json = dict[str, Any]
HTTP = f"{TYPE}envoy.extensions.filters.http."
HCM = f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ALWAYS: Json = {"numerator": 100}
ABORT: Json = {"abort": {"http_status": 503, "percentage": ALWAYS}}
DELAY: Json = {"delay": {"fixed_delay": "20s", "percentage": ALWAYS}}
LIMIT: Json = {
    "stat_prefix": "l",
    "token_bucket": {"max_tokens": 1, "fill_interval": "600s"},
    "filter_enabled": {"default_value": ALWAYS, "runtime_key": "limits.on"},
    "filter_enforced": {"default_value": ALWAYS, "runtime_key": "limits.enforced"},
}
UNHEALTHY: Json = {"health_status": "UNHEALTHY"}


def fault(**fields: Any) -> Json:
    return {"name": "fault", "typed_config": {"@type": f"{HTTP}fault.v3.HTTPFault", **fields}}


def limit(**fields: Any) -> Json:
    return {"name": "limit", "typed_config": {"@type": f"{HTTP}local_ratelimit.v3.LocalRateLimit", **LIMIT, **fields}}


def manager(*filters: Json) -> Json:
    retry = {"retry_on": "retriable-4xx", "retry_back_off": {"base_interval": "0.01s"}}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "up", "retry_policy": retry}}
    return {
        "@type": HCM,
        "stat_prefix": "runtime",
        # The caller is trusted, as one in the same process is.
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": LOOPBACK, "prefix_len": 8}]},
        "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
        "http_filters": [*filters, {"name": "router", "typed_config": {"@type": f"{HTTP}router.v3.Router"}}],
    }


@pytest.fixture
def upstream() -> Iterator[HttpUpstream]:
    found = HttpUpstream("up")
    yield found
    found.close()


def by_envoy(
    filters: list[Json], cluster: Json, layer: Json, folder: Path, count: int, headers: dict[str, str]
) -> list[int]:
    with reserve_port() as held:
        address = f"{LOOPBACK}:{held.getsockname()[1]}"
        chain = {"filters": [{"name": "manager", "typed_config": manager(*filters)}]}
        listener = {"name": "l", "address": socket_address(address), "filter_chains": [chain]}
        layers = [{"name": "static", "static_layer": layer}]
        resources = {"listeners": [listener], "clusters": [cluster]}
        bootstrap = {"static_resources": resources, "layered_runtime": {"layers": layers}}
        with Envoy("envoy", bootstrap, folder) as envoy:
            envoy.listen = address
            envoy.wait_ready()
            with httpx.Client(trust_env=False, timeout=10, headers=headers) as client:
                return [client.get(f"http://{address}/").status_code for _ in range(count)]


def by_meshlib(filters: list[Json], cluster: Json, layer: Json, count: int, headers: dict[str, str]) -> list[int]:
    cache = ResourceCache()
    listener = {"name": "l", "api_listener": {"api_listener": manager(*filters)}}
    for kind, name, data in ((LDS, "l", listener), (CDS, "up", cluster)):
        decoded = decode_resource(kind, from_dict(kind.rpartition("/")[2], data).SerializeToString())
        assert () == decoded.errors
        entry = cache.add(kind, name)
        entry.value, entry.version, entry.state = decoded.value, "1", ResourceState.ACKED
    values = runtime_values(layer, "", Problems())
    facts = Facts(cache, frozenset({"l"}), runtime=(RuntimeLayer("static", values),))
    mesh = mesh_source(resolve(facts, Snapshot()).snapshot, clock=monotonic, rng=Random(1))
    found = []
    with httpx.Client(transport=MeshTransport(mesh), timeout=10, headers=headers) as client:
        for _ in range(count):
            try:
                found.append(client.get("http://l/").status_code)
            except httpx.TransportError:
                found.append(503)
    return found


BY_HEADER: Json = {"abort": {"header_abort": {}, "percentage": ALWAYS}}
WANTS = {"x-envoy-fault-abort-request": "405", "x-envoy-fault-abort-request-percentage": "0"}
WEB = {"x-envoy-downstream-service-cluster": "web"}


def faults(**values: Any) -> Json:
    return {"fault": {"http": values}}


OF_CALLERS: dict[str, tuple[dict[str, str], Json, Json, int]] = {
    "none": ({}, ABORT, faults(web={"abort": {"http_status": 418}}), 503),
    "named": (WEB, ABORT, faults(abort={"http_status": 429}, web={"abort": {"http_status": 418}}), 418),
    "named, without a value": (WEB, ABORT, faults(abort={"http_status": 429, "abort_percent": 0}), 503),
    "named, but another": (WEB, ABORT, faults(api={"abort": {"abort_percent": 0}}), 503),
    "named, never": (WEB, ABORT, faults(web={"abort": {"abort_percent": {"numerator": 0}}}), 200),
    "with a dot": ({**WEB, "x-envoy-downstream-service-cluster": "a.b"}, ABORT, {"fault.http.a.b.abort.abort_percent": 0}, 200),
    "empty": ({"x-envoy-downstream-service-cluster": ""}, ABORT, {"fault.http..abort.http_status": 418}, 418),
    "delay": (WEB, DELAY, faults(web={"delay": {"fixed_duration_ms": 10}}), 200),
    "delay by the general key": (WEB, DELAY, faults(delay={"fixed_duration_ms": 10}), 200),
    "no delay": (WEB, DELAY, faults(web={"delay": {"fixed_delay_percent": 0}}), 200),
    "asked for": (WANTS, BY_HEADER, {"other": 1}, 200),
    "asked for, with a share": (WANTS, BY_HEADER, faults(abort={"abort_percent": 100}), 405),
    "asked for, with a share and a status": (WANTS, BY_HEADER, faults(abort={"abort_percent": 100, "http_status": 418}), 418),
    "asked for by a named one": ({**WANTS, **WEB}, BY_HEADER, faults(web={"abort": {"abort_percent": 100}}), 405),
}  # fmt: skip
"""Headers, the fault, runtime values, and what comes of it."""

CASES: dict[str, tuple[list[Json], Json, Json, list[int]]] = {
    "status of aborts": ([fault(**ABORT)], {}, {"fault": {"http": {"abort": {"http_status": 418}}}}, [418]),
    "status of aborts by a key of their own": (
        [fault(**ABORT, abort_http_status_runtime="mine")],
        {},
        {"mine": 429, "fault": {"http": {"abort": {"http_status": 418}}}},
        [429],
    ),
    "no aborts": ([fault(**ABORT)], {}, {"fault": {"http": {"abort": {"abort_percent": 0}}}}, [200]),
    "no active faults": ([fault(**ABORT)], {}, {"fault": {"http": {"max_active_faults": 0}}}, [200]),
    "shorter delay": ([fault(**DELAY)], {}, {"fault": {"http": {"delay": {"fixed_duration_ms": 10}}}}, [200]),
    "no delay": ([fault(**DELAY)], {}, {"fault": {"http": {"delay": {"fixed_duration_ms": 0}}}}, [200]),
    "rate limit off": ([limit()], {}, {"limits": {"on": 0}}, [200, 200]),
    "rate limit on": ([limit()], {}, {"limits": {"on": 100}}, [200, 429]),
    "rate limit not enforced": ([limit()], {}, {"limits": {"enforced": {"numerator": 0}}}, [200, 200]),
    "no requests allowed": (
        [],
        {},
        {"circuit_breakers": {"up": {"default": {"max_requests": 0, "max_pending_requests": 0}}}},
        [503],
    ),
    "breakers of another cluster": ([], {}, {"circuit_breakers": {"down": {"default": {"max_requests": 0}}}}, [200]),
    "panic": ([], UNHEALTHY, {"other": 1}, [200]),
    "no panic": ([], UNHEALTHY, {"upstream": {"healthy_panic_threshold": 0}}, [503]),
    "maintenance": ([], {}, {"upstream": {"maintenance_mode": {"up": 100}}}, [503]),
    "maintenance of another cluster": ([], {}, {"upstream": {"maintenance_mode": {"down": 100}}}, [200]),
    "no maintenance": ([], {}, {"upstream": {"maintenance_mode": {"up": 0}}}, [200]),
    "retries": ([], {}, {"other": 1}, [200]),
    "no retries": ([], {}, {"upstream": {"use_retry": 0}}, [409]),
    "all retries": ([], {}, {"upstream": {"use_retry": 100}}, [200]),
    "more requests than the resource allows": (
        [],
        {"circuit_breakers": {"thresholds": [{"max_pending_requests": 0}]}},
        {"circuit_breakers": {"up": {"default": {"max_pending_requests": 5}}}},
        [200],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_runtime_values_have_the_same_effect(name: str, upstream: HttpUpstream, tmp_path: Path) -> None:
    filters, fields, layer, expected = CASES[name]
    cluster = static_cluster("up", f"{LOOPBACK}:{upstream.port}")
    if "health_status" in fields:
        cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0].update(fields)
    else:
        cluster.update(fields)
    if "retries" in name:
        upstream.script.extend([Step(409), *[Step(200)] * (expected != [409])] * 2)  # for Envoy, then for meshlib
    start = time.monotonic()
    assert expected == by_envoy(filters, cluster, layer, tmp_path, len(expected), {})
    assert expected == by_meshlib(filters, cluster, layer, len(expected), {})
    assert time.monotonic() - start < 19.0, "a delay of the resource was waited for"


@pytest.mark.parametrize("name", OF_CALLERS)
def test_faults_are_those_of_the_cluster_that_a_request_comes_from(
    name: str, upstream: HttpUpstream, tmp_path: Path
) -> None:
    headers, config, layer, expected = OF_CALLERS[name]
    cluster = static_cluster("up", f"{LOOPBACK}:{upstream.port}")
    start = time.monotonic()
    assert [expected] == by_envoy([fault(**config)], cluster, layer, tmp_path, 1, headers)
    assert [expected] == by_meshlib([fault(**config)], cluster, layer, 1, headers)
    assert time.monotonic() - start < 19.0, "a delay of the resource was waited for"
