"""Retries, timeouts and refused connections: Envoy and meshlib make as many attempts, and end with the same status."""

from dataclasses import dataclass

import grpc
import pytest
from peers.upstreams import Step, refusing_port
from peers.world import World

POLICIES = {
    "default": "",
    "none": "retries: {attempts: 0}",
    "5xx": "retries: {attempts: 3, retryOn: 5xx}",
    "gateway-error": "retries: {attempts: 3, retryOn: gateway-error}",
    "codes": 'retries: {attempts: 2, retryOn: "429,503"}',
    "4xx": "retries: {attempts: 2, retryOn: retriable-4xx}",
    "reset": "retries: {attempts: 2, retryOn: reset}",
    "connect": "retries: {attempts: 2, retryOn: connect-failure}",
    "timeout": "timeout: 0.8s",
    # The third attempt begins after 1.4 to 1.5 s (two back-offs), and a fourth one would after 2.1 s.
    "timeout-over-retries": "timeout: 1.8s\n    retries: {attempts: 10, perTryTimeout: 0.7s, retryOn: 5xx}",
    "per-try": "retries: {attempts: 2, perTryTimeout: 0.8s, retryOn: 5xx}",
}


def rule(name: str, policy: str) -> str:
    return f"""\
  - match: [{{uri: {{exact: /{name}}}}}]
    route: [{{destination: {{host: flaky}}}}]
    {policy}"""


VIRTUAL_SERVICE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: flaky}
spec:
  hosts: [flaky]
  http:
""" + "\n".join(rule(*entry) for entry in POLICIES.items())

OK, SLOW, RESET = Step(), Step(delay_s=6.0), Step(is_reset=True)


def fails(status: int, times: int) -> list[Step]:
    return [Step(status)] * times


@dataclass(frozen=True)
class Case:
    """What the upstream does, and what has to come of it.

    Attributes:
        script: Its first answers; then it answers 200.
    """

    policy: str
    script: list[Step]
    attempts: int
    status: int
    method: str = "GET"


CASES = {
    "a 503 is no failure by default": Case("default", fails(503, 1), 1, 503),
    "no retries": Case("none", fails(503, 1), 1, 503),
    "one failure": Case("5xx", fails(503, 1), 2, 200),
    "as many failures as retries": Case("5xx", fails(500, 3), 4, 200),
    "more failures than retries": Case("5xx", fails(500, 9), 4, 500),
    "the last failure counts": Case("5xx", [Step(500), Step(502), Step(503), Step(504)], 4, 504),
    "PUT": Case("5xx", fails(503, 1), 2, 200, "PUT"),
    "DELETE": Case("5xx", fails(503, 1), 2, 200, "DELETE"),
    "5xx is not 4xx": Case("5xx", fails(429, 1), 1, 429),
    "gateway error": Case("gateway-error", fails(502, 1), 2, 200),
    "500 is no gateway error": Case("gateway-error", fails(500, 1), 1, 500),
    "a listed code": Case("codes", fails(429, 2), 3, 200),
    "a code that is not listed": Case("codes", fails(500, 1), 1, 500),
    "conflict is retriable": Case("4xx", fails(409, 1), 2, 200),
    "not found is not": Case("4xx", fails(404, 1), 1, 404),
    "reset": Case("reset", [RESET], 2, 200),
    "reset too often": Case("reset", [RESET] * 5, 3, 503),
    "reset is no connect failure": Case("connect", [RESET], 1, 503),
    "reset counts as 5xx": Case("5xx", [RESET, RESET], 3, 200),
    "timeout": Case("timeout", [SLOW], 1, 504),
    "in time": Case("timeout", [Step(delay_s=0.05)], 1, 200),
    "timeout of an attempt": Case("per-try", [SLOW], 2, 200),
    "timeout of every attempt": Case("per-try", [SLOW] * 3, 3, 504),
    "timeout over all attempts": Case("timeout-over-retries", [SLOW] * 9, 3, 504),
}


GRPC_RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http: [{route: [{destination: {host: echo}}], retries: {attempts: 2, retryOn: "unavailable,resource-exhausted"}}]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("resilience"), {"flaky.yaml": VIRTUAL_SERVICE}) as world:
        world.upstream = world.http("flaky", "v1")
        world.start_envoy()
        world.start_mesh()
        world.envoy.wait_ready()
        yield world


def attempts_of(world: World, ask, case: Case) -> tuple[int, int]:
    """Play a case; returns attempts seen by the upstream, and the status."""
    upstream = world.upstream
    upstream.seen.clear()
    upstream.script.clear()
    upstream.script.extend(case.script)
    answer = ask(case.method, f"http://flaky/{case.policy}")
    return len(upstream.seen), answer.status


@pytest.mark.parametrize("name", CASES)
def test_attempts_and_status_are_the_same(world, name):
    case = CASES[name]
    expected = (case.attempts, case.status)
    assert expected == attempts_of(world, world.ask_envoy, case)
    assert expected == attempts_of(world, world.ask_meshlib, case)


def test_post_that_may_have_been_processed_is_repeated_by_envoy_and_not_by_meshlib(world):
    """See DIFFERENCES.md; without its guard meshlib does as Envoy."""
    case = Case("5xx", fails(503, 1), 0, 0, "POST")
    assert (2, 200) == attempts_of(world, world.ask_envoy, case)
    assert (1, 503) == attempts_of(world, world.ask_meshlib, case)
    world.mesh.guard_unsafe = False
    try:
        assert (2, 200) == attempts_of(world, world.ask_meshlib, case)
    finally:
        world.mesh.guard_unsafe = True


def test_both_turn_from_an_instance_that_refuses_connections_to_the_next(make_world):
    world = make_world({"flaky.yaml": VIRTUAL_SERVICE})
    upstream = world.http("flaky", "v1")
    with refusing_port() as port:
        world.register("flaky", "v0", port)
        world.start_envoy()
        world.start_mesh()
        world.envoy.wait_ready()
        for ask in (world.ask_envoy, world.ask_meshlib):
            for method in ("GET", "POST"):  # nothing was sent, so a POST is safe as well
                answers = [ask(method, "http://flaky/connect") for _ in range(10)]
                assert {(200, "v1")} == {(answer.status, answer.version) for answer in answers}
    assert 40 == len(upstream.seen)


def test_both_try_as_often_when_every_connection_is_refused(make_world):
    world = make_world({"flaky.yaml": VIRTUAL_SERVICE})
    with refusing_port() as port:
        world.register("flaky", "v0", port)
        world.start_envoy()
        world.start_mesh()
        world.envoy.wait_ready()
        answer = world.ask_envoy("GET", "http://flaky/connect")
        assert 503 == answer.status
        retries = world.envoy.stats("outbound.*flaky.*upstream_rq_retry$")
        assert [2] == list(retries.values())
        attempts = []
        world.mesh.add_hook(lambda event: attempts.append(event) if type(event).__name__ == "AttemptFinished" else None)
        answer = world.ask_meshlib("GET", "http://flaky/connect")
        assert (503, 3) == (answer.status, len(attempts))
        assert "UF" in answer.flag


@pytest.mark.parametrize(
    ("script", "attempts", "code"),
    [
        (["UNAVAILABLE"], 2, "OK"),
        (["UNAVAILABLE", "RESOURCE_EXHAUSTED"], 3, "OK"),
        (["UNAVAILABLE"] * 3, 3, "UNAVAILABLE"),
        (["INTERNAL"], 1, "INTERNAL"),
    ],
    ids=["one failure", "two failures", "more than retries", "a status that is not listed"],
)
def test_grpc_attempts_and_code_are_the_same_at_all_three(grpc_world, script, attempts, code):
    world, upstream = grpc_world
    for call in (world.call_envoy, world.call_grpcio, world.call_meshlib):
        upstream.seen.clear()
        upstream.script.extend(grpc.StatusCode[name] for name in script)
        assert (code, attempts) == (call("echo", "/test.Echo/Call")[0], len(upstream.seen))


@pytest.fixture(scope="module")
def grpc_world(tmp_path_factory):
    with World(tmp_path_factory.mktemp("resilience-grpc"), {"echo.yaml": GRPC_RULE}) as world:
        upstream = world.grpc("echo", "v1")
        world.start()
        yield world, upstream
