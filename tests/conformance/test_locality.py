"""`localityLbSetting` end to end: Envoy and meshlib of one place are told the same, and fail over alike."""

import contextlib
import random

import httpx
from peers.envoy import Envoy, ads_bootstrap, reserve_port
from peers.processes import poll
from peers.upstreams import LOOPBACK, Step
from peers.world import World

import meshlib

RULES = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop}
spec:
  host: shop
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 100, baseEjectionTime: 60s}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http: [{route: [{destination: {host: shop}}], retries: {attempts: 0}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart}
spec:
  host: cart
  trafficPolicy:
    loadBalancer:
      localityLbSetting: {distribute: [{from: eu/eu-1, to: {'eu/eu-2': 100}}]}
"""


def start_at(world: World, region: str, zone: str) -> None:
    """Start an Envoy and a mesh of this place."""
    held = world._stack.enter_context(reserve_port())
    listen = f"{LOOPBACK}:{held.getsockname()[1]}"
    bootstrap = ads_bootstrap(world.server.listen, node_id="envoy-1", listen=listen)
    bootstrap["node"]["locality"] = {"region": region, "zone": zone}
    world.envoy = world._stack.enter_context(Envoy("envoy", bootstrap, world.folder))
    world.envoy.listen = listen
    server = {"server_uri": world.server.listen, "channel_creds": [{"type": "insecure"}]}
    node = {"id": "meshlib-1", "locality": {"region": region, "zone": zone}}
    mesh = meshlib.Mesh({"xds_servers": [server], "node": node}, state_dir="", rng=random.Random(1))
    world.mesh = world._stack.enter_context(mesh)
    world.client = world._stack.enter_context(
        httpx.Client(transport=mesh.httpx_transport(), timeout=30, trust_env=False)
    )
    world.envoy.wait_ready()


def test_requests_stay_near_until_nobody_near_is_left(make_world):
    world = make_world({"rules.yaml": RULES})
    near = world.http("shop", "near", locality={"region": "eu", "zone": "eu-1"})
    far = world.http("shop", "far", locality={"region": "us", "zone": "us-1"})
    for version, zone in (("own", "eu-1"), ("other", "eu-2")):
        world.http("cart", version, locality={"region": "eu", "zone": zone})
    start_at(world, "eu", "eu-1")
    near.usual = Step()
    for ask in (world.ask_envoy, world.ask_meshlib):
        near.usual = Step()
        assert {"near"} == {ask("GET", "http://shop/").version for _ in range(20)}
        assert {"other"} == {ask("GET", "http://cart/").version for _ in range(20)}, "the only place with a share"
        near.usual = Step(503)
        assert [503, 503] == [ask("GET", "http://shop/").status for _ in range(2)]
        # Envoy's balancer may hear of an ejection a second late.
        with contextlib.suppress(AssertionError):
            poll(lambda ask=ask: ask("GET", "http://shop/").version == "far", "the other region", timeout_s=60)
        assert {(200, "far")} == {(one.status, one.version) for one in (ask("GET", "http://shop/") for _ in range(20))}
    assert far.seen
