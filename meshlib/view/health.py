"""The active health checks of one cluster: what is known of each endpoint, and what that changes."""

from collections.abc import Mapping
from dataclasses import dataclass

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.model.endpoint import Endpoint
from meshlib.model.health import HealthCheck
from meshlib.ports import Lock, Rng
from meshlib.resilience.health_check import CheckResult, CheckTurn, EndpointCheck

__all__ = ["CheckFacts", "HealthChecks", "is_another"]


@dataclass(frozen=True, slots=True)
class CheckFacts:
    """What the checks of an endpoint have come to.

    Attributes:
        failure: Of the last one: `ACTIVE`, `PASSIVE`, `NETWORK` or `NETWORK_TIMEOUT`; empty: it passed.
        reason: The same for people.
        consecutive: So many have ended like the last one, one after the other.
        ended_at: Monotonic seconds.
        due_at: When the next one begins; monotonic seconds.
    """

    failure: str
    reason: str
    consecutive: int
    ended_at: float
    due_at: float


class HealthChecks:
    """Any thread may ask and report; the cluster's lock guards it.

    Attributes:
        config: Swapped by updates, one assignment.
        is_warming: There are endpoints without a first result, and there have been from the cluster's beginning on.
    """

    __slots__ = ("_checks", "_facts", "_lock", "config", "is_warming")

    def __init__(self, config: HealthCheck, lock: Lock) -> None:
        self.config = config
        self._lock = lock
        self._checks: dict[str, EndpointCheck] = {}
        self._facts: dict[str, CheckFacts] = {}
        self.is_warming = True

    @staticmethod
    def concerns(endpoint: Endpoint) -> bool:
        """Whether an endpoint is checked at all."""
        return endpoint.check is None or not endpoint.check.is_off

    def follow(
        self,
        config: HealthCheck,
        states: Mapping[str, EndpointState],
        old: Mapping[str, EndpointState],
        *,
        counts: bool,
    ) -> None:
        """Take over the configuration and the endpoints; those that stay keep what is known of them. The lock is held.

        Args:
            old: Those before. Where no endpoint was checked until now, they go on as they are until their first result.
            counts: An endpoint counts before its first result, as one that is out.
        """
        self.config = config
        before, self._checks = self._checks, {}
        for address, state in states.items():
            if not self.concerns(state.endpoint):
                state.is_failed = state.is_marked_degraded = state.is_held_out = False
                continue
            check, known = before.get(address), old.get(address)
            is_new = known is None
            if known is not None and known is not state:
                # A host made anew: what is known of it stands until its next check, unless it is checked elsewhere.
                is_new = _place(known.endpoint) != _place(state.endpoint)
                check = None if check is None or is_new else check.anew()
            if check is None:
                check = EndpointCheck(waits=not counts and is_new)
                check.is_failed = is_new
            self._checks[address] = check
            _show(check, state)
        self._facts = {address: facts for address, facts in self._facts.items() if address in self._checks}
        self._end_warming()

    def _end_warming(self) -> None:
        if self.is_warming:
            self.is_warming = any(check.is_first for check in self._checks.values())

    @property
    def addresses(self) -> frozenset[str]:
        """Of the endpoints that are checked."""
        with self._lock:
            return frozenset(self._checks)

    def first_wait_s(self, rng: Rng) -> float:
        """Return how long to wait before an endpoint's first check."""
        jitter_s = self.config.initial_jitter_s
        return rng.random() * jitter_s if jitter_s else 0.0

    def facts(self, address: str) -> CheckFacts | None:
        """Return what the checks of an endpoint have come to; None: none has ended, or it is not checked."""
        return self._facts.get(address)

    def ended(
        self, state: EndpointState, result: CheckResult, now: float, rng: Rng, *, has_traffic: bool
    ) -> CheckTurn | None:
        """Take in what a check came to; None: the endpoint is gone, or not checked any more. The lock is held."""
        check = self._checks.get(state.address)
        if check is None:
            return None
        turn = check.ended(result, self.config, rng, has_traffic=has_traffic)
        failure, before = "" if result.failure is None else result.failure.value, self._facts.get(state.address)
        count = before.consecutive + 1 if before is not None and bool(before.failure) == bool(failure) else 1
        self._facts[state.address] = CheckFacts(failure, result.reason, count, now, now + turn.wait_s)
        _show(check, state)
        self._end_warming()
        return turn

    def fail_at_once(self, state: EndpointState) -> bool:
        """An answer to a request asked for no more of them; True: that is news. The lock is held."""
        check = self._checks.get(state.address)
        if check is None or not check.fail_at_once():
            return False
        _show(check, state)
        return True


def is_another(old: Endpoint, new: Endpoint, *, has_checks: bool) -> bool:
    """Whether Envoy makes a host anew though its address stays: it has another name, or is checked elsewhere or not at all.

    Args:
        has_checks: Of the cluster.
    """
    return old.hostname != new.hostname or (has_checks and _place(old) != _place(new))


def _place(endpoint: Endpoint) -> tuple[str, int, bool]:
    check = endpoint.check
    return ("", 0, False) if check is None else (check.address, check.port, check.is_off)


def _show(check: EndpointCheck, state: EndpointState) -> None:
    state.is_failed = check.is_failed
    state.is_marked_degraded = check.is_degraded
    state.is_held_out = check.is_excluded
