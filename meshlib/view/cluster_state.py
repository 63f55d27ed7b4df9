"""One cluster as it lives on: its endpoints, their picker, its limits and what outlier detection knows."""

from collections.abc import Mapping, Sequence
from typing import Final

from meshlib.balancing.build import (
    build_part_picker,
    build_picker,
    build_retry_picker,
    has_choice,
    keeps_priorities,
    priorities_of,
)
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import Picker
from meshlib.balancing.priority import PriorityPart
from meshlib.balancing.zone_aware import Home
from meshlib.events import Event, HostEjected, HostUnejected
from meshlib.model.cluster import AuthorityNames
from meshlib.model.endpoint import Endpoint, HealthStatus
from meshlib.model.health import HealthCheck
from meshlib.model.outcome import GRPC_OK, Outcome
from meshlib.model.request import RequestHead
from meshlib.model.retry import DEFAULT_SAFETY, Safety
from meshlib.model.secret import ClientTls
from meshlib.model.snapshot import ClusterConfig
from meshlib.model.subset import MatchCriteria
from meshlib.ports import Pause, Rng, no_pause
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.resilience.health_check import CheckResult, CheckTurn
from meshlib.resilience.interval_outlier import IntervalDetector
from meshlib.resilience.outlier import Ejection, OutlierDetector, Trial, Unejection
from meshlib.view.attempt_counts import AttemptCounts
from meshlib.view.deferred import DeferredPicker, may_wait
from meshlib.view.dials import with_dial_order
from meshlib.view.endpoint_tls import EndpointTls
from meshlib.view.health import HealthChecks, is_another
from meshlib.view.learning import Learner, make_learner
from meshlib.view.load_counts import count_by_locality, load_of
from meshlib.view.logical_host import with_spares
from meshlib.view.outliers import next_detectors, record_grpc, record_http, verdict
from meshlib.view.passing_hosts import with_passing
from meshlib.view.trials import Trials, make_trials

__all__ = ["ClusterState"]

GRPC_STATUSES: Final = frozenset({HealthStatus.UNKNOWN, HealthStatus.HEALTHY})
GRPC_KNOWN: Final = GRPC_STATUSES | {HealthStatus.DRAINING}
HTTP_STATUSES: Final = GRPC_STATUSES | {HealthStatus.DEGRADED}
"""Which endpoints keep their sessions when a cluster does not say: the defaults of gRPC (A55) and of Envoy."""

NONE: Final[frozenset[str]] = frozenset()
PAUSE_EVERY: Final = 256
"""Endpoints: about 0.2 ms."""


class ClusterState(AttemptCounts):
    """One cluster, over all its configurations.

    The lock also guards the ejection flags, and which picker is the newest.

    Attributes:
        name: Fixed at creation.
        config: Swapped by updates, one assignment.
        picker: Swapped by updates and ejections, one assignment; never None.
        states: By address; a new mapping with each update that changes endpoints.
        outlier: Of HTTP requests; None: the cluster has no outlier detection.
        grpc_outlier: Of gRPC calls; None: it has none for them.
        checks: None: the cluster has no active health checks.
        drops: Shares of requests that EDS asks to drop.
        has_dials: Some endpoints have several addresses.
        has_lost: A gRPC call could not connect to an endpoint; one assignment, by any thread.
        safety: Of the process; fixed at creation.
        memory: What the pickers have in common. Fixed at creation.
        trials: What tries endpoints on probation; None: there are none. Swapped with the picker.
        learner: Who learns from how attempts end, for the policy or for load reports; None: nobody.
    """

    __slots__ = (
        "_attempts_before",
        "_generation",
        "_given",
        "_kept",
        "_part_pickers",
        "_retry_pickers",
        "_tls",
        "checks",
        "config",
        "drops",
        "grpc_outlier",
        "has_dials",
        "has_lost",
        "learner",
        "memory",
        "name",
        "outlier",
        "picker",
        "safety",
        "states",
        "trials",
    )

    config: ClusterConfig
    picker: Picker
    is_aggregate = False

    def __init__(
        self,
        config: ClusterConfig,
        now: float,
        seed: int = 0,
        safety: Safety = DEFAULT_SAFETY,
        home: Home | None = None,
    ) -> None:
        """Make the state of a cluster that is new.

        Args:
            now: Monotonic seconds.
            seed: 64 bits of this client's own, for policies by which clients differ.
            home: Who knows the local cluster; None: zones do not matter.
        """
        super().__init__(config.cluster, safety, now)
        self.name = config.cluster.name
        self.safety = safety
        self._attempts_before = -1  # when the picker was made; the first one is made at once
        self._generation = 0
        self.outlier: OutlierDetector | None = None
        self.grpc_outlier: IntervalDetector | None = None
        self.memory = PolicyMemory(now, seed, self._in_flight, home)
        self.learner: Learner | None = None
        self.states: Mapping[str, EndpointState] = {}
        self.trials: Trials | None = None
        self.has_lost = False
        self._retry_pickers: tuple[Picker | None, dict[frozenset[int], Picker | None]] = (None, {})
        self._part_pickers: tuple[Picker | None, dict[PriorityPart, Picker]] = (None, {})
        self.checks: HealthChecks | None = None
        self._tls = EndpointTls(config.cluster)
        self._configure(config, now)

    def __repr__(self) -> str:
        return f"ClusterState({self.name!r}, {len(self.states)} endpoints)"

    def update(self, config: ClusterConfig, now: float, pause: Pause = no_pause) -> None:
        """Take over a configuration; equal ones change nothing. Endpoints that stay keep their state."""
        if config is not self._given and config != self._given:
            self._configure(config, now, pause)

    def _configure(self, config: ClusterConfig, now: float, pause: Pause = no_pause) -> None:
        self._given = config
        config = with_dial_order(with_spares(config))
        self._kept = NONE
        if self.checks is not None and config.cluster.health_check is not None and config.cluster.keeps_passing_hosts:
            config, self._kept = with_passing(config, self.config, self.states)
        cluster, old = config.cluster, self.states
        self.memory.now = now
        states: dict[str, EndpointState] = {}
        has_dials = False
        has_checks = self.checks is not None and cluster.health_check is not None
        anew: set[str] = set()
        for locality in config.assignment.localities:
            place = locality.locality
            for index, endpoint in enumerate(locality.endpoints):
                if not index % PAUSE_EVERY:
                    pause()
                address = endpoint.address
                if address in states:
                    continue  # "later duplicates dropped"
                state = old.get(address)
                if state is None:
                    state = EndpointState(endpoint, place)
                elif (state.locality is not place and state.locality != place) or (
                    state.endpoint is not endpoint and is_another(state.endpoint, endpoint, has_checks=has_checks)
                ):
                    state = EndpointState(endpoint, place)
                    anew.add(address)
                elif state.endpoint is not endpoint:
                    state.endpoint = endpoint
                states[address] = state
                if endpoint.dials:
                    has_dials = True
        self.has_dials = has_dials
        self.limit(cluster)
        had_outlier = self.outlier is not None
        before = (self.outlier, self.grpc_outlier)
        self.outlier, self.grpc_outlier = next_detectors(before, cluster.outlier_detection, states, now, anew)
        load = load_of(cluster, self.load, now, self._lock)
        with self._lock:
            self.load = load
            count_by_locality(load, config, states)
            self._follow_checks(config, states, old)
            for state in states.values():
                if state.healthy_since is None and state.is_healthy:
                    state.healthy_since = now
            if self.outlier is not None or had_outlier:
                for address, state in states.items():
                    state.is_ejected, state.is_on_probation = self._verdict(address)
            self.states = states
            self.config = config
            self._generation += 1
        self.drops = tuple(
            (drop.numerator / drop.denominator, drop.category)
            for drop in config.assignment.drop_overloads
            if drop.numerator
        )
        self._tls = self._tls.following(cluster)
        self.learner = make_learner(cluster.lb_policy, self.memory, self._lock, load)
        pause()
        self._rebuild(pause)

    def _follow_checks(
        self, config: ClusterConfig, states: Mapping[str, EndpointState], old: Mapping[str, EndpointState]
    ) -> None:
        """Have the endpoints checked that are to be; the lock is held."""
        cluster = config.cluster
        if cluster.health_check is None:
            if self.checks is not None:
                self.checks = None
                for state in states.values():
                    state.is_failed = state.is_marked_degraded = state.is_held_out = False
            return
        if self.checks is None:
            self.checks = HealthChecks(cluster.health_check, self._lock)
        self.checks.follow(cluster.health_check, states, old, counts=cluster.counts_new_hosts)

    def check_ended(self, state: EndpointState, result: CheckResult, now: float, rng: Rng) -> CheckTurn | None:
        """Take in what a health check came to.

        Returns:
            When to check again, and what happened; None: not at all.
        """
        unejected = False
        with self._lock:
            checks = self.checks
            if checks is None or self.states.get(state.address) is not state:
                return None
            was_failed = state.is_failed
            turn = checks.ended(state, result, now, rng, has_traffic=self.attempts > 0)
            if turn is None:
                return None
            if was_failed and not state.is_failed:
                state.healthy_since = now  # slow start begins anew, whatever else is said of it
            if turn.is_news:
                self._generation += 1
        if result.failure is None and not state.is_failed and state.is_ejected:
            for detector in (self.outlier, self.grpc_outlier):
                if detector is not None and detector.uneject(state.address, now):
                    unejected = self._follow(state) or unejected
        if state.is_failed and state.address in self._kept:
            self._configure(self._given, now)
        elif turn.is_news or unejected:
            self.memory.now = now
            self._rebuild()
        return turn

    def fail_at_once(self, state: EndpointState) -> None:
        """An answer asked for no more requests (`x-envoy-immediate-health-check-fail`): heard where there are checks."""
        with self._lock:
            if self.checks is None or not self.checks.fail_at_once(state):
                return
            self._generation += 1
        if state.address in self._kept:
            self._configure(self._given, self.memory.now)
        else:
            self._rebuild()

    def _rebuild(self, pause: Pause = no_pause) -> None:
        """Make the picker anew, outside the lock; whoever sees the newest state last has its picker stay."""
        while True:
            generation = self._generation
            # Both are read once: a call that comes meanwhile only makes it less idle.
            is_idle = self.attempts == self._attempts_before and self.memory.home is None
            picker: Picker
            if is_idle and may_wait(self.config, self.states):
                picker = DeferredPicker(self._make_deferred)
            else:
                picker = build_picker(self.config, self.states, memory=self.memory, pause=pause)
            trials = make_trials(self.config, self.states, self.memory, self.trials, self._lock)
            with self._lock:
                if generation == self._generation:
                    self.picker, self.trials = picker, trials
                    self._attempts_before = self.attempts
                    return

    def _make_deferred(self) -> Picker:
        """Make the picker that was put off, for the call that asks for it."""
        generation = self._generation
        picker = build_picker(self.config, self.states, memory=self.memory)
        with self._lock:
            if generation == self._generation:
                self.picker = picker
        return picker

    def priorities_of(self, states: Sequence[EndpointState]) -> frozenset[int]:
        """Return the priorities which some endpoints are of."""
        return priorities_of(self.config, self.states, states, self.memory.seed)

    @property
    def priority_count(self) -> int:
        """How many priorities the cluster has."""
        return max((group.priority for group in self.config.assignment.localities), default=-1) + 1

    def can_avoid(self, avoided: frozenset[int], criteria: MatchCriteria | None) -> bool:
        """Whether the other priorities can take something.

        Args:
            criteria: Of the route: with subsets it is those of one subset that count.
        """
        picker = self.picker_without(avoided)
        return picker is not None and has_choice(picker, criteria)

    def picker_without(self, avoided: frozenset[int]) -> Picker | None:
        """Return the picker for retries that avoid some priorities; None: the others can take nothing."""
        origin, made = self._retry_pickers
        if origin is not self.picker:
            origin, made = self._retry_pickers = (self.picker, {})
        if avoided not in made:
            made[avoided] = build_retry_picker(self.config, self.states, self.memory, avoided)
        return made[avoided]

    def picker_of(self, part: PriorityPart) -> Picker:
        """Return the picker for requests that an aggregate cluster sends to a part of this one."""
        usual = self.picker
        if keeps_priorities(self.config):
            return usual
        origin, made = self._part_pickers
        if origin is not usual:
            origin, made = self._part_pickers = (usual, {})
        if part not in made:
            made[part] = build_part_picker(self.config, self.states, self.memory, part) or usual
        return made[part]

    def tls_for(self, endpoint: Endpoint) -> ClientTls | None:
        """As `EndpointTls.of`."""
        return self._tls.of(endpoint)

    def tls_for_request(self, tls: ClientTls, names: AuthorityNames, head: RequestHead) -> ClientTls:
        """As `EndpointTls.for_request`."""
        return self._tls.for_request(tls, names, head)

    def tls_for_check(self, endpoint: Endpoint, config: HealthCheck) -> ClientTls | None:
        """As `EndpointTls.for_check`."""
        return self._tls.for_check(endpoint, config)

    def override(self, addresses: Sequence[str], *, is_grpc: bool) -> EndpointState | None:
        """Return the first of some endpoints that may be used for a session, whatever the balancer would choose.

        Args:
            is_grpc: Of a gRPC call: degraded endpoints are none of gRPC's, and draining ones keep their sessions if
                the cluster says so (A55).
        """
        statuses = self.config.cluster.override_statuses
        if is_grpc:
            statuses = GRPC_STATUSES if statuses is None else statuses & GRPC_KNOWN
        elif statuses is None:
            statuses = HTTP_STATUSES
        for address in addresses:
            state = self.states.get(address)
            if state is not None and state.status in statuses:
                return state
        return None

    def next_named(self, addresses: list[str]) -> EndpointState | None:
        """Return the first of some endpoints that the cluster has, whatever its health; None: it has none of them.

        Args:
            addresses: Those looked at are taken out, so that a retry goes to one further on.
        """
        while addresses:
            state = self.states.get(addresses.pop(0))
            if state is not None:
                return state
        return None

    def choose(self, rng: Rng) -> "tuple[ClusterState, Picker]":
        """Return the cluster whose endpoints the next attempt chooses from, and how: itself, unless it is an aggregate."""
        return self, self.picker

    def succeeded(
        self, breaker: CircuitBreaker, state: EndpointState, now: float, rng: Rng
    ) -> HostEjected | HostUnejected | None:
        """`record` a gRPC call that went well, and `release` its attempt."""
        changed = None
        if self.grpc_outlier is not None:
            changed = self.record(state, GRPC_OK, now, rng, is_grpc=True)
        with self._lock:
            breaker.active -= 1
            state.active -= 1
            if state.load is not None:
                state.load.end(is_success=True)
        return changed

    def record(
        self, state: EndpointState, outcome: Outcome, now: float, rng: Rng, *, is_grpc: bool = False
    ) -> HostEjected | HostUnejected | None:
        """Feed outlier detection with an outcome, and carry out what it decides.

        Args:
            is_grpc: By gRPC's rules.

        Returns:
            The event when the endpoint was ejected, or came back from probation.
        """
        ejection = None
        if is_grpc:
            if self.grpc_outlier is not None:
                ejection = record_grpc(self.grpc_outlier, state.address, outcome, now)
        elif self.outlier is not None:
            ejection = record_http(self.outlier, state.address, outcome, now, rng)
        return None if ejection is None else self._carry_out(state, ejection)

    def _carry_out(self, state: EndpointState, ejection: Ejection | Unejection) -> HostEjected | HostUnejected:
        if self._follow(state):
            self._rebuild()
        if isinstance(ejection, Unejection):
            return HostUnejected(self.name, state.endpoint)
        return HostEjected(self.name, state.endpoint, ejection.reason.value, ejection.ejection_time_s)

    def _follow(self, state: EndpointState) -> bool:
        """Take over what the detectors say of an endpoint; True: that is news.

        They are asked again, under the lock: between its decision and this moment another thread may have
        decided otherwise, and the flag must end up as they have it.
        """
        with self._lock:
            is_ejected, is_tried = self._verdict(state.address)
            if (state.is_ejected, state.is_on_probation) == (is_ejected, is_tried):
                return False
            state.is_ejected, state.is_on_probation = is_ejected, is_tried
            self._generation += 1
            return True

    def _verdict(self, address: str) -> tuple[bool, bool]:
        return verdict((self.outlier, self.grpc_outlier), address)

    def sweep(self, now: float, rng: Rng) -> tuple[Event, ...]:
        """Do the periodic work of outlier detection when it is due."""
        self.memory.now = now
        detectors = (self.outlier, self.grpc_outlier)
        changes = [change for found in detectors if found is not None for change in found.sweep(now, rng)]
        if not changes:
            return ()
        changed = [(state, change) for change in changes if (state := self.states.get(change.address)) is not None]
        news = [self._follow(state) for state, _ in changed]
        if any(news):
            self._rebuild()
        return tuple(
            HostUnejected(self.name, state.endpoint)
            if isinstance(change, Unejection)
            else HostEjected(self.name, state.endpoint, change.reason.value, change.ejection_time_s)
            for state, change in changed
            if not isinstance(change, Trial)
        )
