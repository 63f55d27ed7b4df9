"""Where a retry goes: which hosts and which priorities it avoids.

Source: Envoy, `retry_host_predicate` and `retry_priority`; the rules of the latter are
`PreviousPrioritiesRetryPriority::determinePriorityLoad`.
"""

from collections.abc import Sequence
from typing import overload

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker
from meshlib.model.retry import RetryPolicy
from meshlib.view import ClusterState

__all__ = ["TriedPriorities", "unwanted_hosts"]

_LB = "envoy.lb"


class _Unwanted(Sequence[EndpointState]):
    """Hosts that a retry avoids; only asked whether one is among them."""

    __slots__ = ("_policy", "_tried")

    def __init__(self, policy: RetryPolicy, tried: Sequence[EndpointState]) -> None:
        self._policy = policy
        self._tried = tried if policy.avoid_previous_hosts else ()

    def __contains__(self, state: object) -> bool:
        if state in self._tried:
            return True
        policy = self._policy
        if not isinstance(state, EndpointState):
            return False
        found = state.endpoint.metadata.get(_LB)
        if policy.avoid_canaries and found is not None and found.get("canary") is True:
            return True
        return any(
            not wanted or (found is not None and all(key in found and found[key] == value for key, value in wanted))
            for wanted in policy.avoid_metadata
        )

    def __len__(self) -> int:
        return max(1, len(self._tried))  # never empty: there is something to ask

    @overload
    def __getitem__(self, index: int) -> EndpointState: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[EndpointState]: ...

    def __getitem__(self, index: int | slice) -> EndpointState | Sequence[EndpointState]:
        return self._tried[index]


def unwanted_hosts(policy: RetryPolicy, tried: Sequence[EndpointState]) -> Sequence[EndpointState]:
    """Return what a pick for a retry avoids: `in` says of a host whether it does.

    Args:
        policy: One that chooses hosts.
        tried: In order.
    """
    if policy.avoid_canaries or policy.avoid_metadata:
        return _Unwanted(policy, tried)
    return tried


class TriedPriorities:
    """The priorities that a call has tried and avoids from now on."""

    __slots__ = ("_avoided", "_hosts")

    def __init__(self) -> None:
        self._hosts: list[EndpointState] = []
        self._avoided: frozenset[int] = frozenset()

    def add(self, state: EndpointState) -> None:
        """A host was tried."""
        self._hosts.append(state)

    def picker(self, cluster: ClusterState, update_frequency: int) -> Picker:
        """Return the picker for the next attempt.

        Args:
            update_frequency: Priorities are looked at when so many more hosts have been tried.
        """
        count = len(self._hosts)
        if count < update_frequency:
            return cluster.picker
        if count % update_frequency == 0:
            self._avoided |= cluster.priorities_of(self._hosts)
            found = cluster.picker_without(self._avoided)
            if found is None:  # nothing is left: start over with all
                self._avoided = frozenset()
                self._hosts.clear()
                found = cluster.picker_without(self._avoided)
            return cluster.picker if found is None else found
        return cluster.picker_without(self._avoided) or cluster.picker
