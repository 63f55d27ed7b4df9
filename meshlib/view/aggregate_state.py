"""An aggregate cluster as it lives on: it stands for others, and chooses among them."""

from meshlib.balancing.aggregate import LeafTable, leaf_loads
from meshlib.balancing.build import cluster_health
from meshlib.balancing.picker import Picker
from meshlib.balancing.zone_aware import Home
from meshlib.model.retry import DEFAULT_SAFETY, Safety
from meshlib.model.snapshot import ClusterConfig
from meshlib.ports import Rng
from meshlib.view.cluster_state import ClusterState

__all__ = ["AggregateState"]


class AggregateState(ClusterState):
    """An aggregate cluster: it has no endpoints, and every attempt is one of a leaf, by the leaf's limits.

    Attributes:
        leaves: In the order of preference; swapped by updates, one assignment.
    """

    __slots__ = ("_made", "leaves")

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
        self._made: tuple[tuple[Picker, ...], LeafTable] = ((), LeafTable(()))
        super().__init__(config, now, seed, safety, home)

    def choose(self, rng: Rng) -> ClusterState:
        """Return the leaf for one attempt; the cluster itself, which has no endpoints, when there is none."""
        leaves = self.leaves
        if len(leaves) < 2:
            return leaves[0] if leaves else self
        pickers = tuple([leaf.picker for leaf in leaves])
        made, table = self._made
        if made != pickers:
            health = [cluster_health(leaf.config, leaf.states, leaf.memory.seed) for leaf in leaves]
            threshold = int(self.config.cluster.panic_threshold_percent)
            table = LeafTable(leaf_loads(health, panic_threshold=threshold))
            self._made = (pickers, table)
        return leaves[table.choose(rng)]
