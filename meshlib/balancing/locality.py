"""Locality weighted load balancing: first a locality by its weight, then a host inside it.

A locality's weight shrinks with its health: `weight * min(1, overprovisioning * eligible / hosts)`, so that 10:10 with
one half healthy becomes 10:7.

Source: Envoy, "Locality weighted load balancing".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.schedule import weighted_schedule
from meshlib.ports import Rng

__all__ = ["LocalityPicker", "LocalityShare", "effective_weights"]


@dataclass(frozen=True, slots=True)
class LocalityShare:
    """What a locality brings along.

    Attributes:
        weight: As configured; 0 when the resource gives none.
        eligible: Hosts that can be chosen (the healthy ones, or the degraded ones).
        hosts: Hosts that count, draining ones left out.
    """

    weight: int
    eligible: int
    hosts: int


def effective_weights(shares: Sequence[LocalityShare], overprovisioning_factor: int) -> list[int]:
    """Return whole numbers in the proportion of the effective weights.

    Args:
        overprovisioning_factor: Percent.
    """
    scale = lcm(*(share.hosts for share in shares if share.hosts))
    return [
        share.weight * min(100 * share.hosts, overprovisioning_factor * share.eligible) * (scale // share.hosts)
        if share.hosts
        else 0
        for share in shares
    ]


class LocalityPicker(HostPicker):
    """Takes turns among localities, earliest deadline first."""

    __slots__ = ("_children", "_schedule")

    def __init__(self, children: Sequence[HostPicker], weights: Sequence[int]) -> None:
        self._children = tuple(children)
        self._schedule = weighted_schedule(weights)

    def draw(self, rng: Rng) -> HostPicker:
        """Return the picker of the locality whose turn it is."""
        return self._children[self._schedule.next(rng)]

    def choose(self, rng: Rng) -> EndpointState | None:
        return self._children[self._schedule.next(rng)].choose(rng)
