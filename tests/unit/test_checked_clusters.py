"""Clusters with active health checks: what results change, and what survives updates."""

from dataclasses import replace

import pytest

from meshlib.admin.status import cluster_status
from meshlib.model.cluster import Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.health import CheckTarget, HealthCheck, TcpProbe
from meshlib.model.outcome import Response
from meshlib.model.snapshot import ClusterConfig
from meshlib.resilience.health_check import CheckFailure, CheckResult
from meshlib.testing import SeededRng, service
from meshlib.view import ClusterState, TargetView, build_view

RNG = SeededRng(1)
CHECK = HealthCheck(TcpProbe(), timeout_s=1.0, interval_s=5.0, unhealthy_threshold=2, healthy_threshold=2)
TEMPLATE = Cluster("c", EdsDiscovery("c"), health_check=CHECK, panic_threshold_percent=0.0)
GOOD = CheckResult()
BAD = CheckResult(CheckFailure.ACTIVE, reason="status 503")


def config(*endpoints: str | Endpoint, template: Cluster = TEMPLATE) -> ClusterConfig:
    made = tuple(Endpoint(one) if isinstance(one, str) else one for one in endpoints)
    groups = (LocalityEndpoints(Locality("r"), made, weight=1),)
    return ClusterConfig(template, ClusterLoadAssignment("c", groups))


def ended(cluster: ClusterState, address: str, *results: CheckResult, now: float = 1.0) -> None:
    for result in results:
        assert cluster.check_ended(cluster.states[address], result, now, RNG) is not None


def picks(cluster: ClusterState, count: int = 30) -> set[str]:
    found = (cluster.picker.pick(None, RNG) for _ in range(count))
    return {"nobody" if state is None else state.address for state in found}


def test_nobody_is_chosen_before_its_first_check() -> None:
    cluster = ClusterState(config("h:1", "h:2"), 0.0)
    assert {"nobody"} == picks(cluster)
    ended(cluster, "h:1", GOOD)
    assert {"h:1"} == picks(cluster)
    ended(cluster, "h:2", GOOD)
    assert {"h:1", "h:2"} == picks(cluster)
    ended(cluster, "h:1", BAD)
    assert {"h:2"} == picks(cluster)


def test_status_says_how_checks_go() -> None:
    cluster = ClusterState(config("h:1", "h:2", Endpoint("h:3", check=CheckTarget(is_off=True))), 0.0)
    ended(cluster, "h:1", GOOD, now=1.0)
    ended(cluster, "h:1", GOOD, now=2.0)
    cluster.memory.now = 4.0
    first, second, third = cluster_status("c", cluster).endpoints
    assert first.check is not None and second.check is not None
    assert ("passing", "", 2, 2.0) == (
        first.check.state,
        first.check.failure,
        first.check.consecutive,
        first.check.age_s,
    )
    assert first.check.due_s is not None and first.check.due_s > 0
    assert ("waiting", None, None) == (second.check.state, second.check.age_s, third.check)
    ended(cluster, "h:1", BAD, now=5.0)
    cluster.memory.now = 5.5
    check = cluster_status("c", cluster).endpoints[0].check
    assert check is not None
    assert ("failing", "ACTIVE", "status 503", 1, 0.5) == (
        check.state, check.failure, check.reason, check.consecutive, check.age_s,
    )  # fmt: skip
    assert "checks failing: status 503, 0.5 s ago, next in " in str(check)
    assert "not checked yet" == str(second.check)
    cluster.update(config("h:2"), 6.0)
    assert cluster.checks is not None
    assert cluster.checks.facts("h:1") is None


def test_health_of_discovery_and_of_checks_must_both_be_good() -> None:
    cluster = ClusterState(config(Endpoint("h:1", health=HealthStatus.UNHEALTHY), "h:2"), 0.0)
    ended(cluster, "h:1", GOOD)
    ended(cluster, "h:2", GOOD)
    assert {"h:2"} == picks(cluster)


def test_degraded_by_check_is_used_when_the_others_do_not_suffice() -> None:
    cluster = ClusterState(config("h:1", "h:2", "h:3"), 0.0)
    ended(cluster, "h:1", CheckResult(is_degraded=True))
    ended(cluster, "h:2", GOOD)
    ended(cluster, "h:3", GOOD)
    assert HealthStatus.DEGRADED is cluster.states["h:1"].status
    assert "h:1" in picks(cluster, 200), "2 of 3 healthy at 140 % carry 93 % of the load"
    ended(cluster, "h:1", GOOD)
    assert HealthStatus.UNKNOWN is cluster.states["h:1"].status


def test_an_endpoint_whose_checks_are_off_is_used_at_once() -> None:
    cluster = ClusterState(config(Endpoint("h:1", check=CheckTarget(is_off=True)), "h:2"), 0.0)
    assert {"h:1"} == picks(cluster)
    assert cluster.check_ended(cluster.states["h:1"], BAD, 1.0, RNG) is None
    assert {"h:1"} == picks(cluster)


def test_results_survive_updates_and_new_endpoints_begin_out() -> None:
    cluster = ClusterState(config("h:1"), 0.0)
    ended(cluster, "h:1", GOOD)
    cluster.update(config("h:1", "h:2"), 1.0)
    assert {"h:1"} == picks(cluster)


@pytest.mark.parametrize("counts", [True, False])
def test_new_endpoints_count_against_the_priority_unless_they_wait(counts: bool) -> None:
    template = replace(TEMPLATE, counts_new_hosts=counts, panic_threshold_percent=50.0)
    cluster = ClusterState(config("h:1", template=template), 0.0)
    ended(cluster, "h:1", GOOD)
    cluster.update(config("h:1", *(f"h:{number}" for number in range(2, 9)), template=template), 1.0)
    # 1 of 8 is panic; 1 of 1 is not.
    assert (picks(cluster, 100) == {"h:1"}) is not counts


def test_an_endpoint_that_discovery_drops_stays_while_it_passes() -> None:
    cluster = ClusterState(config("h:1", "h:2"), 0.0)
    ended(cluster, "h:1", GOOD)
    ended(cluster, "h:2", GOOD)
    cluster.update(config("h:1"), 1.0)
    assert {"h:1", "h:2"} == picks(cluster)
    cluster.update(config("h:1", "h:3"), 1.5)
    assert {"h:1", "h:2", "h:3"} == set(cluster.states)

    ended(cluster, "h:2", BAD)
    assert {"h:1", "h:3"} == set(cluster.states), "it goes with the check that it fails"
    assert {"h:1"} == picks(cluster)


def test_a_kept_endpoint_goes_when_its_answer_asks_for_it_or_it_was_draining() -> None:
    cluster = ClusterState(config("h:1", Endpoint("h:2", health=HealthStatus.DRAINING)), 0.0)
    ended(cluster, "h:1", GOOD)
    ended(cluster, "h:2", GOOD)
    cluster.update(config("h:1"), 1.0)
    assert {"h:1", "h:2"} == set(cluster.states), "draining is no reason to go"
    cluster.fail_at_once(cluster.states["h:2"])
    assert {"h:1"} == set(cluster.states)


def test_one_that_discovery_drops_goes_at_once_when_it_is_out_or_checks_do_not_count() -> None:
    cluster = ClusterState(config("h:1", "h:2"), 0.0)
    ended(cluster, "h:1", GOOD)
    cluster.update(config("h:1"), 1.0)
    assert {"h:1"} == set(cluster.states)

    template = replace(TEMPLATE, keeps_passing_hosts=False)
    other = ClusterState(config("h:1", "h:2", template=template), 0.0)
    ended(other, "h:2", GOOD)
    other.update(config("h:1", template=template), 1.0)
    assert {"h:1"} == set(other.states)


def test_an_endpoint_that_comes_back_is_the_resource_s_again() -> None:
    cluster = ClusterState(config("h:1", "h:2"), 0.0)
    ended(cluster, "h:2", GOOD)
    cluster.update(config("h:1"), 1.0)
    cluster.update(config("h:1", "h:2"), 2.0)
    ended(cluster, "h:2", BAD)
    assert {"h:1", "h:2"} == set(cluster.states)


def test_checks_that_are_new_for_a_running_cluster_take_nobody_out_before_they_have_run() -> None:
    plain = replace(TEMPLATE, health_check=None)
    cluster = ClusterState(config("h:1", "h:2", template=plain), 0.0)
    cluster.update(config("h:1", "h:2"), 1.0)
    assert {"h:1", "h:2"} == picks(cluster)
    ended(cluster, "h:1", BAD)
    assert {"h:2"} == picks(cluster)
    cluster.update(config("h:1", "h:2", template=plain), 2.0)
    assert {"h:1", "h:2"} == picks(cluster)
    assert cluster.checks is None


def test_a_result_of_an_endpoint_that_is_gone_means_nothing() -> None:
    cluster = ClusterState(config("h:1", "h:2"), 0.0)
    gone = cluster.states["h:2"]
    cluster.update(config("h:1"), 1.0)
    assert cluster.check_ended(gone, GOOD, 2.0, RNG) is None


@pytest.mark.parametrize("unejects", [True, False])
def test_a_passing_check_brings_an_ejected_endpoint_back(unejects: bool) -> None:
    outlier = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100, check_unejects=unejects)
    cluster = ClusterState(config("h:1", "h:2", template=replace(TEMPLATE, outlier_detection=outlier)), 0.0)
    ended(cluster, "h:1", GOOD)
    ended(cluster, "h:2", GOOD)
    assert cluster.record(cluster.states["h:1"], Response(500), 1.0, RNG) is not None
    assert {"h:2"} == picks(cluster)
    ended(cluster, "h:1", GOOD)
    assert ("h:1" in picks(cluster)) is unejects
    assert cluster.outlier is not None
    assert (0 if unejects else 1) == cluster.outlier.ejections_active


def test_an_answer_can_take_its_endpoint_out() -> None:
    cluster = ClusterState(config("h:1", "h:2"), 0.0)
    ended(cluster, "h:1", GOOD)
    ended(cluster, "h:2", GOOD)
    cluster.fail_at_once(cluster.states["h:2"])
    assert {"h:1"} == picks(cluster)
    assert cluster.states["h:2"].is_excluded


def test_without_checks_an_answer_cannot_take_its_endpoint_out() -> None:
    cluster = ClusterState(config("h:1", template=replace(TEMPLATE, health_check=None)), 0.0)
    cluster.fail_at_once(cluster.states["h:1"])
    assert {"h:1"} == picks(cluster)


def test_slow_start_begins_when_a_check_passes() -> None:
    cluster = ClusterState(config("h:1"), 0.0)
    assert cluster.states["h:1"].healthy_since is None
    ended(cluster, "h:1", GOOD, now=5.0)
    assert 5.0 == cluster.states["h:1"].healthy_since
    ended(cluster, "h:1", BAD, GOOD, GOOD, now=9.0)
    assert 9.0 == cluster.states["h:1"].healthy_since


def test_slow_start_begins_with_checks_and_nothing_else() -> None:
    outlier = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100, check_unejects=False)
    cluster = ClusterState(config("h:1", template=replace(TEMPLATE, outlier_detection=outlier)), 0.0)
    ended(cluster, "h:1", CheckResult(is_degraded=True), now=5.0)
    ended(cluster, "h:1", GOOD, now=6.0)
    assert 5.0 == cluster.states["h:1"].healthy_since, "it has not failed: to be preferred again is no new beginning"
    cluster.record(cluster.states["h:1"], Response(500), 7.0, RNG)
    ended(cluster, "h:1", BAD, GOOD, GOOD, now=9.0)
    assert cluster.states["h:1"].is_ejected
    cluster.sweep(100.0, RNG)
    assert (False, 9.0) == (cluster.states["h:1"].is_ejected, cluster.states["h:1"].healthy_since)


def moved(cluster: ClusterState, endpoint: Endpoint, *, zone: str = "r") -> None:
    groups = (LocalityEndpoints(Locality(zone), (endpoint,), weight=1),)
    cluster.update(ClusterConfig(cluster.config.cluster, ClusterLoadAssignment("c", groups)), 5.0)


@pytest.mark.parametrize("change", ["zone", "name"])
@pytest.mark.parametrize("result", [GOOD, BAD])
def test_an_endpoint_that_moves_or_is_renamed_begins_anew_but_for_its_checks(change: str, result: CheckResult) -> None:
    outlier = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100, check_unejects=False)
    cluster = ClusterState(config("h:1", template=replace(TEMPLATE, outlier_detection=outlier)), 0.0)
    ended(cluster, "h:1", result)
    before = cluster.states["h:1"]
    cluster.record(before, Response(500), 1.0, RNG)
    assert before.is_ejected
    moved(cluster, Endpoint("h:1", hostname="b" if change == "name" else ""), zone="z" if change == "zone" else "r")
    after = cluster.states["h:1"]
    assert after is not before
    assert (False, result is BAD) == (after.is_ejected, after.is_failed)
    assert cluster.outlier is not None and 0 == cluster.outlier.ejections_active
    ended(cluster, "h:1", GOOD)
    assert not after.is_failed, "its next result is a first one, which decides alone"


def test_what_only_describes_an_ejected_endpoint_leaves_it_out() -> None:
    outlier = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
    template = replace(TEMPLATE, outlier_detection=outlier, health_check=None)
    cluster = ClusterState(config("h:1", template=template), 0.0)
    cluster.record(cluster.states["h:1"], Response(500), 1.0, RNG)
    moved(cluster, Endpoint("h:1", weight=7, health=HealthStatus.DEGRADED, metadata={"a": {"b": 1}}))
    assert cluster.states["h:1"].is_ejected


def test_an_endpoint_that_is_checked_elsewhere_is_out_until_it_has_been() -> None:
    cluster = ClusterState(config("h:1"), 0.0)
    ended(cluster, "h:1", GOOD)
    moved(cluster, Endpoint("h:1", check=CheckTarget(port=9)))
    assert cluster.states["h:1"].is_failed
    moved(cluster, Endpoint("h:1", check=CheckTarget(is_off=True)))
    assert not cluster.states["h:1"].is_failed
    moved(cluster, Endpoint("h:1"))
    assert cluster.states["h:1"].is_failed


def test_a_first_check_does_not_take_back_that_an_endpoint_asked_not_to_be_counted() -> None:
    cluster = ClusterState(config("h:1", template=replace(TEMPLATE, counts_new_hosts=False)), 0.0)
    cluster.fail_at_once(cluster.states["h:1"])
    ended(cluster, "h:1", BAD)
    assert cluster.states["h:1"].is_excluded
    ended(cluster, "h:1", GOOD, GOOD)
    assert not cluster.states["h:1"].is_excluded


def test_a_new_target_is_ready_when_all_its_endpoints_have_been_checked() -> None:
    view = build_view(service("a", "h:1", "h:2", template=TEMPLATE), None, now=0.0)
    target, cluster = view.targets["a"], view.clusters["a"]
    assert isinstance(target, TargetView)
    assert isinstance(cluster, ClusterState)
    assert target.is_warming
    ended(cluster, "h:1", BAD)
    assert target.is_warming
    ended(cluster, "h:2", BAD)
    assert not target.is_warming
    assert not target.warming, "and is not asked again"


def test_a_target_in_use_does_not_wait_for_new_endpoints() -> None:
    view = build_view(service("a", "h:1", template=TEMPLATE), None, now=0.0)
    cluster = view.clusters["a"]
    assert isinstance(cluster, ClusterState)
    ended(cluster, "h:1", GOOD)
    later = build_view(replace(service("a", "h:1", "h:2", template=TEMPLATE), number=2), view, now=1.0)
    target = later.targets["a"]
    assert isinstance(target, TargetView)
    assert not target.is_warming


@pytest.mark.parametrize(("fails", "expected"), [(False, {"h:1", "h:2", "h:3"}), (True, {"nobody"})])
def test_a_priority_in_panic_uses_all_its_hosts_or_none(fails: bool, expected: set[str]) -> None:
    template = replace(TEMPLATE, health_check=None, panic_threshold_percent=50.0, fails_on_panic=fails)
    out = [Endpoint(f"h:{number}", health=HealthStatus.UNHEALTHY) for number in (1, 2)]
    assert expected == picks(ClusterState(config(*out, "h:3", template=template), 0.0), 100)
