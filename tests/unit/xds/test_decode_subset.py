from typing import Any

import pytest

from meshlib.model.cluster import Cluster, Maglev, RoundRobin
from meshlib.model.route import RouteConfiguration, WeightedClusters
from meshlib.model.subset import MatchCriteria, SubsetFallback, SubsetSelector
from meshlib.protos import from_dict
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import CDS, RDS

SUBSET = "type.googleapis.com/envoy.extensions.load_balancing_policies.subset.v3.Subset"
MAGLEV = "type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev"
SELECTORS: list[dict[str, Any]] = [{"keys": ["version"]}]


def cluster(**fields: Any) -> Decoded:
    message = {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}, **fields}
    return decode_resource(CDS, from_dict("envoy.config.cluster.v3.Cluster", message).SerializeToString())


def accepted(**fields: Any) -> Cluster:
    decoded = cluster(**fields)
    assert isinstance(decoded.value, Cluster), decoded.errors
    return decoded.value


def listed(config: dict[str, Any]) -> dict[str, Any]:
    return {"policies": [{"typed_extension_config": {"name": "p", "typed_config": config}}]}


def test_subset_config_of_a_cluster() -> None:
    config = {
        "fallback_policy": "DEFAULT_SUBSET",
        "default_subset": {"stage": "prod"},
        "subset_selectors": [
            {"keys": ["version", "stage"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["stage"]},
            {"keys": ["version"], "single_host_per_subset": True},
        ],
        "panic_mode_any": True,
        "list_as_any": True,
        "metadata_fallback_policy": "FALLBACK_LIST",
    }
    subsets = accepted(lb_subset_config=config).subsets
    assert subsets is not None
    assert SubsetFallback.DEFAULT_SUBSET is subsets.fallback
    assert MatchCriteria.of({"stage": "prod"}) == subsets.default_subset
    both = SubsetSelector(("stage", "version"), SubsetFallback.KEYS_SUBSET, ("stage",))
    assert (both, SubsetSelector(("version",), is_single=True)) == subsets.selectors
    assert subsets.panic_mode_any
    assert subsets.list_as_any
    assert subsets.uses_fallback_list
    assert not subsets.allow_redundant_keys


def test_subset_config_without_selectors_has_no_effect_and_is_told() -> None:
    decoded = cluster(lb_subset_config={"fallback_policy": "ANY_ENDPOINT"})
    assert isinstance(decoded.value, Cluster)
    assert decoded.value.subsets is None
    assert any("lb_subset_config" in unused for unused in map(str, decoded.unused))


def test_subset_policy_has_a_policy_inside() -> None:
    inner = listed({"@type": MAGLEV, "table_size": 101, "locality_weighted_lb_config": {}})
    config = {"@type": SUBSET, "subset_selectors": SELECTORS, "subset_lb_policy": inner, "allow_redundant_keys": True}
    found = accepted(load_balancing_policy=listed(config))
    assert Maglev(101) == found.lb_policy
    assert found.locality_weighted
    assert found.subsets is not None
    assert found.subsets.allow_redundant_keys


def test_longer_selectors_come_first_when_redundant_keys_are_allowed() -> None:
    inner = listed({"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin"})
    selectors = [{"keys": ["b"]}, {"keys": ["a"]}, {"keys": ["a", "b"]}]
    config = {"@type": SUBSET, "subset_selectors": selectors, "subset_lb_policy": inner, "allow_redundant_keys": True}
    found = accepted(load_balancing_policy=listed(config))
    assert RoundRobin() == found.lb_policy
    assert found.subsets is not None
    assert [("a", "b"), ("b",), ("a",)] == [selector.keys for selector in found.subsets.selectors]


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ({"keys": ["a"], "fallback_keys_subset": ["a"]}, "only for the fallback policy KEYS_SUBSET"),
        ({"keys": ["a", "b"], "fallback_policy": "KEYS_SUBSET"}, "must not be empty"),
        ({"keys": ["a"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["a"]}, "not all"),
        ({"keys": ["a"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["b"]}, "some of the keys"),
    ],
)
def test_selectors_that_envoy_refuses(selector: dict[str, Any], reason: str) -> None:
    decoded = cluster(lb_subset_config={"subset_selectors": [selector]})
    assert any(reason in error for error in map(str, decoded.errors)), decoded.errors


def test_subset_config_beside_a_list_of_policies_is_refused() -> None:
    policies = listed({"@type": MAGLEV})
    decoded = cluster(load_balancing_policy=policies, lb_subset_config={"subset_selectors": SELECTORS})
    assert any("lb_subset_config" in error for error in map(str, decoded.errors))


def test_awareness_of_locality_weights_needs_locality_weights() -> None:
    config = {"subset_selectors": SELECTORS, "locality_weight_aware": True}
    assert cluster(lb_subset_config=config).errors
    assert accepted(lb_subset_config=config, common_lb_config={"locality_weighted_lb_config": {}})


def route(action: dict[str, Any]) -> Decoded:
    entry = {"match": {"prefix": "/"}, "route": action}
    message = {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [entry]}]}
    return decode_resource(RDS, from_dict("envoy.config.route.v3.RouteConfiguration", message).SerializeToString())


def criteria(**fields: Any) -> dict[str, Any]:
    return {"filter_metadata": {"envoy.lb": fields}}


def test_metadata_match_of_routes_and_weighted_clusters() -> None:
    entry = {"name": "c", "weight": 1, "metadata_match": criteria(version="v2")}
    decoded = route({"weighted_clusters": {"clusters": [entry]}, "metadata_match": criteria(version="v1", n=1)})
    assert isinstance(decoded.value, RouteConfiguration), decoded.errors
    action: Any = decoded.value.virtual_hosts[0].routes[0].action
    assert MatchCriteria.of({"version": "v1", "n": 1.0}) == action.metadata_match
    assert isinstance(action.cluster, WeightedClusters)
    assert MatchCriteria.of({"version": "v2"}) == action.cluster.clusters[0].metadata_match


def test_other_metadata_is_no_criteria_and_is_told() -> None:
    decoded = route({"cluster": "c", "metadata_match": {"filter_metadata": {"other": {"a": "b"}}}})
    assert isinstance(decoded.value, RouteConfiguration)
    action: Any = decoded.value.virtual_hosts[0].routes[0].action
    assert action.metadata_match is None
    assert any("other" in unused for unused in map(str, decoded.unused))
