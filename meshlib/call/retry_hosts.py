"""Where a retry goes: which hosts and which priorities it avoids.

Source: Envoy, `retry_host_predicate` and `retry_priority`; the rules of the latter are
`PreviousPrioritiesRetryPriority::determinePriorityLoad`.
"""

from collections.abc import Sequence
from typing import overload

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker
from meshlib.model.retry import RetryPolicy
from meshlib.model.subset import MatchCriteria
from meshlib.ports import Rng
from meshlib.view import ClusterState

__all__ = ["MAX_UNREACHABLE", "TriedPriorities", "another_host", "unwanted_hosts"]

MAX_UNREACHABLE = 8
"""Endpoints that one gRPC call tries to connect to before it fails. gRPC, which connects before calls come, has no such
number."""
PICKS_PER_HOST = 10
"""A policy that chooses by chance finds the one that is left of two with this many tries, but for once in a million."""

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


def another_host(
    cluster: ClusterState,
    unreachable: Sequence[EndpointState],
    criteria: MatchCriteria | None,
    hash_: int | None,
    rng: Rng,
) -> EndpointState | None:
    """Return a host that is none of some, of their priorities if there is one, else of others; None: there is none.

    Args:
        unreachable: Those that could not be connected to.
        criteria: Of the route, for subsets.
        hash_: Of the request, for pickers which use it.
    """
    picker: Picker | None = cluster.picker
    for _ in range(2):
        if picker is None:
            return None
        chosen = picker.within(criteria) if picker.has_subsets else picker
        state = chosen.pick(hash_, rng, unreachable, PICKS_PER_HOST * len(unreachable) + 10)
        if state is not None and state not in unreachable:
            return state
        picker = cluster.picker_without(cluster.priorities_of(unreachable))
    return None


class TriedPriorities:
    """The priorities that a call has tried and avoids from now on."""

    __slots__ = ("_avoided", "_hosts")

    def __init__(self) -> None:
        self._hosts: list[EndpointState] = []
        self._avoided: frozenset[int] = frozenset()

    def add(self, state: EndpointState) -> None:
        """A host was tried."""
        self._hosts.append(state)

    def avoided(
        self, cluster: ClusterState, update_frequency: int, criteria: MatchCriteria | None
    ) -> frozenset[int] | None:
        """Return the priorities that the next attempt avoids; None: load is spread as usual.

        Args:
            cluster: That the route names; the priorities of an aggregate are those of its leaves in a row.
            update_frequency: Priorities are looked at when so many more hosts have been tried.
            criteria: Of the route, for subsets.
        """
        count = len(self._hosts)
        if count < update_frequency:
            return None
        if count % update_frequency == 0:
            self._avoided |= cluster.priorities_of(self._hosts)
            if not cluster.can_avoid(self._avoided, criteria):  # nothing is left: start over with all
                self._avoided = frozenset()
                self._hosts.clear()
        return self._avoided if cluster.can_avoid(self._avoided, criteria) else None
