"""What clusters learn of their endpoints from how attempts end, seen through whole calls."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from meshlib.admin.status import cluster_status
from meshlib.call import Attempt, Call, Done
from meshlib.model.cluster import Cluster, EdsDiscovery, LoadReports
from meshlib.model.custom_policy import LbEndpoint, LbPolicy, LbRequest, LbResult, register_lb_policy
from meshlib.model.endpoint import Endpoint, HealthStatus
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    CustomPolicy,
    PeakEwma,
    PickFirst,
    RandomSubsetting,
    RoundRobin,
    SlowStart,
)
from meshlib.model.lb_policy import LbPolicy as PolicyConfig
from meshlib.model.load_report import LoadReport
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.testing import FakeClock, FakeMesh, SeededRng, mesh_source, service
from meshlib.view import ClusterState, build_view

A, B = "a:1", "b:1"


def mesh_of(policy: PolicyConfig, *endpoints: str | Endpoint, reports: LoadReports | None = None) -> FakeMesh:
    template = Cluster("", EdsDiscovery(""), policy, load_reports=reports)
    return mesh_source(service("s", *endpoints or (A, B), template=template), clock=FakeClock(), rng=SeededRng())


def make(mesh: FakeMesh, *, is_grpc: bool = False) -> tuple[Call, Attempt]:
    """Begin a call."""
    head = RequestHead("POST" if is_grpc else "GET", "s", "/p.S/M", Headers(), is_grpc=is_grpc)
    call = Call(mesh.wait_target("s"), head, rng=mesh.rng, now=mesh.clock())
    step = call.start(mesh.clock())
    assert isinstance(step, Attempt)
    return call, step


def answered(headers: Sequence[tuple[str, str]] = (), status: int = 200) -> Response:
    return Response(status, Headers(headers))


def run(mesh: FakeMesh, outcome: Outcome, *, took_s: float = 0.0) -> str:
    """Make a whole call of one attempt; return where it went."""
    call, attempt = make(mesh)
    mesh.clock.advance(took_s)  # type: ignore[attr-defined]
    assert isinstance(call.finished(outcome, mesh.clock()), Done)
    call.close(mesh.clock())
    return attempt.endpoint.address


TEXT = "endpoint-load-metrics"
CLIENT_SIDE = ClientSideWeightedRoundRobin(blackout_s=0.0)


def report_to(mesh: FakeMesh, loads: Mapping[str, float]) -> None:
    """Have every endpoint report a load once, in the header of an answer."""
    for _ in loads:
        call, attempt = make(mesh)
        used = loads[attempt.endpoint.address]
        call.finished(answered([(TEXT, f"TEXT cpu_utilization:{used},rps_fractional:100")]), mesh.clock())
        call.close(mesh.clock())


def shares(mesh: FakeMesh, calls: int) -> Counter[str]:
    return Counter(run(mesh, answered()) for _ in range(calls))


def test_reports_in_headers_make_weights() -> None:
    mesh = mesh_of(CLIENT_SIDE)
    report_to(mesh, {A: 0.2, B: 0.8})
    mesh.clock.advance(1.0)  # type: ignore[attr-defined]

    assert shares(mesh, 1000)[A] == pytest.approx(800, abs=3)


def test_reports_in_trailers_make_weights() -> None:
    mesh = mesh_of(CLIENT_SIDE)
    for _ in range(2):
        call, attempt = make(mesh, is_grpc=True)
        assert call.wants_trailers
        used = {A: 0.2, B: 0.8}[attempt.endpoint.address]
        call.finished(Response(200, grpc_status=0), mesh.clock())
        call.trailers([(TEXT, f"TEXT cpu_utilization:{used},rps_fractional:100")], mesh.clock())
        call.close(mesh.clock(), grpc_status=0)
    mesh.clock.advance(1.0)  # type: ignore[attr-defined]

    assert shares(mesh, 1000)[A] == pytest.approx(800, abs=3)


def test_out_of_band_reports_make_weights_and_others_do_not() -> None:
    mesh = mesh_of(ClientSideWeightedRoundRobin(out_of_band=True, blackout_s=0.0))
    cluster = mesh.cluster("s")
    assert cluster.learner is not None
    assert mesh.view.reporting == ((cluster, 10.0),)
    report_to(mesh, {A: 0.2, B: 0.8})
    mesh.clock.advance(1.0)  # type: ignore[attr-defined]
    assert shares(mesh, 100) == {A: 50, B: 50}

    for address, used in {A: 0.2, B: 0.8}.items():
        report = LoadReport(cpu_utilization=used, qps=10.0)
        cluster.learner.out_of_band(cluster.states[address], report, mesh.clock())
    mesh.clock.advance(1.0)  # type: ignore[attr-defined]
    assert shares(mesh, 1000)[A] == pytest.approx(800, abs=3)


def test_clusters_without_such_a_policy_look_at_nothing() -> None:
    mesh = mesh_of(RoundRobin())

    assert mesh.cluster("s").learner is None
    assert mesh.view.reporting == ()
    call, _ = make(mesh)
    assert not call.wants_trailers
    call.close(0.0)


def test_named_metrics_go_into_load_reports() -> None:
    mesh = mesh_of(RoundRobin(), A, reports=LoadReports(("named_metrics.*", "cpu_utilization")))
    for queue in (2, 4):
        run(mesh, answered([(TEXT, f"TEXT cpu_utilization:0.5,mem_utilization:0.1,named_metrics.queue:{queue}")]))
    load = mesh.cluster("s").load
    assert load is not None

    (locality,) = load.take(1.0).localities

    assert {name: (found.count, found.total) for name, found in locality.metrics.items()} == {
        "named_metrics.queue": (2, 6.0),
        "cpu_utilization": (2, 1.0),
    }


def test_peak_ewma_leaves_a_slow_host_alone() -> None:
    mesh = mesh_of(PeakEwma())
    slow = run(mesh, answered(), took_s=2.0)

    assert slow not in {run(mesh, answered(), took_s=0.001) for _ in range(50)}


def test_peak_ewma_honours_retry_after() -> None:
    mesh = mesh_of(PeakEwma(decay_s=1.0))
    busy = run(mesh, answered([("retry-after", "30")], 429))
    seen = []
    for _ in range(29):
        mesh.clock.advance(1.0)  # type: ignore[attr-defined]
        seen.append(run(mesh, answered()))

    assert busy not in seen
    mesh.clock.advance(20.0)  # type: ignore[attr-defined]
    assert busy in {run(mesh, answered(), took_s=0.01) for _ in range(50)}


def test_pick_first_goes_to_the_next_when_one_cannot_be_reached() -> None:
    mesh = mesh_of(PickFirst(), A, B, "c:1")
    refused, reset = Failure(FailureKind.CONNECT, False), Failure(FailureKind.RESET, True)
    assert [run(mesh, answered()), run(mesh, reset), run(mesh, answered())] == [A, A, A]

    call, attempt = make(mesh)
    assert attempt.endpoint.address == A
    step = call.finished(refused, mesh.clock())
    assert isinstance(step, Attempt), "the same call goes on, without a retry policy"
    assert step.endpoint.address == B
    assert isinstance(call.finished(answered(), mesh.clock()), Done)
    call.close(mesh.clock())
    assert [run(mesh, answered()) for _ in range(3)] == [B, B, B]


def test_pick_first_fails_when_nobody_can_be_reached() -> None:
    mesh, refused = mesh_of(PickFirst()), Failure(FailureKind.CONNECT, False)
    call, _ = make(mesh)
    assert isinstance(call.finished(refused, mesh.clock()), Attempt)
    assert isinstance(call.finished(refused, mesh.clock()), Done)
    assert (call.attempts, call.flag) == (2, "UF")
    call.close(mesh.clock())
    assert mesh.cluster("s").breaker.active == 0

    # Both are left alone for a second; then the first of the list is tried again, and after it the other.
    mesh.clock.advance(2.0)  # type: ignore[attr-defined]
    call, attempt = make(mesh)
    step = call.finished(refused, mesh.clock())
    assert isinstance(step, Attempt)
    assert (attempt.endpoint.address, step.endpoint.address) == (A, B)
    assert isinstance(call.finished(answered(), mesh.clock()), Done)
    call.close(mesh.clock())


def test_explanations_say_what_the_policy_makes_of_an_endpoint() -> None:
    mesh = mesh_of(ClientSideWeightedRoundRobin(blackout_s=0.0, slow_start=SlowStart(10.0)))
    mesh.clock.advance(5.0)  # type: ignore[attr-defined]
    call, attempt = make(mesh)
    call.finished(answered([(TEXT, "TEXT cpu_utilization:0.2,rps_fractional:100")]), mesh.clock())
    call.close(mesh.clock())
    scores = {one.address: one.score for one in cluster_status("s", mesh.cluster("s")).endpoints}
    known = attempt.endpoint.address

    assert scores[known] == "weight 500 by its reports, slow start at 50 %"
    assert scores[B if known == A else A] == "not reported yet, slow start at 50 %"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (PeakEwma(), "cost 500 ms"),
        (PickFirst(), "chosen"),
        (RandomSubsetting(2, PickFirst()), "chosen"),
        (RoundRobin(), ""),
    ],
)
def test_scores_of_other_policies(policy: PolicyConfig, words: str) -> None:
    mesh = mesh_of(policy, A)
    run(mesh, answered(), took_s=0.5)

    assert [one.score for one in cluster_status("s", mesh.cluster("s")).endpoints] == [words]


def test_slow_start_begins_when_an_endpoint_is_first_healthy() -> None:
    template = Cluster("", EdsDiscovery(""), RoundRobin(SlowStart(60.0)))
    mesh = mesh_source(service("s", A, template=template), clock=FakeClock(), rng=SeededRng())
    mesh.clock.advance(100.0)  # type: ignore[attr-defined]
    sick = Endpoint(B, health=HealthStatus.UNHEALTHY)
    mesh.publish(service("s", A, sick, template=template))
    mesh.clock.advance(100.0)  # type: ignore[attr-defined]
    mesh.publish(service("s", A, B, template=template))

    assert mesh.cluster("s").states[B].healthy_since == mesh.clock()
    assert shares(mesh, 1100)[B] == pytest.approx(100, abs=3)
    mesh.clock.advance(60.0)  # type: ignore[attr-defined]
    assert shares(mesh, 100)[B] == 50


def test_clients_have_seeds_of_their_own_and_keep_them() -> None:
    endpoints = [f"h{number}:1" for number in range(50)]
    template = Cluster("", EdsDiscovery(""), RandomSubsetting(5, RoundRobin()))
    snapshot = service("s", *endpoints, template=template)
    first, second = (build_view(snapshot, None, now=0.0, rng=SeededRng(seed)) for seed in (1, 2))
    more = service("s", *endpoints, "h99:1", template=template)
    after = build_view(replace(more, number=2), first, now=1.0, rng=SeededRng(3))

    def used(view: Any) -> set[str]:
        state = view.clusters["s"]
        assert isinstance(state, ClusterState)
        return {found.address for _ in range(50) if (found := state.picker.pick(None, SeededRng())) is not None}

    ours = used(first)
    assert len(ours) == 5
    assert ours != used(second)
    assert len(ours & used(after)) >= 4


class Recorder(LbPolicy):
    """Takes the first, and keeps what it is told."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.results: list[tuple[str, LbResult]] = config["results"]

    def pick(self, endpoints: Sequence[LbEndpoint], request: LbRequest) -> LbEndpoint | None:
        return endpoints[0]

    def record(self, endpoint: LbEndpoint, result: LbResult) -> None:
        self.results.append((endpoint.address, result))


register_lb_policy("test.Recorder", replace=True)(Recorder)


def test_policies_of_the_application_are_told_how_attempts_went() -> None:
    results: list[tuple[str, LbResult]] = []
    mesh = mesh_of(CustomPolicy("test.Recorder", {"results": results}))
    run(mesh, answered([(TEXT, "TEXT eps:1")]), took_s=0.5)
    run(mesh, answered(status=503))
    run(mesh, Failure(FailureKind.RESET, True))
    call, _ = make(mesh, is_grpc=True)
    call.finished(Response(200, grpc_status=13), mesh.clock())
    call.close(mesh.clock())

    now = mesh.clock()
    assert results == [
        (A, LbResult(True, 200, 0.5, now, LoadReport(eps=1.0))),
        (A, LbResult(False, 503, 0.0, now)),
        (A, LbResult(False, 0, 0.0, now)),
        (A, LbResult(False, 200, 0.0, now)),
    ]
