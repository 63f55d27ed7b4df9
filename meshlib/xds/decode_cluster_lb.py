"""How a cluster chooses endpoints: `load_balancing_policy`, else `lb_policy`, and `common_lb_config`."""

from dataclasses import dataclass, field, replace
from typing import Any, Final

from meshlib.model.endpoint import HealthStatus
from meshlib.model.lb_policy import LbPolicy, Random, RoundRobin, ZoneAware
from meshlib.model.subset import SubsetConfig
from meshlib.xds.decode_common import cover, join
from meshlib.xds.decode_hashing_lb import common_hashing, maglev_policy, ring_hash_policy
from meshlib.xds.decode_lb_list import least_request, policy_of_list, slow_start, zone_aware
from meshlib.xds.decode_matcher import percent
from meshlib.xds.decode_subset import subset_config
from meshlib.xds.problems import Problems

__all__ = ["Balancing", "decode_balancing", "override_statuses"]

STRICT_DNS: Final = 1
BY_LIST: Final = 7
"""LOAD_BALANCING_POLICY_CONFIG."""

_COMMON_HARMLESS: Final = frozenset(
    {
        "update_merge_window",  # a view is made of a whole update anyway
        "close_connections_on_host_set_change",
    }
)


@dataclass(frozen=True, slots=True)
class Balancing:
    """Attributes:
    locality_weighted: Locality weights are honoured.
    panic_threshold_percent: 0-100.
    subsets: None: there are none.
    fails_on_panic: A priority in panic takes no requests.
    named_by: Headers by which a request names its endpoints.
    zone_aware: How requests keep to their own zone.
    """

    policy: LbPolicy
    locality_weighted: bool = False
    subsets: SubsetConfig | None = None
    fails_on_panic: bool = False
    panic_threshold_percent: float = 50.0
    named_by: tuple[str, ...] = ()
    zone_aware: ZoneAware = field(default_factory=ZoneAware)


def decode_balancing(message: Any, path: str, problems: Problems, *, is_aggregate: bool) -> Balancing:
    """Decode everything about balancing of a Cluster message.

    An aggregate cluster has no policy of its own (A75); its clusters have theirs.
    """
    common, place = message.common_lb_config, join(path, "common_lb_config")
    used = {"healthy_panic_threshold", "locality_weighted_lb_config", "zone_aware_lb_config"}
    used |= {"consistent_hashing_lb_config", "override_host_status", "ignore_new_hosts_until_first_hc"}
    cover(common, place, problems, used=frozenset(used), harmless=_COMMON_HARMLESS)
    zones = zone_aware(common, place, problems)
    fails = common.zone_aware_lb_config.fail_traffic_on_panic
    subsets = _subsets(message, path, problems)
    if common.consistent_hashing_lb_config.use_hostname_for_hashing and message.type != STRICT_DNS:
        # Envoy's rule for this field; the extensions' own is free.
        named = join(place, "consistent_hashing_lb_config.use_hostname_for_hashing")
        problems.error(named, "is only for clusters of type STRICT_DNS")
    if message.HasField("load_balancing_policy"):
        listed = policy_of_list(message.load_balancing_policy, join(path, "load_balancing_policy"), problems)
        result = Balancing(
            listed.policy,
            listed.locality_weighted,
            subsets=listed.subsets,
            fails_on_panic=listed.fails_on_panic,
            named_by=listed.named_by,
            zone_aware=listed.zone_aware,
        )
        if config := message.WhichOneof("lb_config"):
            problems.unused(join(path, config))
        if common.HasField("consistent_hashing_lb_config"):
            problems.unused(join(place, "consistent_hashing_lb_config"))
    elif is_aggregate:
        if message.lb_policy == BY_LIST:
            problems.error(join(path, "load_balancing_policy"), "is required with LOAD_BALANCING_POLICY_CONFIG")
        result = Balancing(RoundRobin())
    else:
        weighted = common.HasField("locality_weighted_lb_config")
        result = Balancing(_enum_policy(message, path, problems), weighted, subsets, fails, zone_aware=zones)
    if common.HasField("healthy_panic_threshold"):
        result = replace(result, panic_threshold_percent=percent(common.healthy_panic_threshold))
    return result


def override_statuses(common: Any) -> frozenset[HealthStatus] | None:
    """Decode `override_host_status`; None: it is not given."""
    if not common.HasField("override_host_status"):
        return None
    # Numbers that are none have been reported by the constraints.
    given = frozenset(common.override_host_status.statuses)
    return frozenset(status for status in HealthStatus if status.value in given)


def _subsets(message: Any, path: str, problems: Problems) -> SubsetConfig | None:
    """Decode `lb_subset_config`; without selectors it has no effect."""
    place = join(path, "lb_subset_config")
    if not message.HasField("lb_subset_config"):
        return None
    if message.HasField("load_balancing_policy"):
        problems.error(place, "cannot be given together with load_balancing_policy (which has a policy for subsets)")
        return None
    weighted = message.common_lb_config.HasField("locality_weighted_lb_config")
    if message.lb_subset_config.locality_weight_aware and not weighted:
        problems.error(join(place, "locality_weight_aware"), "needs common_lb_config.locality_weighted_lb_config")
    if not message.lb_subset_config.subset_selectors:
        problems.unused(place)
        return None
    return subset_config(message.lb_subset_config, place, problems)


def _enum_policy(message: Any, path: str, problems: Problems) -> LbPolicy:
    config = message.WhichOneof("lb_config")
    name = message.DESCRIPTOR.enum_types_by_name["LbPolicy"].values_by_number.get(message.lb_policy)
    policy: LbPolicy = RoundRobin()
    wanted = None
    match message.lb_policy:
        case 0:  # ROUND_ROBIN
            wanted = "round_robin_lb_config"
            policy = RoundRobin(slow_start(message.round_robin_lb_config, join(path, wanted), problems))
        case 1:  # LEAST_REQUEST
            wanted = "least_request_lb_config"
            policy = least_request(message.least_request_lb_config, join(path, wanted), problems)
        case 2:  # RING_HASH
            wanted = "ring_hash_lb_config"
            hashing = common_hashing(message.common_lb_config, path, problems)
            policy = ring_hash_policy(message.ring_hash_lb_config, join(path, wanted), problems, hashing)
        case 3:  # RANDOM
            policy = Random()
        case 5:  # MAGLEV
            wanted = "maglev_lb_config"
            hashing = common_hashing(message.common_lb_config, path, problems)
            policy = maglev_policy(message.maglev_lb_config, join(path, wanted), problems, hashing)
        case 7:  # LOAD_BALANCING_POLICY_CONFIG
            problems.error(join(path, "load_balancing_policy"), "is required with LOAD_BALANCING_POLICY_CONFIG")
        case _:
            problems.error(join(path, "lb_policy"), f"{name.name if name else message.lb_policy} is not supported")
    if config is not None and config != wanted:
        problems.unused(join(path, config))
    if message.lb_policy not in (2, 5) and message.common_lb_config.HasField("consistent_hashing_lb_config"):
        problems.unused(join(path, "common_lb_config.consistent_hashing_lb_config"))
    return policy
