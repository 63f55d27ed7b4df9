"""A resource that no client takes: each refuses it with a reason, the server shows who and why, and all go on serving."""

import json

from peers.processes import poll
from peers.world import ENVOY, GRPCIO, MESHLIB, World, version_of

METHOD = "/test.Echo/Call"
CLUSTER = "outbound|80||echo.default.svc.cluster.local"
VIRTUAL_SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec: {hosts: [echo], http: [{route: [{destination: {host: echo}}]}]}
"""


def native_cluster(**fields: object) -> str:
    """Return a document with a cluster that takes the place of the generated one, in every profile."""
    source = {"ads": {}, "resource_api_version": "V3"}
    cluster = {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": CLUSTER,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": source, "service_name": CLUSTER},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        **fields,
    }
    return json.dumps(cluster)


def native_routes(regex: str) -> str:
    """Return a document with the route configurations of all profiles, each with a regex in its first match."""

    def routes(name: str) -> dict[str, object]:
        match = {"prefix": "/", "headers": [{"name": "x", "string_match": {"safe_regex": {"regex": regex}}}]}
        host = {
            "name": "echo",
            "domains": ["echo"],
            "routes": [
                {"match": match, "route": {"cluster": CLUSTER}},
                {"match": {"prefix": "/"}, "route": {"cluster": CLUSTER}},
            ],
        }
        kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
        return {"@type": kind, "name": name, "virtual_hosts": [host]}

    return json.dumps({"resources": [routes("outbound"), routes(CLUSTER)]})


BAD_CLUSTER = native_cluster(outlier_detection={"max_ejection_percent": 150})
GOOD_CLUSTER = native_cluster(outlier_detection={"max_ejection_percent": 50})


def start(make_world) -> World:
    world = make_world({"echo.yaml": VIRTUAL_SERVICE})
    world.grpc("echo", "v1")
    world.start()
    assert ["v1"] * 3 == everywhere(world)
    world.check_accepted()
    return world


def everywhere(world: World) -> list[str]:
    return [version_of(call("echo", METHOD)) for call in (world.call_envoy, world.call_grpcio, world.call_meshlib)]


def check_refused_by_all(world: World, kind: str) -> dict[str, str]:
    """Wait until the server knows that all three refuse; returns their reasons by node."""
    nodes = {f"{node}/{kind}" for node in (ENVOY, GRPCIO, MESHLIB)}
    poll(lambda: nodes == set(world.server.rejections()), f"{nodes} to refuse")
    poll(lambda: world.envoy.refused() == 1, "Envoy to count its refusal")
    assert {"ERROR"} == {world.server.client(node)["types"][kind]["state"] for node in (ENVOY, GRPCIO, MESHLIB)}
    return world.server.rejections()


def check_healed(world: World) -> None:
    world.server.wait_settled(ENVOY, GRPCIO, MESHLIB)
    assert ["v1"] * 3 == everywhere(world)
    assert {} == world.server.rejections()
    assert {"ACKED"} == {resource.state for resource in world.mesh.dump()}
    assert [] == world.envoy.error_states()
    assert [] == world.envoy.warming()


def test_cluster_that_is_not_valid_is_refused_by_all_and_all_go_on(make_world):
    """1. Everyone serves. 2. A bad cluster arrives: three refusals with reasons. 3. Everyone serves. 4. It is mended."""
    world = start(make_world)
    world.server.write("native.json", BAD_CLUSTER)
    reasons = check_refused_by_all(world, "Cluster")
    for node, reason in reasons.items():
        assert CLUSTER in reason, (node, reason)
        assert "maxejectionpercent" in reason.lower().replace("_", ""), (node, reason)
    assert ["v1"] * 3 == everywhere(world)
    (nacked,) = (resource for resource in world.mesh.dump() if resource.error)
    assert (CLUSTER, "NACKED", True) == (nacked.name, nacked.state, nacked.is_in_use)
    world.server.write("native.json", GOOD_CLUSTER)
    check_healed(world)


def test_routes_with_a_broken_regex_are_refused_by_all_and_all_go_on(make_world):
    world = start(make_world)
    world.server.write("native.json", native_routes("(unclosed"))
    for node, reason in check_refused_by_all(world, "RouteConfiguration").items():
        assert "unclosed" in reason or "regex" in reason.lower(), (node, reason)
    assert ["v1"] * 3 == everywhere(world)
    world.server.write("native.json", native_routes("(closed)"))
    check_healed(world)


def test_refused_resource_does_not_hold_back_others(make_world):
    """While a cluster is refused, another service appears and is usable everywhere.

    The fault is one that Envoy lays to the cluster alone; for a field out of its range it drops the whole update.
    """
    world = start(make_world)
    world.server.write("native.json", native_cluster(lb_policy="CLUSTER_PROVIDED"))
    check_refused_by_all(world, "Cluster")
    world.grpc("second", "v2")
    for call in (world.call_envoy, world.call_grpcio, world.call_meshlib):
        poll(lambda call=call: version_of(call("second", METHOD)) == "v2", "the second service to be reached")
    assert ["v1"] * 3 == everywhere(world)
