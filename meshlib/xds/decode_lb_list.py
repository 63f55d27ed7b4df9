"""`load_balancing_policy`: a list of policies of which the first that meshlib has is taken, and what each says.

A policy comes as its own message, or as a `TypedStruct` that stands for it; one whose name the application has
registered may come as any other message too. What is inside of a policy (`WrrLocality`, `RandomSubsetting`) is a list
again.

Source: gRFC A52; Envoy, `LoadBalancerConfig`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import DecodeError

from meshlib.model.custom_policy import make_lb_policy
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    CustomPolicy,
    LbPolicy,
    LeastRequest,
    PeakEwma,
    PickFirst,
    Random,
    RandomSubsetting,
    RoundRobin,
    SlowStart,
    ZoneAware,
)
from meshlib.model.subset import SubsetConfig
from meshlib.protos import from_any
from meshlib.xds.decode_common import any_type, cover, duration, is_typed_struct, join, struct, unpack, wrapped
from meshlib.xds.decode_hashing_lb import HASHING_TYPES, hashing_extension
from meshlib.xds.decode_matcher import percent, runtime_keys
from meshlib.xds.decode_subset import SUBSET_TYPE, subset_config
from meshlib.xds.problems import Problems

__all__ = ["ListedPolicy", "is_utilization", "least_request", "policy_of_list", "slow_start", "zone_aware"]

_POLICIES: Final = "envoy.extensions.load_balancing_policies."
ROUND_ROBIN_TYPE: Final = f"{_POLICIES}round_robin.v3.RoundRobin"
LEAST_REQUEST_TYPE: Final = f"{_POLICIES}least_request.v3.LeastRequest"
RANDOM_TYPE: Final = f"{_POLICIES}random.v3.Random"
WRR_LOCALITY_TYPE: Final = f"{_POLICIES}wrr_locality.v3.WrrLocality"
CLIENT_SIDE_TYPE: Final = f"{_POLICIES}client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"
PICK_FIRST_TYPE: Final = f"{_POLICIES}pick_first.v3.PickFirst"
SUBSETTING_TYPE: Final = f"{_POLICIES}random_subsetting.v3.RandomSubsetting"
PEAK_EWMA_TYPE: Final = f"{_POLICIES}peak_ewma.v3alpha.PeakEwma"
OVERRIDE_HOST_TYPE: Final = f"{_POLICIES}override_host.v3.OverrideHost"
OWN_PEAK_EWMA: Final = "meshlib.PeakEwma"
"""The same policy as a TypedStruct, with the options that Envoy's message does not have."""

NESTING_TYPES: Final = frozenset({WRR_LOCALITY_TYPE, SUBSET_TYPE, SUBSETTING_TYPE, OVERRIDE_HOST_TYPE})
_TYPES: Final = (
    HASHING_TYPES
    | NESTING_TYPES
    | {
        ROUND_ROBIN_TYPE,
        LEAST_REQUEST_TYPE,
        RANDOM_TYPE,
        CLIENT_SIDE_TYPE,
        PICK_FIRST_TYPE,
        PEAK_EWMA_TYPE,
    }
)

MAX_DEPTH: Final = 16
"""gRPC's limit for policies inside of policies."""
MIN_UPDATE_S: Final = 0.1
"""A58's floor."""


@dataclass(frozen=True, slots=True)
class ListedPolicy:
    """Attributes:
    locality_weighted: Locality weights are honoured.
    subsets: None: there are none.
    fails_on_panic: A priority in panic takes no requests.
    named_by: Headers by which a request names its endpoints.
    zone_aware: How requests keep to their own zone.
    """

    policy: LbPolicy
    locality_weighted: bool = False
    subsets: SubsetConfig | None = None
    fails_on_panic: bool = False
    zone_aware: ZoneAware = field(default_factory=ZoneAware)
    named_by: tuple[str, ...] = ()


_DEFAULT: Final = ListedPolicy(RoundRobin())


def policy_of_list(message: Any, path: str, problems: Problems, depth: int = 0) -> ListedPolicy:
    """Decode a LoadBalancingPolicy."""
    unknown = []
    for index, item in enumerate(message.policies):
        packed = item.typed_extension_config.typed_config
        place = f"{join(path, 'policies')}[{index}].typed_extension_config.typed_config"
        kind = any_type(packed)
        if kind in _TYPES:
            config = unpack(packed, place, problems)
            return _DEFAULT if config is None else _known(kind, config, place, problems, depth)
        found = _unpacked(kind, packed, place, problems)
        if found is not None:
            return ListedPolicy(found)
        unknown.append(kind or item.typed_extension_config.name or "(none)")
    problems.error(path, f"no supported policy among: {', '.join(unknown) or '(empty list)'}")
    return _DEFAULT


def _known(kind: str, config: Any, path: str, problems: Problems, depth: int) -> ListedPolicy:
    if kind in NESTING_TYPES:
        if depth >= MAX_DEPTH:
            problems.error(path, f"policies are nested more than {MAX_DEPTH} deep")
            return _DEFAULT
        return _nesting(kind, config, path, problems, depth)
    if kind in HASHING_TYPES:
        return ListedPolicy(hashing_extension(config, path, problems), config.HasField("locality_weighted_lb_config"))
    if kind == CLIENT_SIDE_TYPE:
        return ListedPolicy(_client_side(config, path, problems))
    if kind == PICK_FIRST_TYPE:
        cover(config, path, problems, used=frozenset({"shuffle_address_list"}), harmless=frozenset())
        return ListedPolicy(PickFirst(config.shuffle_address_list))
    if kind == PEAK_EWMA_TYPE:
        return ListedPolicy(_contributed_ewma(config, path, problems))
    weighted = config.locality_lb_config.HasField("locality_weighted_lb_config")
    zones = zone_aware(config.locality_lb_config, join(path, "locality_lb_config"), problems)
    fails = config.locality_lb_config.zone_aware_lb_config.fail_traffic_on_panic
    if kind == RANDOM_TYPE:
        cover(config, path, problems, used=frozenset({"locality_lb_config"}), harmless=frozenset())
        return ListedPolicy(Random(), weighted, fails_on_panic=fails, zone_aware=zones)
    if kind == ROUND_ROBIN_TYPE:
        cover(config, path, problems, used=frozenset({"locality_lb_config", "slow_start_config"}), harmless=frozenset())
        return ListedPolicy(
            RoundRobin(slow_start(config, path, problems)), weighted, fails_on_panic=fails, zone_aware=zones
        )
    return ListedPolicy(least_request(config, path, problems), weighted, fails_on_panic=fails, zone_aware=zones)


def _nesting(kind: str, config: Any, path: str, problems: Problems, depth: int) -> ListedPolicy:
    """Decode a policy that has a list of its own inside."""
    if kind == SUBSET_TYPE:
        subsets = subset_config(config, path, problems)
        inner = policy_of_list(config.subset_lb_policy, join(path, "subset_lb_policy"), problems, depth + 1)
        if inner.subsets is not None:
            problems.error(join(path, "subset_lb_policy"), "subsets inside of subsets are not supported")
        if inner.named_by:
            problems.error(join(path, "subset_lb_policy"), "override_host inside of subsets is not supported")
        return replace(inner, subsets=subsets)
    if kind == OVERRIDE_HOST_TYPE:
        return _override_host(config, path, problems, depth)
    if kind == WRR_LOCALITY_TYPE:
        place = join(path, "endpoint_picking_policy")
        inner = policy_of_list(config.endpoint_picking_policy, place, problems, depth + 1)
        policy = inner.policy
        if isinstance(policy, RandomSubsetting) and not inner.locality_weighted:
            policy = replace(policy, per_locality=True)
        return replace(inner, policy=policy, locality_weighted=True)
    cover(config, path, problems, used=frozenset({"subset_size", "child_policy"}), harmless=frozenset())
    if config.subset_size < 1:
        problems.error(join(path, "subset_size"), "must be at least 1")
    inner = policy_of_list(config.child_policy, join(path, "child_policy"), problems, depth + 1)
    return replace(inner, policy=RandomSubsetting(max(1, config.subset_size), inner.policy))


def _override_host(config: Any, path: str, problems: Problems, depth: int) -> ListedPolicy:
    """Decode OverrideHost: requests that name an endpoint go there, the others are the inner policy's."""
    cover(config, path, problems, used=frozenset({"override_host_sources", "fallback_policy"}), harmless=frozenset())
    names = []
    for index, source in enumerate(config.override_host_sources):
        place = f"{join(path, 'override_host_sources')}[{index}]"
        if bool(source.header) == source.HasField("metadata"):
            problems.error(place, "must have either a header or a metadata key")
        elif source.header:
            names.append(source.header.lower())
        else:
            problems.unused(join(place, "metadata"), "no filter of a client writes dynamic metadata")
    inner = policy_of_list(config.fallback_policy, join(path, "fallback_policy"), problems, depth + 1)
    # What an inner one of the kind would read, the outer one has used up already.
    return replace(inner, named_by=tuple(names))


def least_request(message: Any, path: str, problems: Problems) -> LeastRequest:
    """Decode the enum's LeastRequestLbConfig or the extension's LeastRequest."""
    used = {"choice_count", "active_request_bias", "slow_start_config"}
    used |= {"locality_lb_config", "enable_full_scan", "selection_method"}
    cover(message, path, problems, used=frozenset(used), harmless=frozenset())
    choices = wrapped(message, "choice_count")
    bias = 1.0
    if message.HasField("active_request_bias"):
        bias = message.active_request_bias.default_value
        if not 0 <= bias < float("inf"):
            problems.error(join(path, "active_request_bias.default_value"), "must be at least 0")
            bias = 1.0
    full_scan = False
    if "selection_method" in message.DESCRIPTOR.fields_by_name:
        if message.selection_method not in (0, 1):
            problems.error(join(path, "selection_method"), f"unknown value {message.selection_method}")
        full_scan = message.selection_method == 1 or bool(wrapped(message, "enable_full_scan"))
    keys = runtime_keys(message, active_request_bias="active_request_bias")
    slow = slow_start(message, path, problems)
    return LeastRequest(2 if choices is None else choices, bias, slow, full_scan, keys)


def slow_start(message: Any, path: str, problems: Problems) -> SlowStart | None:
    """Decode `slow_start_config` of a policy; None: there is none, or its window is empty."""
    if not message.HasField("slow_start_config"):
        return None
    config, place = message.slow_start_config, join(path, "slow_start_config")
    used = frozenset({"slow_start_window", "aggression", "min_weight_percent"})
    cover(config, place, problems, used=used, harmless=frozenset())
    aggression = 1.0
    if config.HasField("aggression"):
        aggression = config.aggression.default_value
        if not 0 < aggression < float("inf"):
            problems.unused(join(place, "aggression.default_value"), "is not greater than 0: 1.0 counts, as in Envoy")
            aggression = 1.0
    least = percent(config.min_weight_percent) / 100 if config.HasField("min_weight_percent") else 0.1
    window_s = duration(config, "slow_start_window", place, problems)
    if not window_s:
        problems.unused(place)
        return None
    return SlowStart(window_s, aggression, least, runtime_keys(config, aggression="aggression"))


_ZONES_USED: Final = frozenset(
    {
        "routing_enabled",
        "min_cluster_size",
        "fail_traffic_on_panic",  # read by the callers
        "force_locality_direct_routing",
        "force_local_zone",
        "locality_basis",
    }
)


def zone_aware(message: Any, path: str, problems: Problems) -> ZoneAware:
    """Decode `zone_aware_lb_config`, of a cluster (which has fewer fields) or of an extension."""
    config, place = message.zone_aware_lb_config, join(path, "zone_aware_lb_config")
    cover(config, place, problems, used=_ZONES_USED, harmless=frozenset())
    enabled = percent(config.routing_enabled) if config.HasField("routing_enabled") else 100.0
    least = wrapped(config, "min_cluster_size")
    forced = None
    if "force_local_zone" in config.DESCRIPTOR.fields_by_name:
        if config.HasField("force_local_zone"):
            fewest = wrapped(config.force_local_zone, "min_size")
            forced = 1 if fewest is None else fewest
        elif config.force_locality_direct_routing:
            forced = 1
        if config.locality_basis not in (0, 1):
            problems.error(join(place, "locality_basis"), f"unknown value {config.locality_basis}")
    basis = getattr(config, "locality_basis", 0)
    return ZoneAware(int(enabled + 0.5), 6 if least is None else least, forced, by_weight=basis == 1)


_CLIENT_SIDE_USED: Final = frozenset(
    {
        "enable_oob_load_report",
        "oob_reporting_period",
        "blackout_period",
        "weight_expiration_period",
        "weight_update_period",
        "error_utilization_penalty",
        "metric_names_for_computing_utilization",
        "slow_start_config",
    }
)
_UTILIZATIONS: Final = frozenset({"cpu_utilization", "mem_utilization", "application_utilization"})


def is_utilization(metric: str) -> bool:
    """Whether a name is that of a metric of backends (A114)."""
    kind, _, key = metric.partition(".")
    return metric in _UTILIZATIONS or (kind in ("named_metrics", "utilization") and bool(key))


def _client_side(config: Any, path: str, problems: Problems) -> ClientSideWeightedRoundRobin:
    cover(config, path, problems, used=_CLIENT_SIDE_USED, harmless=frozenset())

    def seconds(name: str, default_s: float) -> float:
        found = duration(config, name, path, problems)
        return default_s if found is None else found

    penalty = wrapped(config, "error_utilization_penalty")
    if penalty is not None and not 0 <= penalty < float("inf"):
        problems.error(join(path, "error_utilization_penalty"), "must be at least 0")
        penalty = None
    metrics = tuple(config.metric_names_for_computing_utilization)
    for index, metric in enumerate(metrics):
        if not is_utilization(metric):
            place = f"{join(path, 'metric_names_for_computing_utilization')}[{index}]"
            # gRPC refuses it, Envoy takes it for a metric that nobody reports.
            problems.unused(place, f"{metric!r} is no metric")
    return ClientSideWeightedRoundRobin(
        out_of_band=bool(wrapped(config, "enable_oob_load_report")),
        reporting_period_s=seconds("oob_reporting_period", 10.0),
        blackout_s=seconds("blackout_period", 10.0),
        expiration_s=seconds("weight_expiration_period", 180.0),
        update_s=max(MIN_UPDATE_S, seconds("weight_update_period", 1.0)),
        error_penalty=penalty,
        metrics=metrics,
        slow_start=slow_start(config, path, problems),
    )


def _unpacked(kind: str, packed: Any, path: str, problems: Problems) -> LbPolicy | None:
    """Decode a policy that has no message here: of the application, or Peak EWMA; None: it is neither."""
    if not kind:
        return None
    config = _values(packed)
    if kind == OWN_PEAK_EWMA and is_typed_struct(packed):
        return _peak_ewma(config, path, problems)
    try:
        known = make_lb_policy(kind, config)
    except ValueError as error:
        problems.error(path, f"{kind} refuses its configuration: {error}")
        return RoundRobin()
    return None if known is None else CustomPolicy(kind, config)


def _values(packed: Any) -> Mapping[str, Any]:
    """Return what a policy is configured with: the Struct of a TypedStruct, else the bytes of the message, if any."""
    if is_typed_struct(packed):
        try:
            found: Mapping[str, Any] = _whole(struct(from_any(packed).value))
            return found
        except DecodeError:
            return MappingProxyType({})
    return MappingProxyType({"value": bytes(packed.value)} if packed.value else {})


def _contributed_ewma(config: Any, path: str, problems: Problems) -> PeakEwma:
    """Decode Envoy's message: how it gathers samples from its threads is its own affair, as is how it prices strangers."""
    unused = frozenset({"aggregation_interval", "max_samples_per_host", "penalty_value"})
    cover(config, path, problems, used=frozenset({"decay_time", "default_rtt"}), harmless=unused)
    default = PeakEwma()
    return PeakEwma(
        duration(config, "decay_time", path, problems) or default.decay_s,
        duration(config, "default_rtt", path, problems) or default.default_rtt_s,
    )


def _whole(value: Any) -> Any:
    """Return a Struct's value with whole numbers as such: JSON knows one kind of numbers, programs two."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _whole(one) for key, one in value.items()})
    if isinstance(value, tuple):
        return tuple(_whole(one) for one in value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


_PEAK_EWMA_FIELDS: Final = {
    "decay_time": "decay_s",
    "default_rtt": "default_rtt_s",
    "penalty": "penalty_s",
    "max_retry_after": "max_penalty_s",
}


def _peak_ewma(config: Mapping[str, Any], path: str, problems: Problems) -> PeakEwma:
    """Decode our own fields: seconds, or text such as `0.5s`."""
    given: dict[str, float] = {}
    for name, value in config.items():
        place = join(path, f"value.{name}")
        field = _PEAK_EWMA_FIELDS.get(name)
        if field is None:
            problems.error(place, "is not supported")
            continue
        seconds = _seconds(value)
        if seconds is None or seconds <= 0:
            problems.error(place, "must be a duration of more than 0, such as 10s")
        else:
            given[field] = seconds
    return PeakEwma(**given)


def _seconds(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        return float(value.removesuffix("s")) if isinstance(value, str) and value.endswith("s") else None
    except ValueError:
        return None
