"""Endpoints on probation: their time out is over, and a trickle of requests shows whether they work again.

For all other purposes such an endpoint is still out. Now and then a call asks the policy as if it were not; when that
chooses it and its gate is open, the call goes there. So the trickle passes priorities, subsets and the policy as every
request does, and is never more than a gate lets through.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from meshlib.balancing.build import build_picker
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import Picker
from meshlib.model.cluster import Probation
from meshlib.model.snapshot import ClusterConfig
from meshlib.model.subset import MatchCriteria
from meshlib.ports import Lock, Rng

__all__ = ["Gate", "Trials", "make_trials"]


@dataclass(slots=True)
class Gate:
    """Lets a trickle through to one endpoint; the cluster's lock guards it.

    Attributes:
        opens_at: Monotonic seconds.
    """

    opens_at: float = float("-inf")

    def is_open(self, rules: Probation, active: int, now: float) -> bool:
        """Whether a request may pass.

        Args:
            active: Requests to the endpoint that are under way.
        """
        return active < rules.max_requests and now >= self.opens_at

    def passes(self, rules: Probation, active: int, now: float) -> bool:
        """Let a request pass, if it may."""
        if not self.is_open(rules, active, now):
            return False
        self.opens_at = now + rules.interval_s
        return True


class Trials:
    """Made anew whenever anything about the endpoints changes; the gates go on."""

    __slots__ = ("_lock", "_picker", "_rules", "_states", "gates")

    def __init__(
        self, rules: Probation, picker: Picker, states: Mapping[str, EndpointState], gates: dict[str, Gate], lock: Lock
    ) -> None:
        """Make it.

        Args:
            picker: Over all endpoints, as if those on probation were in.
            states: Those on probation, by address.
            gates: Theirs.
        """
        self._rules = rules
        self._picker = picker
        self._states = states
        self.gates = gates
        self._lock = lock

    def pick(self, criteria: MatchCriteria | None, hash_: int | None, rng: Rng, now: float) -> EndpointState | None:
        """Return an endpoint on probation for a call; None: the call goes where others go."""
        rules, gates = self._rules, self.gates
        if not any(gates[address].is_open(rules, state.active, now) for address, state in self._states.items()):
            return None
        found = self._picker.within(criteria).pick(hash_, rng)
        state = None if found is None else self._states.get(found.address)
        if state is None:
            return None
        with self._lock:
            return state if gates[state.address].passes(rules, state.active, now) else None


def make_trials(
    config: ClusterConfig,
    states: Mapping[str, EndpointState],
    memory: PolicyMemory,
    before: Trials | None,
    lock: Lock,
) -> Trials | None:
    """Return what tries endpoints on probation; None: there are none."""
    rules = None if config.cluster.outlier_detection is None else config.cluster.outlier_detection.probation
    tried = {address: state for address, state in states.items() if state.is_on_probation}
    if rules is None or not tried:
        return None
    known = {} if before is None else before.gates
    gates = {address: known.get(address) or Gate() for address in tried}
    as_if = {address: state.as_if_in() if address in tried else state for address, state in states.items()}
    return Trials(rules, build_picker(config, as_if, memory=memory), tried, gates, lock)
