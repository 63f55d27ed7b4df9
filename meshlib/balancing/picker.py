"""What a picker is, and what those that choose among hosts have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.model.subset import MatchCriteria
from meshlib.ports import Rng

__all__ = ["DelegatingPicker", "EmptyPicker", "HostPicker", "Picker"]


class Picker(Protocol):
    """Chooses an endpoint; immutable but for its place in a rotation, never blocks, any thread may ask.

    Attributes:
        uses_hash: The request's hash matters; without that it need not be worked out.
        has_subsets: It is `within` the request's criteria that is to be asked.
    """

    @property
    def uses_hash(self) -> bool: ...

    @property
    def has_subsets(self) -> bool: ...

    def within(self, criteria: MatchCriteria | None) -> "Picker":
        """Return the picker for requests with some criteria (`metadata_match`); itself without subsets."""
        ...

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState | None:
        """Choose an endpoint.

        Args:
            hash_: The request's hash, for policies that use one; None: there is none.
            avoid: Endpoints not wanted, tried before. When each of the picks finds one of them, the last is taken all
                the same (Envoy's `retry_host_predicate`).
            attempts: Picks beyond the first when `avoid` refuses one (`host_selection_retry_max_attempts`).

        Returns:
            None: no endpoint can be used.
        """
        ...


class HostPicker(ABC):
    """A picker that knows how to `choose` once."""

    __slots__ = ()

    uses_hash: bool = False
    has_subsets = False

    def within(self, criteria: MatchCriteria | None) -> Picker:
        """As `Picker.within`."""
        return self

    @abstractmethod
    def choose(self, rng: Rng) -> EndpointState | None:
        """Choose an endpoint; None: there is none."""

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState | None:
        """As `Picker.pick`."""
        state = self.choose(rng)
        if avoid:
            while attempts > 0 and state in avoid:
                state = self.choose(rng)
                attempts -= 1
        return state


class DelegatingPicker(HostPicker):
    """Has the child that is drawn make the whole pick, for policies with a `pick` of their own."""

    __slots__ = ("_draw", "uses_hash")

    def __init__(self, draw: Callable[[Rng], HostPicker], *, uses_hash: bool) -> None:
        self._draw = draw
        self.uses_hash = uses_hash

    def choose(self, rng: Rng) -> EndpointState | None:
        return self._draw(rng).choose(rng)

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState | None:
        """As `Picker.pick`."""
        return self._draw(rng).pick(hash_, rng, avoid, attempts)


class EmptyPicker(HostPicker):
    """There is nothing to choose."""

    __slots__ = ()

    def choose(self, rng: Rng) -> EndpointState | None:
        return None
