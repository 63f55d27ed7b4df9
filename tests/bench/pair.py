"""What is compared: the same call with and without the mesh, by the client that the application would use."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from world import World

Runner = Callable[[int], None]
"""Makes so many calls."""

Open = Callable[[World, ExitStack], tuple[Runner, Runner]]


@dataclass(frozen=True)
class Pair:
    """Attributes:
    open: Makes the plain and the meshed client and returns what calls each; they end with the stack.
    calls: In one round of a full run.
    needs: `envoy`: the pair cannot be measured without one.
    """

    name: str
    open: Open
    calls: int
    needs: str = ""
