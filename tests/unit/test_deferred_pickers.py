"""The picker of a cluster that nobody calls is made when somebody does."""

import random
from dataclasses import replace

import pytest

from meshlib.balancing.round_robin import RoundRobinPicker
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import Endpoint, HealthStatus
from meshlib.model.lb_policy import LbPolicy, LeastRequest, Maglev, PickFirst, Random, RingHash, RoundRobin, SlowStart
from meshlib.model.subset import SubsetConfig
from meshlib.testing.builders import cluster
from meshlib.view import ClusterState
from meshlib.view import cluster_state as module
from meshlib.view.deferred import MOST_HOSTS, DeferredPicker

RNG = random.Random(1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Pickers that were made for clusters."""
    found: list[object] = []
    build = module.build_picker

    def counted(*args: object, **kwargs: object) -> object:
        picker = build(*args, **kwargs)  # type: ignore[arg-type]
        found.append(picker)
        return picker

    monkeypatch.setattr(module, "build_picker", counted)
    return found


def state_of(*hosts: str, policy: LbPolicy | None = None) -> ClusterState:
    return ClusterState(config(*hosts, policy=policy), 0.0)


def config(*hosts: str, policy: LbPolicy | None = None, template: Cluster | None = None):
    options = template or Cluster("", EdsDiscovery(""))
    return cluster("a", *hosts, template=options if policy is None else replace(options, lb_policy=policy))


def call(state: ClusterState) -> str:
    chosen = state.picker.pick(None, RNG)
    assert chosen is not None
    assert state.acquire(state.breaker, chosen)
    state.release(state.breaker, chosen)
    return chosen.address


def test_the_first_picker_is_there_at_once(made: list[object]) -> None:
    assert [state_of("h:1").picker] == made


def test_updates_that_nobody_calls_in_between_make_none(made: list[object]) -> None:
    state = state_of("h:1")
    for port in range(2, 10):
        state.update(config(f"h:{port}"), 1.0)
        assert isinstance(state.picker, DeferredPicker)
    assert 1 == len(made)
    assert {"h:9"} == {call(state) for _ in range(3)}
    assert 2 == len(made)
    assert made[-1] is state.picker  # no later call pays for it
    assert isinstance(state.picker, RoundRobinPicker)


def test_a_cluster_that_is_called_has_its_picker_made_by_the_update(made: list[object]) -> None:
    state = state_of("h:1")
    call(state)
    state.update(config("h:2"), 1.0)
    assert [state.picker] == made[1:]
    state.update(config("h:3"), 2.0)  # nobody called meanwhile
    assert isinstance(state.picker, DeferredPicker)


def test_who_holds_the_one_before_gets_what_is_newest_then_and_always_the_same(made: list[object]) -> None:
    state = state_of("h:1")
    state.update(config("h:2", "h:3"), 1.0)
    held = state.picker
    assert {"h:2", "h:3"} == {held.pick(None, RNG).address for _ in range(4)}  # type: ignore[union-attr]
    state.update(config("h:4"), 2.0)
    assert {"h:2", "h:3"} == {held.pick(None, RNG).address for _ in range(4)}  # type: ignore[union-attr]
    assert "h:4" == call(state)
    assert 3 == len(made)


def test_what_is_known_of_the_hosts_when_it_is_made_counts() -> None:
    state = state_of("h:1")
    state.update(config("h:1", "h:2"), 1.0)
    state.update(cluster("a", Endpoint("h:1", health=HealthStatus.UNHEALTHY), "h:2"), 2.0)
    assert {"h:2"} == {call(state) for _ in range(4)}
    state.update(cluster("a"), 3.0)
    assert state.picker.pick(None, RNG) is None


@pytest.mark.parametrize("policy", [RoundRobin(), LeastRequest(), Random()])
def test_policies_that_can_wait(policy: LbPolicy) -> None:
    state = state_of("h:1", policy=policy)
    state.update(config("h:2", policy=policy), 1.0)
    assert isinstance(state.picker, DeferredPicker)
    assert "h:2" == call(state)


@pytest.mark.parametrize(
    "policy", [RoundRobin(SlowStart(10.0)), LeastRequest(slow_start=SlowStart(10.0)), PickFirst(), RingHash(), Maglev()]
)
def test_policies_that_look_at_the_clock_or_take_long_do_not_wait(policy: LbPolicy) -> None:
    state = state_of("h:1", policy=policy)
    state.update(config("h:2", policy=policy), 1.0)
    assert not isinstance(state.picker, DeferredPicker)


def test_many_hosts_and_subsets_do_not_wait() -> None:
    state = state_of("h:1")
    state.update(config(*(f"h:{port}" for port in range(1, MOST_HOSTS + 1))), 1.0)
    assert isinstance(state.picker, DeferredPicker)
    state.update(config(*(f"h:{port}" for port in range(1, MOST_HOSTS + 2))), 2.0)
    assert not isinstance(state.picker, DeferredPicker)
    with_subsets = Cluster("", EdsDiscovery(""), subsets=SubsetConfig(()))
    state.update(config("h:1", template=with_subsets), 3.0)
    assert not isinstance(state.picker, DeferredPicker)
