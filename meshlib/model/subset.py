"""Subsets of a cluster's endpoints: how a cluster makes them, and what a route asks for (Envoy's subset load balancer)."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

__all__ = [
    "FALLBACK_LIST",
    "LB_METADATA",
    "NO_CRITERIA",
    "MatchCriteria",
    "SubsetConfig",
    "SubsetFallback",
    "SubsetSelector",
    "comparable",
]

LB_METADATA: Final = "envoy.lb"
"""The filter metadata of routes and endpoints that subsets are about."""

FALLBACK_LIST: Final = "fallback_list"
"""The key of a route's criteria that lists others to try."""

_LIST: Final = "list"
_STRUCT: Final = "struct"


def comparable(value: Any) -> Hashable:
    """Return a frozen metadata value in a form that compares as protobuf values do: 1 is not true, nor "1"."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, tuple):
        return (_LIST, tuple(comparable(item) for item in value))
    if isinstance(value, Mapping):
        return (_STRUCT, tuple(sorted((key, comparable(item)) for key, item in value.items())))
    return value  # type: ignore[no-any-return]  # None, a number or a text


class MatchCriteria:
    """Keys and values that an endpoint must have, by key; immutable. Made per update, looked up per request."""

    __slots__ = ("_hash", "entries", "keys")

    def __init__(self, entries: Iterable[tuple[str, Hashable]]) -> None:
        """Make criteria.

        Args:
            entries: Keys, each once, and values as `comparable` gives them.
        """
        self.entries: tuple[tuple[str, Hashable], ...] = tuple(sorted(entries, key=lambda entry: entry[0]))
        self.keys: tuple[str, ...] = tuple(key for key, _ in self.entries)
        self._hash = hash(self.entries)

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> "MatchCriteria":
        """Make criteria of `envoy.lb` metadata."""
        return cls((key, comparable(value)) for key, value in metadata.items())

    def only(self, keys: Iterable[str]) -> "MatchCriteria":
        """Return the entries with some keys."""
        wanted = frozenset(keys)
        return MatchCriteria(entry for entry in self.entries if entry[0] in wanted)

    def merged(self, other: "MatchCriteria") -> "MatchCriteria":
        """Return these entries and those of another, which win."""
        return MatchCriteria({**dict(self.entries), **dict(other.entries)}.items())

    def fallbacks(self) -> "tuple[MatchCriteria, ...] | None":
        """Return the criteria to try one after the other; None: they list none."""
        for key, value in self.entries:
            if key == FALLBACK_LIST:
                rest = MatchCriteria(entry for entry in self.entries if entry[0] != FALLBACK_LIST)
                # What is no list, or no struct inside of it, counts as an empty one.
                items = value[1] if isinstance(value, tuple) and value[0] == _LIST else ()
                listed = [MatchCriteria(item[1]) if _is_struct(item) else MatchCriteria(()) for item in items]
                return tuple(rest.merged(item) for item in listed) or (rest,)
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MatchCriteria) and (self is other or self.entries == other.entries)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"MatchCriteria({dict(self.entries)!r})"


NO_CRITERIA: Final = MatchCriteria(())


def _is_struct(value: object) -> bool:
    return isinstance(value, tuple) and value[0] == _STRUCT


class SubsetFallback(Enum):
    """Where a request goes whose subset does not exist.

    Attributes:
        NOT_DEFINED: Of a selector: what the cluster says counts.
        KEYS_SUBSET: Of a selector: to the subset of some of its keys.
    """

    NOT_DEFINED = "not defined"
    NO_FALLBACK = "nowhere"
    ANY_ENDPOINT = "any endpoint"
    DEFAULT_SUBSET = "default subset"
    KEYS_SUBSET = "subset of fewer keys"


@dataclass(frozen=True, slots=True)
class SubsetSelector:
    """Endpoints that have all of these keys are in one subset per combination of values.

    Attributes:
        keys: Sorted, each once.
        fallback_keys: With KEYS_SUBSET: some of the keys.
        is_single: A subset holds one endpoint, the first; its health does not count.
    """

    keys: tuple[str, ...]
    fallback: SubsetFallback = SubsetFallback.NOT_DEFINED
    fallback_keys: tuple[str, ...] = ()
    is_single: bool = False


@dataclass(frozen=True, slots=True)
class SubsetConfig:
    """`lb_subset_config`, or the `subset` load balancing policy.

    Attributes:
        selectors: In the order in which they count.
        default_subset: For DEFAULT_SUBSET: endpoints that have all of it.
        locality_weight_aware: Locality weights count inside of subsets.
        scales_locality_weight: They shrink with the share of a locality's endpoints that are in the subset.
        panic_mode_any: When the fallback has no endpoint, any one is taken.
        list_as_any: An endpoint whose value is a list is in the subset of each element.
        allow_redundant_keys: A route's keys which the first fitting selector does not have are ignored.
        uses_fallback_list: A route may list criteria to try one after the other.
    """

    selectors: tuple[SubsetSelector, ...]
    fallback: SubsetFallback = SubsetFallback.NO_FALLBACK
    default_subset: MatchCriteria = NO_CRITERIA
    locality_weight_aware: bool = False
    scales_locality_weight: bool = False
    panic_mode_any: bool = False
    list_as_any: bool = False
    allow_redundant_keys: bool = False
    uses_fallback_list: bool = False
