"""How the load of an aggregate cluster is spread over its leaves.

The priorities of all leaves stand in one row, those of the first leaf first, and load is spread over them as over the
priorities of one cluster. So the second leaf gets something only when the first has lost more than its overprovisioning
covers. What is drawn says also which priority of the leaf it is, and whether its healthy or its degraded hosts.

Source: Envoy, "Aggregate cluster"; gRFC A37.
"""

from collections.abc import Sequence
from typing import NamedTuple

from meshlib.balancing.priority import PriorityHealth, PriorityPart, load_without, priority_load

__all__ = ["LeafShare", "leaf_shares"]


class LeafShare(NamedTuple):
    """Attributes:
    percent: Of the load, above 0.
    leaf: Its index.
    part: Of the leaf.
    """

    percent: int
    leaf: int
    part: PriorityPart


def leaf_shares(
    leaves: Sequence[Sequence[PriorityHealth]], *, panic_threshold: int = 50, avoided: frozenset[int] | None = None
) -> list[LeafShare]:
    """Return what gets load.

    Args:
        leaves: The priorities of each leaf, in the order of preference.
        panic_threshold: Of the aggregate cluster, in per cent.
        avoided: Priorities, by their place in the row, that a retry does not want; None: it is no such retry.

    Returns:
        They sum to 100. None when the priorities that are not avoided can take nothing, and when there is no endpoint.
    """
    row = [health for leaf in leaves for health in leaf]
    places = [(leaf, number) for leaf, priorities in enumerate(leaves) for number in range(len(priorities))]
    if avoided is None:
        load = priority_load(row, panic_threshold=panic_threshold)
    else:
        left = load_without(row, avoided, panic_threshold=panic_threshold)
        if left is None:
            return []
        load = left
    shares = [
        LeafShare(percent, leaf, PriorityPart(number, is_degraded))
        for is_degraded, percents in ((False, load.healthy), (True, load.degraded))
        for percent, (leaf, number) in zip(percents, places, strict=True)
        if percent
    ]
    if not shares:  # nothing can be used, and there is no panic: as in Envoy the first priority is to see to it
        first = next((place for place, health in zip(places, row, strict=True) if health.hosts), None)
        if first is not None:
            shares = [LeafShare(100, first[0], PriorityPart(first[1], False))]
    return shares
