"""Cases about subsets: which hosts a route's criteria leave, for all fallbacks, with the hosts told apart by a hash.

python -m differential.hosts --subsets --clusters 100 --requests 10 --seed 7
"""

from typing import Any

from differential.generate import TYPE, Json
from differential.hosts import HostGenerator

__all__ = ["SubsetGenerator"]

# Values that are equal in one language and not in another are among them.
_VALUES = {
    "version": ("v1", "v2", 1, "1", True),
    "stage": ("prod", "dev", 0, False),
    "zone": ("a", "b", ["a", "b"], ["b"], {"x": 1}, [], None),
}
_ASKED = {
    "version": ("v1", "v2", 1, "1", True, "v3"),
    "stage": ("prod", "dev", 0, False),
    "zone": ("a", "b", ["a", "b"], {"x": 1}, None),
    "other": ("x",),
}
_KEYS = tuple(_VALUES)
_SUBSET = f"{TYPE}envoy.extensions.load_balancing_policies.subset.v3.Subset"


class SubsetGenerator(HostGenerator):
    """Makes clusters with subsets, and routes with criteria."""

    # Each subset has a ring or table of its own.
    primes = (3, 11, 101)
    ring_sizes = (1, 10, 50)
    has_default_sizes = False
    fallbacks: tuple[str, ...] = ("NO_FALLBACK", "ANY_ENDPOINT", "DEFAULT_SUBSET")

    def _metadata(self, values: Any, chance: float) -> Json:
        return {key: self._random.choice(values[key]) for key in values if self._maybe(chance)}

    def _endpoint(self) -> Json:
        result = super()._endpoint()
        if self._maybe(0.9):
            known = result.setdefault("metadata", {}).setdefault("filter_metadata", {}).setdefault("envoy.lb", {})
            known |= self._metadata(_VALUES, 0.8)
        return result

    def cluster(self, number: int | str) -> Json:
        result = super().cluster(number)
        subsets: Json = {
            "fallback_policy": self._random.choice(self.fallbacks),
            "subset_selectors": [self._selector() for _ in range(self._random.choice((1, 2, 3, 4)))],
        }
        if self._maybe(0.6):
            subsets["default_subset"] = self._metadata(_VALUES, 0.3)
        for flag, chance in (
            ("locality_weight_aware", 0.5),
            ("scale_locality_weight", 0.5),
            ("panic_mode_any", 0.4),
            ("list_as_any", 0.5),
        ):
            if self._maybe(chance):
                subsets[flag] = True
        if self._maybe(0.4):
            subsets["metadata_fallback_policy"] = "FALLBACK_LIST"
        if "load_balancing_policy" not in result:
            if "locality_weighted_lb_config" not in result["common_lb_config"]:
                subsets.pop("locality_weight_aware", None)  # refused
            return {**result, "lb_subset_config": subsets}
        if self._maybe(0.5):
            subsets["allow_redundant_keys"] = True
        outer = {"@type": _SUBSET, "subset_lb_policy": result["load_balancing_policy"], **subsets}
        listed = [{"typed_extension_config": {"name": "subset", "typed_config": outer}}]
        return {**result, "load_balancing_policy": {"policies": listed}}

    def _selector(self) -> Json:
        keys = self._random.sample(_KEYS, self._random.choice((1, 1, 2, 3)))
        result: Json = {"keys": keys}
        policy = self._random.choice(("NOT_DEFINED", "NO_FALLBACK", "ANY_ENDPOINT", "DEFAULT_SUBSET", "KEYS_SUBSET"))
        if policy != "KEYS_SUBSET":
            result["fallback_policy"] = policy
        elif len(keys) > 1:
            fewer = self._random.sample(keys, self._random.randrange(1, len(keys)))
            result |= {"fallback_policy": policy, "fallback_keys_subset": fewer}
        if self._maybe(0.15):
            result["single_host_per_subset"] = True
        return result

    def _criteria(self) -> Json:
        asked = self._metadata(_ASKED, 0.45)
        if self._maybe(0.3):
            listed: Any = [self._metadata(_ASKED, 0.4) for _ in range(self._random.choice((0, 1, 2, 3)))]
            asked["fallback_list"] = listed if self._maybe(0.9) else "none"
        return {"filter_metadata": {"envoy.lb": asked}}

    def route(self, cluster: str) -> Json:
        result = super().route(cluster)
        action = result["route"]
        if self._maybe(0.9):
            action["metadata_match"] = self._criteria()
        if self._maybe(0.4):
            entry = {"name": action.pop("cluster"), "weight": 1, "metadata_match": self._criteria()}
            action["weighted_clusters"] = {"clusters": [entry]}
        return result
