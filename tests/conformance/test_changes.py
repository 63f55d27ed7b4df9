"""An edit of the documents reaches all three clients; nobody refuses it, and no call fails meanwhile."""

import contextlib
import json

from peers.processes import poll
from peers.world import Load, World, version_of

METHOD = "/test.Echo/Call"


def documents(subset: str, subsets: tuple[str, ...] = ("v1", "v2")) -> str:
    """Return the rules for an HTTP and a gRPC service that lead to one subset."""
    listed = ", ".join(f"{{name: {name}, labels: {{version: {name}}}}}" for name in subsets)
    return "\n---\n".join(
        f"""\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {host}}}
spec: {{host: {host}, subsets: [{listed}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {host}}}
spec:
  hosts: [{host}]
  http: [{{route: [{{destination: {{host: {host}, subset: {subset}}}}}]}}]"""
        for host in ("web", "echo")
    )


def start(make_world, versions=("v1", "v2")) -> World:
    world = make_world({"rules.yaml": documents("v1")})
    for version in versions:
        world.http("web", version)
        world.grpc("echo", version)
    world.start()
    return world


def everywhere(world: World) -> list[str]:
    """Return the version that each way of calling reaches."""
    answers = [ask("GET", "http://web/").version for ask in (world.ask_envoy, world.ask_meshlib)]
    calls = (world.call_envoy, world.call_meshlib, world.call_grpcio)
    return answers + [version_of(call("echo", METHOD)) for call in calls]


def test_edit_reaches_all_three_and_nobody_refuses_it(make_world):
    world = start(make_world)
    assert ["v1"] * 5 == everywhere(world)
    for subset in ("v2", "v1"):
        world.server.write("rules.yaml", documents(subset))
        poll(lambda subset=subset: everywhere(world) == [subset] * 5, f"everyone to reach {subset}")
    world.check_accepted()


def test_broken_edit_is_not_published(make_world):
    world = start(make_world)
    assert ["v1"] * 5 == everywhere(world)
    world.server.write("rules.yaml", documents("v1").replace("subset: v1", "subset: v9"))
    poll(lambda: world.server.status()["refused"], "the server to refuse the documents")
    assert ["v1"] * 5 == everywhere(world)
    world.server.write("rules.yaml", documents("v2"))
    poll(lambda: everywhere(world) == ["v2"] * 5, "everyone to reach v2")
    world.check_accepted()


def test_route_moves_to_a_new_cluster_under_load_without_a_failed_call(make_world):
    """Make before break: the new subset's cluster must be there before the route names it, and the old one until then.

    1. Load on every way of calling. 2. A subset appears and the route moves to it in one edit; then back, and the new
    subset goes away, three times over. 3. No call failed, and every version was reached.
    """
    world = start(make_world, ("v1", "v3"))
    assert ["v1"] * 5 == everywhere(world)

    def http(ask):
        answer = ask("GET", "http://web/")
        return answer.version, "" if answer.version else f"{answer.status} {answer.flag} {answer.body}"

    def grpc(call):
        code, text = call("echo", METHOD)
        return ("", f"{code}: {text}") if code != "OK" else (version_of((code, text)), "")

    loads = {
        "http through Envoy": Load(lambda: http(world.ask_envoy)),
        "http by meshlib": Load(lambda: http(world.ask_meshlib)),
        "gRPC through Envoy": Load(lambda: grpc(world.call_envoy)),
        "gRPC by meshlib": Load(lambda: grpc(world.call_meshlib)),
    }
    with contextlib.ExitStack() as stack:
        for load in loads.values():
            stack.enter_context(load)
        world.grpcio.start_load("xds:///echo", METHOD)
        for _ in range(3):
            for subset, subsets in (("v3", ("v1", "v2", "v3")), ("v1", ("v1", "v2"))):
                before = {name: load.versions[subset] for name, load in loads.items()}
                world.server.write("rules.yaml", documents(subset, subsets))
                poll(
                    lambda before=before, subset=subset: all(
                        load.versions[subset] > before[name] + 5 or load.failures for name, load in loads.items()
                    ),
                    f"calls to reach {subset}",
                )
    by_grpcio, failures = world.grpcio.stop_load()
    assert {} == {name: load.failures[:3] for name, load in loads.items() if load.failures}
    assert [] == failures[:3]
    assert {"v1", "v3"} == set(by_grpcio)
    world.check_accepted()


def test_instance_that_registers_is_followed_by_all(make_world):
    world = start(make_world)
    assert ["v1"] * 5 == everywhere(world)
    new = {world.http("web", "v1"), world.grpc("echo", "v1")}
    poll(lambda: {upstream.port for upstream in new} <= envoy_ports(world), "Envoy to know the new instances")

    def all_reached() -> bool:
        everywhere(world)
        return all(upstream.seen for upstream in new)

    poll(all_reached, "the new instances to get requests")
    world.check_accepted()


def test_all_go_on_without_the_management_server(make_world):
    world = start(make_world)
    assert ["v1"] * 5 == everywhere(world)
    world.check_accepted()
    world.server.process.kill()
    world.server.process.wait()
    poll(lambda: world.mesh.status().connection != "connected", "meshlib to notice")
    for _ in range(10):
        assert ["v1"] * 5 == everywhere(world)


def envoy_ports(world: World) -> set[int]:
    """Return the ports of all endpoints that Envoy knows."""
    clusters = json.loads(world.envoy.admin("/clusters?format=json"))["cluster_statuses"]
    hosts = [host for cluster in clusters for host in cluster.get("host_statuses", [])]
    return {host["address"]["socket_address"]["port_value"] for host in hosts}
