"""How the load of an aggregate cluster is spread over its leaves.

The priorities of all leaves stand in one row, those of the first leaf first, and load is spread over them as over the
priorities of one cluster. A leaf gets what its priorities get together; it then chooses by its own rules. So the second
leaf gets something only when the first has lost more than its overprovisioning covers.

Source: Envoy, "Aggregate cluster"; gRFC A37.
"""

from collections.abc import Sequence

from meshlib.balancing.priority import PriorityHealth, load_without, priority_load
from meshlib.ports import Rng

__all__ = ["LeafTable", "leaf_loads"]


def leaf_loads(
    leaves: Sequence[Sequence[PriorityHealth]], *, panic_threshold: int = 50, avoided: frozenset[int] | None = None
) -> tuple[int, ...]:
    """Return the per cent of load of each leaf.

    Args:
        leaves: The priorities of each leaf, in the order of preference.
        panic_threshold: Of the aggregate cluster, in per cent.
        avoided: Priorities, by their place in the row, that a retry does not want; None: it is no such retry.

    Returns:
        They sum to 100; all are 0 when no leaf has an endpoint that can be used.
    """
    row = [health for leaf in leaves for health in leaf]
    if avoided is None:
        load = priority_load(row, panic_threshold=panic_threshold)
    else:
        left = load_without(row, avoided, panic_threshold=panic_threshold)
        if left is None:
            return (0,) * len(leaves)
        load = left
    totals = [healthy + degraded for healthy, degraded in zip(load.healthy, load.degraded, strict=True)]
    result, start = [], 0
    for leaf in leaves:
        result.append(sum(totals[start : start + len(leaf)]))
        start += len(leaf)
    return tuple(result)


class LeafTable:
    """Draws the index of a leaf by load; immutable."""

    __slots__ = ("_table",)

    def __init__(self, loads: Sequence[int]) -> None:
        self._table = tuple(index for index, load in enumerate(loads) for _ in range(load))

    def __bool__(self) -> bool:
        return bool(self._table)

    def choose(self, rng: Rng) -> int:
        """Return the index of a leaf; that of the first one when none can be used."""
        table = self._table
        if not table:
            return 0
        first = table[0]
        # Nearly always all goes to one leaf: no draw is needed then.
        return first if first == table[-1] else table[int(rng.random() * 100)]
