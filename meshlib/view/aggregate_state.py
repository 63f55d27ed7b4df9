"""An aggregate cluster as it lives on: it stands for others, and chooses among them."""

from collections.abc import Sequence

from meshlib.balancing.aggregate import leaf_shares
from meshlib.balancing.build import cluster_health
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker
from meshlib.balancing.zone_aware import Home
from meshlib.model.retry import DEFAULT_SAFETY, Safety
from meshlib.model.snapshot import ClusterConfig
from meshlib.model.subset import MatchCriteria
from meshlib.ports import Rng
from meshlib.view.cluster_state import ClusterState

__all__ = ["AggregateState"]

Table = tuple[tuple[ClusterState, Picker], ...]
"""By per cent of the load: a leaf, and its picker for the priority, and the hosts of it, that the aggregate has chosen."""


class AggregateState(ClusterState):
    """An aggregate cluster: it has no endpoints, and every attempt is one of a leaf, by the leaf's limits.

    Attributes:
        leaves: In the order of preference; swapped by updates, one assignment.
    """

    __slots__ = ("_made", "_made_without", "leaves")

    is_aggregate = True

    def __init__(
        self,
        config: ClusterConfig,
        now: float,
        seed: int = 0,
        safety: Safety = DEFAULT_SAFETY,
        home: Home | None = None,
    ) -> None:
        self.leaves: tuple[ClusterState, ...] = ()
        # The table, and what it was made of: the leaves' pickers, which are new whenever anything of their hosts is.
        self._made: tuple[tuple[Picker, ...], Table] = ((), ())
        # The same for retries, by the priorities that they avoid.
        self._made_without: tuple[tuple[Picker, ...], dict[frozenset[int], Table]] = ((), {})
        super().__init__(config, now, seed, safety, home)

    def choose(self, rng: Rng) -> tuple[ClusterState, Picker]:
        """Return the leaf for one attempt and its picker; the cluster itself, which has no endpoints, when there is none."""
        pickers = tuple([leaf.picker for leaf in self.leaves])
        made, table = self._made
        if made != pickers:
            table = self._table(None)
            self._made = (pickers, table)
        if table:
            return _draw(table, rng)
        leaf = self.leaves[0] if self.leaves else self
        return leaf, leaf.picker

    def priorities_of(self, states: Sequence[EndpointState]) -> frozenset[int]:
        """Return the priorities which some endpoints are of, by their place in the row of all leaves' priorities."""
        found: set[int] = set()
        start = 0
        for leaf in self.leaves:
            found.update(start + number for number in leaf.priorities_of(states))
            start += leaf.priority_count
        return frozenset(found)

    def can_avoid(self, avoided: frozenset[int], criteria: MatchCriteria | None) -> bool:
        """As `ClusterState.can_avoid`; an aggregate looks at whole leaves, whatever their subsets."""
        return bool(self._without(avoided))

    def choose_without(self, avoided: frozenset[int], rng: Rng) -> tuple[ClusterState, Picker]:
        """Return the leaf for a retry, and its picker.

        Args:
            avoided: As from `priorities_of`; `can_avoid` has said that it can be done.
        """
        return _draw(self._without(avoided), rng)

    def _without(self, avoided: frozenset[int]) -> Table:
        pickers = tuple([leaf.picker for leaf in self.leaves])
        origin, made = self._made_without
        if origin != pickers:
            origin, made = self._made_without = (pickers, {})
        if avoided not in made:
            made[avoided] = self._table(avoided)
        return made[avoided]

    def _table(self, avoided: frozenset[int] | None) -> Table:
        leaves = self.leaves
        health = [cluster_health(leaf.config, leaf.states, leaf.memory.seed) for leaf in leaves]
        threshold = int(self.config.cluster.panic_threshold_percent)
        result: list[tuple[ClusterState, Picker]] = []
        for percent, number, part in leaf_shares(health, panic_threshold=threshold, avoided=avoided):
            leaf = leaves[number]
            result += [(leaf, leaf.picker_of(part))] * percent
        return tuple(result)


def _draw(table: Table, rng: Rng) -> tuple[ClusterState, Picker]:
    first = table[0]
    # Nearly always all goes to one place: no draw is needed then.
    return first if first is table[-1] else table[int(rng.random() * 100)]
