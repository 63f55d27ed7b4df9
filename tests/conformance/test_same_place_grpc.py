"""gRPC calls whose way is certain: Envoy, gRPC's own client and meshlib send them to the same place."""

import pytest
from peers.world import World, version_of

DOCUMENTS = {
    "greeter.yaml": """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: greeter}
spec:
  host: greeter
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: greeter}
spec:
  hosts: [greeter]
  http:
  - match: [{headers: {x-exact: {exact: "yes"}}}, {headers: {x-prefix: {prefix: gold-}}}, {headers: {x-regex: {regex: "v[0-9]+"}}}]
    route: [{destination: {host: greeter, subset: v2}}]
  - match: [{headers: {x-present: {}}}]
    route: [{destination: {host: greeter, subset: v2}}]
  - match: [{uri: {exact: /test.Greeter/Exact}}, {uri: {prefix: /test.Admin/}}, {uri: {regex: "/test[.][A-Z]+/.*"}}]
    route: [{destination: {host: greeter, subset: v2}}]
  - match: [{uri: {prefix: /test.Without/}, withoutHeaders: {x-flag: {exact: "on"}}}]
    route: [{destination: {host: greeter, subset: v2}}]
  - match: [{uri: {exact: /test.Greeter/AllV2}}]
    route: [{destination: {host: greeter, subset: v1}, weight: 0}, {destination: {host: greeter, subset: v2}, weight: 100}]
  - match: [{uri: {exact: /test.Greeter/Abort}}]
    fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}
    route: [{destination: {host: greeter, subset: v1}}]
  - match: [{uri: {exact: /test.Greeter/Lonely}, headers: {x-nobody: {exact: x}}}]
    route: [{destination: {host: greeter, subset: v1}}]
  - route: [{destination: {host: greeter, subset: v1}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: picky}
spec:
  hosts: [picky]
  http:
  - match: [{uri: {prefix: /test.Known/}}]
    route: [{destination: {host: greeter, subset: v1}}]
"""
}

HELLO = "/test.Greeter/Hello"
CASES = [
    ("no rule but the last", HELLO, (), "v1"),
    ("exact header", HELLO, (("x-exact", "yes"),), "v2"),
    ("exact header with more in it", HELLO, (("x-exact", "yes!"),), "v1"),
    ("header prefix", HELLO, (("x-prefix", "gold-1"),), "v2"),
    ("header regex", HELLO, (("x-regex", "v9"),), "v2"),
    ("header regex matches the whole value", HELLO, (("x-regex", "v9x"),), "v1"),
    ("header present", HELLO, (("x-present", "1"),), "v2"),
    ("exact path", "/test.Greeter/Exact", (), "v2"),
    ("exact path with more", "/test.Greeter/Exactly", (), "v1"),
    ("path prefix", "/test.Admin/Anything", (), "v2"),
    ("path regex", "/test.ABC/x", (), "v2"),
    ("header absent as demanded", "/test.Without/X", (), "v2"),
    ("header of another value", "/test.Without/X", (("x-flag", "off"),), "v2"),
    ("header there that must not be", "/test.Without/X", (("x-flag", "on"),), "v1"),
    ("weights 0 and 100", "/test.Greeter/AllV2", (), "v2"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("same-place-grpc"), DOCUMENTS) as world:
        for version in ("v1", "v2"):
            world.grpc("greeter", version)
        world.start()
        yield world


@pytest.mark.parametrize(
    ("method", "metadata", "version"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_call_goes_to_the_same_place(world, method, metadata, version):
    by_envoy = world.call_envoy("greeter", method, metadata)
    by_grpcio = world.call_grpcio("greeter", method, metadata)
    by_meshlib = world.call_meshlib("greeter", method, metadata)
    assert [version] * 3 == [version_of(answer) for answer in (by_envoy, by_grpcio, by_meshlib)]


def test_repeated_metadata_is_joined_by_grpc_and_meshlib_and_looked_at_line_by_line_by_envoy(world):
    """See DIFFERENCES.md."""
    asked = ("greeter", HELLO, (("x-exact", "yes"), ("x-exact", "yes")))
    assert "v2" == version_of(world.call_envoy(*asked))
    assert ["v1", "v1"] == [version_of(call(*asked)) for call in (world.call_grpcio, world.call_meshlib)]


def test_injected_status_is_the_same(world):
    calls = (world.call_envoy, world.call_grpcio, world.call_meshlib)
    assert ["RESOURCE_EXHAUSTED"] * 3 == [call("greeter", "/test.Greeter/Abort")[0] for call in calls]


def test_call_that_no_route_takes_fails_everywhere(world):
    """Envoy answers 404, which gRPC's mapping makes UNIMPLEMENTED; gRPC and meshlib say UNAVAILABLE, as gRFC A28 asks."""
    assert "UNIMPLEMENTED" == world.call_envoy("picky", "/test.Other/X")[0]
    assert ["UNAVAILABLE"] * 2 == [
        call("picky", "/test.Other/X")[0] for call in (world.call_grpcio, world.call_meshlib)
    ]
    calls = (world.call_envoy, world.call_grpcio, world.call_meshlib)
    assert ["v1"] * 3 == [version_of(call("picky", "/test.Known/X")) for call in calls]


def test_everything_was_accepted(world):
    world.check_accepted()
