"""What the laws of express calls share, gRPC's and HTTP's: clusters, calls under way, and that two worlds stay the same."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from hypothesis import event
from hypothesis import strategies as st

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery, LeastRequest, LoadReports, OutlierDetection
from meshlib.model.lb_policy import PeakEwma, PickFirst, Random, RingHash, RoundRobin
from meshlib.model.outcome import Outcome
from meshlib.testing.source import FakeMesh


def clusters_with(plain: int, **more: Any) -> st.SearchStrategy[Cluster]:
    """Return clusters with limits, outlier detection and load reports, or without.

    Args:
        plain: How many times as often as the others the policies are drawn that express calls go by.
        **more: Strategies of other fields.
    """
    return st.builds(
        Cluster,
        st.just(""),
        st.just(EdsDiscovery("")),
        # The last three have to know more, so that calls go the long way.
        st.sampled_from([LeastRequest(), RoundRobin(), Random()] * plain + [PickFirst(), PeakEwma(), RingHash()]),
        circuit_breakers=st.builds(
            CircuitBreakers, max_requests=st.sampled_from([4, 4, 2, 1, 0]), max_retries=st.integers(0, 2)
        ),
        high_priority_circuit_breakers=st.builds(CircuitBreakers, max_requests=st.integers(0, 4)),
        outlier_detection=st.none()
        | st.builds(
            OutlierDetection,
            consecutive_5xx=st.integers(1, 3),
            interval_s=st.just(1.0),
            max_ejection_percent=st.sampled_from([10, 60, 100]),
            split_external_local_origin_errors=st.booleans(),
        ),
        load_reports=st.sampled_from([None, LoadReports(())]),
        **more,
    )


class Ongoing:
    """A call under way: a `Call`, or what an express one has begun."""

    def __init__(self) -> None:
        self.call: Call | None = None
        self.step: Step | None = None


C = TypeVar("C", bound=Ongoing)


class ExpressWorld(ABC, Generic[C]):
    """A mesh whose calls go the long way, or the short one where they can.

    Actions are named after methods; those of the kind of client are added by its world, with `attempted`, `counts`, `sweep`
    and `finish`.

    Attributes:
        seen: All that a caller, a peer or a hook could notice, in order.
        taken: How many calls went the short way.
    """

    def __init__(self, mesh: FakeMesh, clusters: Sequence[str], seen: list[Any], *, is_express: bool) -> None:
        self.mesh: Any = mesh
        self.clock: Any = mesh.clock
        self.clusters = clusters
        self.seen = seen
        self.is_express = is_express
        self.open: list[C] = []
        self.taken = 0

    def act(self, name: str, *details: Any) -> None:
        match name:
            case "wait":
                self.clock.advance(details[0])
                self.sweep()
            case "update":
                self.mesh.publish(replace(details[0], number=self.mesh.view.number + 1))
            case _:
                getattr(self, name)(*details)

    def follow(self, one: C, step: Step) -> None:
        """Go on to the next attempt, or to the end."""
        call = one.call
        assert call is not None
        while isinstance(step, Sleep):
            self.clock.advance(step.seconds)
            step = call.slept(self.clock())
        one.step = step
        if isinstance(step, Attempt):
            self.attempted(one, step)
        else:
            assert isinstance(step, Done)
            self.done(one, step)

    def done(self, one: C, step: Done) -> None:
        call = one.call
        assert call is not None
        self.seen.append((step.result, step.flag, call.cluster_name, call.endpoints))
        self.drop(one)

    def ended(self, one: C, outcome: Outcome | None) -> None:
        """The attempt of a `Call` has ended; None: its caller has given up."""
        assert one.call is not None
        if outcome is None:
            self.drop(one)
            self.seen.append("given up")
        else:
            self.follow(one, one.call.finished(outcome, self.clock()))

    def drop(self, one: C) -> None:
        assert one.call is not None
        one.call.close(self.clock())
        self.open.remove(one)

    def held(self) -> list[tuple[int, int]]:
        """Return what the circuit breakers count."""
        clusters = map(self.mesh.cluster, self.clusters)
        breakers = (breaker for one in clusters for breaker in (one.breaker, one.high_breaker))
        return [(breaker.active, breaker.retries) for breaker in breakers]

    def states_of(self, cluster: str) -> list[tuple[str, int, bool]]:
        states = self.mesh.cluster(cluster).states.values()
        return [(state.address, state.active, state.is_ejected) for state in states]

    def loads(self) -> list[dict[str, int] | None]:
        """Return what is counted for load reports; None: nothing is."""
        states = [state for name in self.clusters for state in self.mesh.cluster(name).states.values()]
        return [None if state.load is None else _counts(state.load) for state in states]

    @abstractmethod
    def attempted(self, one: C, step: Attempt) -> None: ...

    @abstractmethod
    def counts(self) -> list[Any]: ...

    @abstractmethod
    def sweep(self) -> None: ...

    @abstractmethod
    def finish(self) -> list[Any]:
        """End all calls; returns what was counted."""


def _counts(load: Any) -> dict[str, int]:
    return {name: getattr(load, name) for name in type(load).__slots__ if isinstance(getattr(load, name), int)}


def come_to_the_same(long: ExpressWorld[Any], short: ExpressWorld[Any], actions: Iterable[tuple[Any, ...]]) -> None:
    """Check that two worlds in which the same happens cannot be told apart, at any time and when all calls have ended."""
    for action in actions:
        for world in (long, short):
            world.act(*action)
        assert long.seen == short.seen
        assert long.counts() == short.counts()
    assert long.finish() == short.finish()
    assert long.seen == short.seen and long.counts() == short.counts()
    assert set(long.held()) == {(0, 0)}
    event(f"express: {min(short.taken, 3)}")
