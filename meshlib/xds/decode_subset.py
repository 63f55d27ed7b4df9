"""Subsets: how a cluster makes them (`lb_subset_config`, or the extension), and which one a route asks for."""

from typing import Any, Final

from meshlib.model.subset import LB_METADATA, MatchCriteria, SubsetConfig, SubsetFallback, SubsetSelector
from meshlib.xds.decode_common import cover, join, struct
from meshlib.xds.problems import Problems

__all__ = ["SUBSET_TYPE", "match_criteria", "subset_config"]

SUBSET_TYPE: Final = "envoy.extensions.load_balancing_policies.subset.v3.Subset"

_USED: Final = frozenset(
    {
        "fallback_policy",
        "default_subset",
        "subset_selectors",
        "allow_redundant_keys",
        "locality_weight_aware",
        "scale_locality_weight",
        "panic_mode_any",
        "list_as_any",
        "metadata_fallback_policy",
        "subset_lb_policy",
    }
)
_SELECTOR_USED: Final = frozenset({"keys", "fallback_policy", "fallback_keys_subset", "single_host_per_subset"})
_FALLBACKS: Final = {
    0: SubsetFallback.NO_FALLBACK,
    1: SubsetFallback.ANY_ENDPOINT,
    2: SubsetFallback.DEFAULT_SUBSET,
}
_SELECTOR_FALLBACKS: Final = {
    0: SubsetFallback.NOT_DEFINED,
    1: SubsetFallback.NO_FALLBACK,
    2: SubsetFallback.ANY_ENDPOINT,
    3: SubsetFallback.DEFAULT_SUBSET,
    4: SubsetFallback.KEYS_SUBSET,
}


def match_criteria(message: Any, path: str, problems: Problems) -> MatchCriteria | None:
    """Decode the `metadata_match` of a route or of one of its weighted clusters."""
    if not message.HasField("metadata_match"):
        return None
    place = join(path, "metadata_match")
    known = frozenset({"filter_metadata"})
    cover(message.metadata_match, place, problems, used=known, harmless=frozenset({"typed_filter_metadata"}))
    given = message.metadata_match.filter_metadata
    for name in sorted(given):
        if name != LB_METADATA:
            problems.unused(f'{place}.filter_metadata["{name}"]')
    if LB_METADATA not in given:
        problems.unused(place)
        return None
    return MatchCriteria.of(struct(given[LB_METADATA]))


def subset_config(message: Any, path: str, problems: Problems) -> SubsetConfig:
    """Decode a Cluster.LbSubsetConfig or the extension Subset, but for the policy inside."""
    cover(message, path, problems, used=_USED, harmless=frozenset())
    selectors = tuple(
        _selector(selector, f"{join(path, 'subset_selectors')}[{index}]", problems)
        for index, selector in enumerate(message.subset_selectors)
    )
    # The cluster's own message has no such field.
    allow_redundant_keys = getattr(message, "allow_redundant_keys", False)
    if allow_redundant_keys:
        # Envoy has the longer ones first then: the one with the most keys of a route counts.
        selectors = tuple(sorted(selectors, key=lambda selector: -len(selector.keys)))
    return SubsetConfig(
        selectors,
        fallback=_FALLBACKS.get(message.fallback_policy, SubsetFallback.NO_FALLBACK),
        default_subset=MatchCriteria.of(struct(message.default_subset)),
        locality_weight_aware=message.locality_weight_aware,
        scales_locality_weight=message.scale_locality_weight,
        panic_mode_any=message.panic_mode_any,
        list_as_any=message.list_as_any,
        allow_redundant_keys=allow_redundant_keys,
        uses_fallback_list=message.metadata_fallback_policy == 1,
    )


def _selector(message: Any, path: str, problems: Problems) -> SubsetSelector:
    cover(message, path, problems, used=_SELECTOR_USED, harmless=frozenset())
    keys, fewer = set(message.keys), set(message.fallback_keys_subset)
    fallback = _SELECTOR_FALLBACKS.get(message.fallback_policy, SubsetFallback.NOT_DEFINED)
    place = join(path, "fallback_keys_subset")
    if fallback is not SubsetFallback.KEYS_SUBSET:
        if fewer:
            problems.error(place, "is only for the fallback policy KEYS_SUBSET")
    elif not fewer:
        problems.error(place, "must not be empty with the fallback policy KEYS_SUBSET")
    elif not fewer < keys:
        problems.error(place, "must be some of the keys, and not all")
    return SubsetSelector(tuple(sorted(keys)), fallback, tuple(sorted(fewer)), is_single=message.single_host_per_subset)
