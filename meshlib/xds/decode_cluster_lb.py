"""How a cluster chooses endpoints: `load_balancing_policy`, else `lb_policy`, and `common_lb_config`."""

from dataclasses import dataclass, replace
from typing import Any, Final

from meshlib.model.cluster import LbPolicy, LeastRequest, Random, RoundRobin
from meshlib.model.endpoint import HealthStatus
from meshlib.model.subset import SubsetConfig
from meshlib.xds.decode_common import any_type, cover, join, unpack, wrapped
from meshlib.xds.decode_hashing_lb import (
    HASHING_TYPES,
    check_hostname_hashing,
    hashing_extension,
    maglev_policy,
    ring_hash_policy,
)
from meshlib.xds.decode_matcher import percent
from meshlib.xds.decode_subset import SUBSET_TYPE, subset_config
from meshlib.xds.problems import Problems

__all__ = ["Balancing", "decode_balancing", "override_statuses"]

_POLICIES: Final = "envoy.extensions.load_balancing_policies."
ROUND_ROBIN_TYPE: Final = f"{_POLICIES}round_robin.v3.RoundRobin"
LEAST_REQUEST_TYPE: Final = f"{_POLICIES}least_request.v3.LeastRequest"
RANDOM_TYPE: Final = f"{_POLICIES}random.v3.Random"
WRR_LOCALITY_TYPE: Final = f"{_POLICIES}wrr_locality.v3.WrrLocality"

NESTING_TYPES: Final = frozenset({WRR_LOCALITY_TYPE, SUBSET_TYPE})
_TYPES: Final = HASHING_TYPES | NESTING_TYPES | {ROUND_ROBIN_TYPE, LEAST_REQUEST_TYPE, RANDOM_TYPE}

STRICT_DNS: Final = 1

MAX_DEPTH: Final = 16
"""gRPC's limit for policies inside of policies."""

_COMMON_HARMLESS: Final = frozenset(
    {
        "update_merge_window",  # a view is made of a whole update anyway
        "ignore_new_hosts_until_first_hc",  # about active health checks, which are refused
        "close_connections_on_host_set_change",
    }
)


@dataclass(frozen=True, slots=True)
class Balancing:
    """Attributes:
    locality_weighted: Locality weights are honoured.
    panic_threshold_percent: 0-100.
    subsets: None: there are none.
    """

    policy: LbPolicy
    locality_weighted: bool = False
    panic_threshold_percent: float = 50.0
    subsets: SubsetConfig | None = None


def decode_balancing(message: Any, path: str, problems: Problems, *, is_aggregate: bool) -> Balancing:
    """Decode everything about balancing of a Cluster message.

    An aggregate cluster has no policy of its own (A75); its clusters have theirs.
    """
    common, place = message.common_lb_config, join(path, "common_lb_config")
    used = {"healthy_panic_threshold", "locality_weighted_lb_config", "zone_aware_lb_config"}
    used |= {"consistent_hashing_lb_config", "override_host_status"}
    cover(common, place, problems, used=frozenset(used), harmless=_COMMON_HARMLESS)
    _check_zone_aware(common, place, problems)
    subsets = _subsets(message, path, problems)
    if common.consistent_hashing_lb_config.use_hostname_for_hashing and message.type != STRICT_DNS:
        # Envoy's rule for this field; the extensions' own is free.
        named = join(place, "consistent_hashing_lb_config.use_hostname_for_hashing")
        problems.error(named, "is only for clusters of type STRICT_DNS")
    if message.HasField("load_balancing_policy"):
        result = _extensions(message.load_balancing_policy, join(path, "load_balancing_policy"), problems, 0)
        if config := message.WhichOneof("lb_config"):
            problems.unused(join(path, config))
        if common.HasField("consistent_hashing_lb_config"):
            problems.unused(join(place, "consistent_hashing_lb_config"))
    elif is_aggregate:
        result = Balancing(RoundRobin())
    else:
        weighted = common.HasField("locality_weighted_lb_config")
        result = Balancing(_enum_policy(message, path, problems), weighted, subsets=subsets)
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
    if not message.lb_subset_config.subset_selectors:
        problems.unused(place)
        return None
    weighted = message.common_lb_config.HasField("locality_weighted_lb_config")
    if message.lb_subset_config.locality_weight_aware and not weighted:
        problems.error(join(place, "locality_weight_aware"), "needs common_lb_config.locality_weighted_lb_config")
    return subset_config(message.lb_subset_config, place, problems)


def _enum_policy(message: Any, path: str, problems: Problems) -> LbPolicy:
    config = message.WhichOneof("lb_config")
    name = message.DESCRIPTOR.enum_types_by_name["LbPolicy"].values_by_number.get(message.lb_policy)
    policy: LbPolicy = RoundRobin()
    wanted = None
    match message.lb_policy:
        case 0:  # ROUND_ROBIN
            wanted = "round_robin_lb_config"
            _check_slow_start(message.round_robin_lb_config, join(path, wanted), problems)
        case 1:  # LEAST_REQUEST
            wanted = "least_request_lb_config"
            policy = _least_request(message.least_request_lb_config, join(path, wanted), problems)
        case 2:  # RING_HASH
            wanted = "ring_hash_lb_config"
            uses_hostname = check_hostname_hashing(message.common_lb_config, path, problems)
            policy = ring_hash_policy(
                message.ring_hash_lb_config, join(path, wanted), problems, uses_hostname=uses_hostname
            )
        case 3:  # RANDOM
            policy = Random()
        case 5:  # MAGLEV
            wanted = "maglev_lb_config"
            uses_hostname = check_hostname_hashing(message.common_lb_config, path, problems)
            policy = maglev_policy(message.maglev_lb_config, join(path, wanted), problems, uses_hostname=uses_hostname)
        case 7:  # LOAD_BALANCING_POLICY_CONFIG
            problems.error(join(path, "load_balancing_policy"), "is required with LOAD_BALANCING_POLICY_CONFIG")
        case _:
            problems.error(join(path, "lb_policy"), f"{name.name if name else message.lb_policy} is not supported")
    if config is not None and config != wanted:
        problems.unused(join(path, config))
    if message.lb_policy not in (2, 5) and message.common_lb_config.HasField("consistent_hashing_lb_config"):
        problems.unused(join(path, "common_lb_config.consistent_hashing_lb_config"))
    return policy


def _extensions(message: Any, path: str, problems: Problems, depth: int) -> Balancing:
    """Take the first policy of a list that meshlib has, as Envoy and gRPC (A52) do."""
    unknown = []
    for index, item in enumerate(message.policies):
        packed = item.typed_extension_config.typed_config
        place = f"{join(path, 'policies')}[{index}].typed_extension_config.typed_config"
        kind = any_type(packed)
        if kind not in _TYPES:
            unknown.append(kind or item.typed_extension_config.name or "(none)")
            continue
        config = unpack(packed, place, problems)
        if config is None:
            return Balancing(RoundRobin())
        if kind in NESTING_TYPES:
            if depth >= MAX_DEPTH:
                problems.error(place, f"policies are nested more than {MAX_DEPTH} deep")
                return Balancing(RoundRobin())
            if kind == SUBSET_TYPE:
                return _subset_extension(config, place, problems, depth)
            inner = _extensions(
                config.endpoint_picking_policy, join(place, "endpoint_picking_policy"), problems, depth + 1
            )
            return replace(inner, locality_weighted=True)
        if kind in HASHING_TYPES:
            hashing = hashing_extension(config, place, problems)
            return Balancing(hashing, config.HasField("locality_weighted_lb_config"))
        return _extension(kind, config, place, problems)
    problems.error(path, f"no supported policy among: {', '.join(unknown) or '(empty list)'}")
    return Balancing(RoundRobin())


def _subset_extension(config: Any, path: str, problems: Problems, depth: int) -> Balancing:
    subsets = subset_config(config, path, problems)
    inner = _extensions(config.subset_lb_policy, join(path, "subset_lb_policy"), problems, depth + 1)
    if inner.subsets is not None:
        problems.error(join(path, "subset_lb_policy"), "subsets inside of subsets are not supported")
    return replace(inner, subsets=subsets)


def _extension(kind: str, config: Any, path: str, problems: Problems) -> Balancing:
    weighted = config.locality_lb_config.HasField("locality_weighted_lb_config")
    _check_zone_aware(config.locality_lb_config, join(path, "locality_lb_config"), problems)
    if kind == RANDOM_TYPE:
        cover(config, path, problems, used=frozenset({"locality_lb_config"}), harmless=frozenset())
        return Balancing(Random(), weighted)
    if kind == ROUND_ROBIN_TYPE:
        cover(config, path, problems, used=frozenset({"locality_lb_config", "slow_start_config"}), harmless=frozenset())
        _check_slow_start(config, path, problems)
        return Balancing(RoundRobin(), weighted)
    if config.enable_full_scan.value or config.selection_method:
        problems.error(path, "a full scan is not supported (only N_CHOICES)")
    return Balancing(_least_request(config, path, problems), weighted)


def _least_request(message: Any, path: str, problems: Problems) -> LeastRequest:
    """Decode the enum's LeastRequestLbConfig or the extension's LeastRequest."""
    used = {"choice_count", "active_request_bias", "slow_start_config"}
    used |= {"locality_lb_config", "enable_full_scan", "selection_method"}
    cover(message, path, problems, used=frozenset(used), harmless=frozenset())
    _check_slow_start(message, path, problems)
    choices = wrapped(message, "choice_count")
    bias = 1.0
    if message.HasField("active_request_bias"):
        bias = message.active_request_bias.default_value
        if not 0 <= bias < float("inf"):
            problems.error(join(path, "active_request_bias.default_value"), "must be at least 0")
            bias = 1.0
        if message.active_request_bias.runtime_key:
            problems.unused(join(path, "active_request_bias.runtime_key"))
    return LeastRequest(2 if choices is None else choices, bias)


def _check_slow_start(message: Any, path: str, problems: Problems) -> None:
    config = message.slow_start_config
    if config.slow_start_window.seconds or config.slow_start_window.nanos:
        problems.error(join(path, "slow_start_config"), "is not supported")
    elif message.HasField("slow_start_config"):
        problems.unused(join(path, "slow_start_config"))


def _check_zone_aware(message: Any, path: str, problems: Problems) -> None:
    """Zone aware routing needs the hosts of our own cluster, which a client does not have: Envoy leaves it off then."""
    if not message.HasField("zone_aware_lb_config"):
        return
    place = join(path, "zone_aware_lb_config")
    if message.zone_aware_lb_config.fail_traffic_on_panic:
        problems.error(join(place, "fail_traffic_on_panic"), "is not supported")
    else:
        problems.unused(place)
