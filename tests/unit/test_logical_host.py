"""A LOGICAL_DNS host with several addresses is one place to go to."""

from meshlib.model.cluster import Cluster, DnsDiscovery, RingHash
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.outcome import Failure, FailureKind
from meshlib.model.snapshot import ClusterConfig
from meshlib.testing import FixedRng
from meshlib.view import ClusterState

LOW = FixedRng(0.0)
FAILED = Failure(FailureKind.CONNECT, "refused")


def config(*addresses: str) -> ClusterConfig:
    first, *others = [Endpoint(f"{address}:1", hostname="h") for address in addresses]
    assignment = ClusterLoadAssignment("c", (LocalityEndpoints(Locality("r"), (first,), 1),))
    cluster = Cluster("c", DnsDiscovery(assignment, logical=True), RingHash())
    return ClusterConfig(cluster, assignment, spares=tuple(others))


def picks(state: ClusterState, count: int = 3) -> set[str]:
    return {state.picker.pick(number, LOW).address for number in range(count)}


def fail(state: ClusterState, address: str, now: float) -> None:
    assert state.learner is not None
    state.learner.finished(state.states[address], FAILED, 0.1, now, is_grpc=False)


def test_the_first_address_takes_every_call_until_it_cannot_be_reached() -> None:
    state = ClusterState(config("a", "b", "d"), 0.0)
    assert {"a:1"} == picks(state)
    fail(state, "a:1", 1.0)
    assert {"b:1"} == picks(state)
    assert state.learner is not None
    assert state.learner.moves_on(state.states, [state.states["a:1"]], FAILED, 1.0)


def test_the_address_in_use_stays_over_updates_as_long_as_it_is_there() -> None:
    state = ClusterState(config("a", "b"), 0.0)
    fail(state, "a:1", 1.0)
    assert {"b:1"} == picks(state)
    state.update(config("a", "b", "d"), 1.2)
    assert {"b:1"} == picks(state)
    state.update(config("a", "d"), 1.4)
    assert {"d:1"} == picks(state)


def test_a_host_with_one_address_needs_no_policy_of_its_own() -> None:
    state = ClusterState(config("a"), 0.0)
    assert RingHash() == state.config.cluster.lb_policy
    assert {"a:1"} == picks(state)
