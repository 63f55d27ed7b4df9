"""Laws of subsets and of health checks: whatever the metadata and the order of events."""

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meshlib.balancing import EndpointState, build_picker
from meshlib.model.cluster import Cluster, EdsDiscovery, LeastRequest, RoundRobin
from meshlib.model.cluster import Random as AtRandom
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.health import HealthCheck, TcpProbe
from meshlib.model.snapshot import ClusterConfig
from meshlib.model.subset import MatchCriteria, SubsetConfig, SubsetFallback, SubsetSelector
from meshlib.resilience.health_check import CheckFailure, CheckResult, EndpointCheck
from meshlib.testing import FixedRng

KEYS = ("a", "b", "c")
VALUES = st.sampled_from(("x", "y", 1.0, True))
METADATA = st.dictionaries(st.sampled_from(KEYS), VALUES)
SELECTORS = st.lists(st.sets(st.sampled_from(KEYS), min_size=1), min_size=1, max_size=4)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


@given(
    st.lists(st.tuples(METADATA, st.sampled_from(HealthStatus), st.integers(0, 2)), min_size=1, max_size=12),
    SELECTORS,
    METADATA,
    st.sampled_from((SubsetFallback.NO_FALLBACK, SubsetFallback.ANY_ENDPOINT)),
    st.sampled_from((RoundRobin(), AtRandom(), LeastRequest())),
    st.integers(0, 2**32),
)
def test_a_request_with_a_subset_never_leaves_it(
    hosts: list[tuple[dict[str, Any], HealthStatus, int]],
    selectors: list[set[str]],
    criteria: dict[str, Any],
    fallback: SubsetFallback,
    policy: RoundRobin | AtRandom | LeastRequest,
    seed: int,
) -> None:
    endpoints = [
        (priority, Endpoint(f"h:{number}", health=health, metadata={"envoy.lb": metadata}))
        for number, (metadata, health, priority) in enumerate(hosts)
    ]
    groups = tuple(
        LocalityEndpoints(Locality(str(number)), (endpoint,), 1, priority)
        for number, (priority, endpoint) in enumerate(endpoints)
    )
    config = SubsetConfig(tuple(SubsetSelector(tuple(sorted(keys))) for keys in selectors), fallback)
    cluster = replace(Cluster("c", EdsDiscovery("c")), lb_policy=policy, subsets=config)
    states = {endpoint.address: EndpointState(endpoint) for _, endpoint in endpoints}
    picker = build_picker(ClusterConfig(cluster, ClusterLoadAssignment("c", groups)), states)
    inner = picker.within(MatchCriteria.of(criteria))
    picked = {state for _ in range(20) if (state := inner.pick(None, Random(seed))) is not None}

    def matches(metadata: dict[str, Any]) -> bool:
        return all(key in metadata and _same(metadata[key], value) for key, value in criteria.items())

    fitting = {f"h:{number}" for number, (metadata, _, _) in enumerate(hosts) if matches(metadata)}
    has_subset = set(criteria) in selectors and bool(fitting)
    if has_subset:
        assert {state.address for state in picked} <= fitting
    elif fallback is SubsetFallback.NO_FALLBACK:
        assert not picked


RESULTS = st.builds(
    CheckResult,
    st.sampled_from((None, None, *CheckFailure)),
    is_retriable=st.booleans(),
    is_degraded=st.booleans(),
    is_immediate=st.booleans(),
)


@given(st.lists(RESULTS, min_size=1), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_thresholds_hold_for_any_order_of_results(
    results: list[CheckResult], unhealthy: int, healthy: int, has_traffic: bool
) -> None:
    config = HealthCheck(
        TcpProbe(), timeout_s=1.0, interval_s=1.0, unhealthy_threshold=unhealthy, healthy_threshold=healthy
    )
    check = EndpointCheck()
    passed = soft = 0
    for number, result in enumerate(results):
        was_failed = check.is_failed
        turn = check.ended(result, config, FixedRng(0.0), has_traffic=has_traffic)
        is_soft = result.failure in (CheckFailure.NETWORK, CheckFailure.NETWORK_TIMEOUT) or result.is_retriable
        passed = passed + 1 if result.failure is None else 0
        soft = soft + 1 if result.failure is not None else 0
        assert turn.wait_s > 0
        if was_failed and not check.is_failed:
            assert number == 0 or passed >= healthy
        if not was_failed and check.is_failed:
            assert not is_soft or soft >= unhealthy
        if result.failure is not None and not is_soft:
            assert check.is_failed, "who says that it is not well is believed"
        assert ("add_healthy" in turn.events) is (was_failed and not check.is_failed)
        assert ("eject_unhealthy" in turn.events) is (not was_failed and check.is_failed)
