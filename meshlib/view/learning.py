"""What a cluster learns of its endpoints from how attempts end, for the policies and load reports that want it."""

from collections.abc import Iterable, Mapping, Sequence

from meshlib.balancing.custom import make_custom, wants_results
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.peak_ewma import after_attempt
from meshlib.balancing.pick_first import next_failure
from meshlib.balancing.reported_weight import next_weight
from meshlib.model.custom_policy import LbPolicy, LbResult
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    CustomPolicy,
    PeakEwma,
    PickFirst,
    RandomSubsetting,
)
from meshlib.model.lb_policy import LbPolicy as PolicyConfig
from meshlib.model.load_report import LoadReport
from meshlib.model.outcome import NOT_REACHED, Failure, Outcome
from meshlib.model.request import Headers
from meshlib.ports import Lock
from meshlib.xds.load_report import ClusterLoad, propagated_metrics
from meshlib.xds.orca import find_report

__all__ = ["Learner", "make_learner"]


class Learner:
    """Fixed at creation; a cluster makes a new one with each configuration.

    Attributes:
        wants_reports: What services say about their load is looked for in headers and trailers.
    """

    __slots__ = ("_custom", "_lock", "_memory", "_metrics", "_policy", "wants_reports")

    def __init__(
        self,
        policy: PolicyConfig,
        memory: PolicyMemory,
        lock: Lock,
        custom: LbPolicy | None,
        metrics: tuple[str, ...],
    ) -> None:
        """Make it.

        Args:
            lock: Guards the counts of load reports.
            custom: The application's policy, when it wants to know.
            metrics: What of the endpoints' reports goes into ours.
        """
        self._policy = policy
        self._memory = memory
        self._lock = lock
        self._custom = custom
        self._metrics = metrics
        by_reports = isinstance(policy, ClientSideWeightedRoundRobin) and not policy.out_of_band
        self.wants_reports = by_reports or bool(metrics) or custom is not None

    @property
    def is_idle(self) -> bool:
        """Nobody wants to learn anything."""
        return not self.wants_reports and not isinstance(
            self._policy, PeakEwma | PickFirst | ClientSideWeightedRoundRobin
        )

    @property
    def reporting_period_s(self) -> float | None:
        """How often endpoints are to report out of band; None: they are not."""
        policy = self._policy
        if isinstance(policy, ClientSideWeightedRoundRobin) and policy.out_of_band:
            return policy.reporting_period_s
        return None

    def finished(self, state: EndpointState, outcome: Outcome, latency_s: float, now: float, *, is_grpc: bool) -> None:
        """Learn from an attempt's outcome.

        Args:
            latency_s: Since the attempt began.
        """
        report = None
        if self.wants_reports and not isinstance(outcome, Failure):
            report = self._take(state, outcome.headers, now, is_grpc=is_grpc)
        policy = self._policy
        if isinstance(policy, PeakEwma):
            state.latency = after_attempt(state.latency, outcome, latency_s, policy, now)
        elif isinstance(policy, PickFirst):
            if isinstance(outcome, Failure) and outcome.kind in NOT_REACHED:
                state.unreachable = next_failure(state.unreachable, now)
            elif state.unreachable is not None and not isinstance(outcome, Failure):
                state.unreachable = None
        elif self._custom is not None:
            self._custom.record(state, _result(outcome, latency_s, now, report))

    def moves_on(
        self, states: Mapping[str, EndpointState], tried: Sequence[EndpointState], failure: Failure, now: float
    ) -> bool:
        """Whether a call that could not connect goes to the next endpoint by itself: pick first has one to try yet."""
        return (
            isinstance(self._policy, PickFirst)
            and failure.kind in NOT_REACHED
            and any(
                state.is_healthy
                and state not in tried
                and (state.unreachable is None or state.unreachable.until <= now)
                for state in states.values()
            )
        )

    def trailers(
        self, state: EndpointState, metadata: Iterable[tuple[str, str | bytes]], now: float, *, is_grpc: bool
    ) -> None:
        """Learn from what came after the response, or with it but apart from the outcome."""
        report = self._take(state, metadata, now, is_grpc=is_grpc)
        if report is not None and self._custom is not None:
            self._custom.record(state, LbResult(True, 200, None, now, report))

    def out_of_band(self, state: EndpointState, report: LoadReport, now: float) -> None:
        """Learn from a report of an endpoint's own stream. Load reports to the management server have none of it."""
        self._weigh(state, report, now, is_grpc=True)

    def _take(
        self, state: EndpointState, headers: Headers | Iterable[tuple[str, str | bytes]], now: float, *, is_grpc: bool
    ) -> LoadReport | None:
        report = find_report(headers)
        if report is None:
            return None
        policy = self._policy
        if isinstance(policy, ClientSideWeightedRoundRobin) and not policy.out_of_band:
            self._weigh(state, report, now, is_grpc=is_grpc)
        if self._metrics:
            found = propagated_metrics(
                {
                    "cpu_utilization": report.cpu_utilization,
                    "mem_utilization": report.mem_utilization,
                    "application_utilization": report.application_utilization,
                },
                report.named_metrics,
                self._metrics,
            )
            with self._lock:
                if found and state.load is not None:
                    state.load.add_metrics(found)
        return report

    def _weigh(self, state: EndpointState, report: LoadReport, now: float, *, is_grpc: bool) -> None:
        policy = self._policy
        if isinstance(policy, ClientSideWeightedRoundRobin):
            state.reported = next_weight(state.reported, report, policy, now, is_grpc=is_grpc)
            self._memory.is_grpc = is_grpc


def _result(outcome: Outcome, latency_s: float, now: float, report: LoadReport | None) -> LbResult:
    if isinstance(outcome, Failure):
        return LbResult(False, 0, latency_s, now)
    is_success = outcome.status < 500 and not outcome.grpc_status
    return LbResult(is_success, outcome.status, latency_s, now, report)


def make_learner(policy: PolicyConfig, memory: PolicyMemory, lock: Lock, load: ClusterLoad | None) -> Learner | None:
    """Return who learns for a policy; None: nobody wants to, and attempts need not be looked at."""
    while isinstance(policy, RandomSubsetting):
        policy = policy.child
    custom = None
    if isinstance(policy, CustomPolicy):
        made = memory.custom(policy, make_custom)
        custom = made if wants_results(made) else None
    learner = Learner(policy, memory, lock, custom, () if load is None else load.metrics)
    return None if learner.is_idle else learner
