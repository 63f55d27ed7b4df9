"""Subsets: a route's criteria choose among the endpoints by their metadata, and the cluster's policy among those.

Which criteria lead where is found once per set of criteria and kept as long as the picker lives, that is until the
next update of the cluster. A request then costs one look-up more than without subsets.

Source: Envoy, "Load Balancer Subsets", and `SubsetLoadBalancer`. Its criteria stand in the order of their keys, and so
do those here; a subset is found when a selector has exactly the keys of the criteria.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.host_sets import LocalityHosts, PriorityHosts
from meshlib.balancing.picker import EmptyPicker, HostPicker, Picker
from meshlib.model.subset import LB_METADATA, MatchCriteria, SubsetConfig, SubsetFallback, SubsetSelector, comparable
from meshlib.ports import Pause, Rng, no_pause

__all__ = ["SubsetPicker"]

Key = tuple[tuple[str, Hashable], ...]
"""Keys and values of a subset; the keys are sorted."""
Make = Callable[[Sequence[PriorityHosts]], Picker]

MAX_CRITERIA: Final = 1024
"""Criteria whose picker is remembered. Those of routes are fewer; it bounds what could be made up."""
MAX_COMBINATIONS: Final = 256
"""Subsets of one selector that one endpoint is in because of lists in its metadata."""
MADE_AHEAD: Final = 64
"""Subsets whose picker is made with the update; of more than that, each is made when it is first asked for."""

_NOBODY: Final = EmptyPicker()


class _Fallthrough(HostPicker):
    """Asks one picker after the other until one has an endpoint."""

    __slots__ = ("_choices", "uses_hash")

    def __init__(self, choices: Sequence[Picker]) -> None:
        self._choices = tuple(choices)
        self.uses_hash = any(choice.uses_hash for choice in choices)

    def choose(self, rng: Rng) -> EndpointState | None:
        return self.pick(None, rng)

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState | None:
        """As `Picker.pick`."""
        for choice in self._choices:
            state = choice.pick(hash_, rng, avoid, attempts)
            if state is not None:
                return state
        return None


class _One(HostPicker):
    """The endpoint of a subset that holds one, whatever its health (as in Envoy)."""

    __slots__ = ("_state",)

    def __init__(self, state: EndpointState) -> None:
        self._state = state

    def choose(self, rng: Rng) -> EndpointState:
        return self._state


class _Members:
    """Whom a subset holds: endpoints with the numbers of their priority and locality."""

    __slots__ = ("is_single", "places")

    def __init__(self, *, is_single: bool) -> None:
        self.is_single = is_single
        self.places: list[tuple[int, int, EndpointState]] = []


class SubsetPicker:
    """Finds the picker of a request's criteria; immutable but for what it remembers."""

    __slots__ = ("_any", "_config", "_default", "_fallbacks", "_found", "_made", "_make", "_members", "_priorities")

    uses_hash = False
    has_subsets = True

    def __init__(
        self, config: SubsetConfig, priorities: Sequence[PriorityHosts], make: Make, pause: Pause = no_pause
    ) -> None:
        """Sort the endpoints into subsets.

        Args:
            make: Makes the picker over some of the endpoints, by the cluster's policy.
            pause: Called between the steps.
        """
        self._config = config
        self._priorities = priorities
        self._make = make
        self._fallbacks = _selector_fallbacks(config.selectors)
        self._members = _sort(config, priorities, pause)
        # Each grows by one entry per question that was not asked before; two threads may make the same one, and either
        # is good.
        self._made: dict[Key, Picker] = {}
        self._found: dict[MatchCriteria | None, Picker] = {}
        self._any: Picker | None = None
        self._default: Picker | None = None
        if len(self._members) <= MADE_AHEAD:
            for key in self._members:
                pause()
                self._subset(key)
        pause()
        self.within(None)

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState | None:
        """As `Picker.pick`, for a request without criteria."""
        return self.within(None).pick(hash_, rng, avoid, attempts)

    def within(self, criteria: MatchCriteria | None) -> Picker:
        """As `Picker.within`."""
        found = self._found.get(criteria)
        if found is None:
            if len(self._found) >= MAX_CRITERIA:
                self._found = {}
            found = self._found[criteria] = self._resolve(criteria)
        return found

    def _resolve(self, criteria: MatchCriteria | None) -> Picker:
        listed = criteria.fallbacks() if criteria is not None and self._config.uses_fallback_list else None
        if listed is None:
            return self._follow(criteria)
        choices = [self._follow(entry) for entry in listed]
        return choices[0] if len(choices) == 1 else _Fallthrough(choices)

    def _follow(self, criteria: MatchCriteria | None) -> Picker:
        """Return the subset's picker, or that of where the request goes instead."""
        config = self._config
        if criteria is not None:
            if config.allow_redundant_keys:
                keys = frozenset(criteria.keys)
                fitting = (selector.keys for selector in config.selectors if keys.issuperset(selector.keys))
                criteria = criteria.only(next(fitting, criteria.keys))
            if criteria.entries in self._members:
                return self._subset(criteria.entries)
            selector = self._fallbacks.get(criteria.keys)
            if selector is not None and selector.fallback is not SubsetFallback.NOT_DEFINED:
                if selector.fallback is SubsetFallback.KEYS_SUBSET:
                    return self._follow(criteria.only(selector.fallback_keys))
                return self._instead(selector.fallback)
        if config.fallback is SubsetFallback.NO_FALLBACK:
            return _NOBODY  # Envoy then has no panic mode either.
        instead = self._instead(config.fallback)
        return _Fallthrough((instead, self._everybody())) if config.panic_mode_any else instead

    def _instead(self, fallback: SubsetFallback) -> Picker:
        if fallback is SubsetFallback.ANY_ENDPOINT:
            return self._everybody()
        if fallback is not SubsetFallback.DEFAULT_SUBSET:
            return _NOBODY
        if self._default is None:
            wanted, as_any = self._config.default_subset, self._config.list_as_any
            self._default = self._over(
                (number, place, state)
                for number, place, state in _places(self._priorities)
                if _has(state, wanted, list_as_any=as_any)
            )
        return self._default

    def _everybody(self) -> Picker:
        if self._any is None:
            self._any = self._over(_places(self._priorities))
        return self._any

    def _subset(self, key: Key) -> Picker:
        made = self._made.get(key)
        if made is None:
            members = self._members[key]
            if members.is_single:
                made = _One(min(members.places, key=lambda place: place[0])[2])
            else:
                made = self._over(members.places)
            self._made[key] = made
        return made

    def _over(self, places: Iterable[tuple[int, int, EndpointState]]) -> Picker:
        """Make the picker over some of the endpoints; localities stay, also those left without any."""
        chosen: list[list[list[EndpointState]]] = [[[] for _ in entry.localities] for entry in self._priorities]
        for number, place, state in places:
            chosen[number][place].append(state)
        return self._make(
            [
                PriorityHosts.of(
                    tuple(
                        LocalityHosts(entry.locality, self._weight(entry, len(states)), tuple(states), entry.count)
                        for entry, states in zip(priority.localities, groups, strict=True)
                    )
                )
                for priority, groups in zip(self._priorities, chosen, strict=True)
            ]
        )

    def _weight(self, locality: LocalityHosts, left: int) -> int:
        if not self._config.scales_locality_weight:
            return locality.weight
        return int(locality.weight * left / locality.count + 0.5) if locality.count else 0


def _selector_fallbacks(selectors: Sequence[SubsetSelector]) -> Mapping[tuple[str, ...], SubsetSelector]:
    """Return whose fallback counts, by the keys of the criteria.

    A selector whose keys are the first ones of an earlier selector, or all of them, has no fallback of its own: in
    Envoy the place of those keys is taken by then.
    """
    found: dict[tuple[str, ...], SubsetSelector] = {}
    taken: set[tuple[str, ...]] = set()
    for selector in selectors:
        if selector.keys not in taken:
            found[selector.keys] = selector
        taken.update(selector.keys[: end + 1] for end in range(len(selector.keys)))
    return found


def _places(priorities: Sequence[PriorityHosts]) -> Iterator[tuple[int, int, EndpointState]]:
    for number, priority in enumerate(priorities):
        for place, locality in enumerate(priority.localities):
            for state in locality.states:
                yield number, place, state


def _sort(config: SubsetConfig, priorities: Sequence[PriorityHosts], pause: Pause) -> dict[Key, _Members]:
    """Return who is in which subset. Of selectors with the same keys the first says whether it holds one endpoint."""
    found: dict[Key, _Members] = {}
    # Most endpoints share their metadata with others: what follows from it is worked out once. An entry holds the
    # metadata, so that its identity stays its own.
    known: dict[int, tuple[object, dict[Key, bool]]] = {}
    for count, (number, place, state) in enumerate(_places(priorities)):
        if not count % 256:
            pause()
        metadata = state.endpoint.metadata.get(LB_METADATA)
        if not metadata:
            continue
        entry = known.get(id(metadata))
        if entry is None:
            keys: dict[Key, bool] = {}
            for selector in config.selectors:
                for key in _combinations(selector.keys, metadata, list_as_any=config.list_as_any):
                    keys.setdefault(key, selector.is_single)
            entry = known[id(metadata)] = (metadata, keys)
        for key, is_single in entry[1].items():
            members = found.get(key)
            if members is None:
                members = found[key] = _Members(is_single=is_single)
            members.places.append((number, place, state))
    return found


def _combinations(keys: Sequence[str], metadata: Mapping[str, Any], *, list_as_any: bool) -> list[Key]:
    """Return the subsets of one selector that an endpoint is in.

    As in Envoy an empty list of the first key leaves the key out, while one of a later key leaves no subset.
    """
    found: list[Key] = []
    for key in keys:
        if key not in metadata:
            return []
        value = metadata[key]
        values = value if list_as_any and isinstance(value, tuple) else (value,)
        entries = [(key, comparable(item)) for item in values]
        found = [(*before, entry) for before in found or [()] for entry in entries][:MAX_COMBINATIONS]
    return [entry for entry in found if entry]


def _has(state: EndpointState, wanted: MatchCriteria, *, list_as_any: bool) -> bool:
    metadata = state.endpoint.metadata.get(LB_METADATA, {})
    for key, value in wanted.entries:
        if key not in metadata:
            return False
        own = metadata[key]
        if list_as_any and isinstance(own, tuple):
            if value not in [comparable(item) for item in own]:
                return False
        elif comparable(own) != value:
            return False
    return True
