"""The example's documents are accepted by Envoy, by gRPC's own xDS client and by meshlib, and lead them to one place."""

import json

from peers.world import ENVOY, GRPCIO, MESHLIB, version_of

METHOD = "/canary.MyService/Get"


def start(make_world, example):
    world = make_world(example)
    for version in ("v1", "v2"):
        world.http("checkout", version)
        world.http("user-service", version)
        world.grpc("my-service", version)
    world.start()
    return world


def test_example_is_accepted_by_all_three(make_world, example):
    """1. Start. 2. A first call of each client. 3. Nobody refused, nobody waits. 4. All hold the newest versions."""
    world = start(make_world, example)
    assert 200 == world.ask_envoy("GET", "http://user-service/").status
    for name in ("user-service", "checkout", "checkout.example.com"):
        assert 200 == world.ask_meshlib("GET", f"http://{name}/").status
    for call in (world.call_envoy, world.call_meshlib, world.call_grpcio):
        assert version_of(call("my-service", METHOD)) in ("v1", "v2")
    world.check_accepted()
    for node in (ENVOY, GRPCIO, MESHLIB):
        for kind, state in world.server.client(node)["types"].items():
            assert state["sent_version"] == state["acked_version"], (node, kind)
            assert state["sent_version"], (node, kind)


def test_header_rule_of_the_example_leads_http_to_one_version(make_world, example):
    world = start(make_world, example)
    for ask in (world.ask_envoy, world.ask_meshlib):
        answers = [ask("GET", "http://user-service/me", [("canary", "true")]) for _ in range(20)]
        assert {(200, "v2")} == {(answer.status, answer.version) for answer in answers}


def test_header_rule_of_the_example_leads_grpc_to_one_version(make_world, example):
    world = make_world(example)
    for version in ("v1", "v2"):
        world.grpc("user-service", version)
    world.start()
    for call in (world.call_envoy, world.call_grpcio, world.call_meshlib):
        answers = {version_of(call("user-service", METHOD, [("canary", "true")])) for _ in range(20)}
        assert {"v2"} == answers
    world.check_accepted()


def test_upstreams_get_the_authority_that_the_caller_wrote(make_world, example):
    world = start(make_world, example)
    for ask in (world.ask_envoy, world.ask_meshlib):
        seen = ask("GET", "http://user-service.default.svc.cluster.local/a?b=c").seen
        assert ("user-service.default.svc.cluster.local", "/a?b=c") == (seen.authority, seen.path)


def test_service_that_nobody_has_registered_is_answered_503_by_both(make_world, example):
    world = make_world(example)
    world.grpc("my-service", "v1")
    world.grpc("my-service", "v2")
    world.start()
    answers = [ask("GET", "http://user-service/") for ask in (world.ask_envoy, world.ask_meshlib)]
    assert [503, 503] == [answer.status for answer in answers]
    assert "UH" == answers[1].flag
    assert "OK" == world.call_grpcio("my-service", METHOD)[0]
    world.check_accepted()


def test_configuration_of_all_profiles_is_free_of_findings_that_stop_it(make_world, example):
    world = start(make_world, example)
    assert [] == [one for one in world.server.findings() if one["severity"] == "error"]
    assert world.server.status()["refused"] is False, json.dumps(world.server.findings())
