"""What runtime values make of routes and filters: what names a runtime key, or has one of Envoy's, with its value.

It is done once per configuration and set of values, so requests meet plain numbers.

Source: Envoy `SnapshotImpl::featureEnabled`, `getInteger`; `WeightedClustersConfigEntry`; fault filter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from types import MappingProxyType
from typing import Final, TypeVar

from meshlib.model.discovery import RuntimeValue
from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl
from meshlib.model.lb_policy import LeastRequest, SlowStart
from meshlib.model.local_reply import StatusIs, TookMs
from meshlib.model.matcher import Fraction, RuntimeKeys
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import ClusterWeight, FaultPolicy, WeightedClusters
from meshlib.xds.runtime_fault import fault_with_runtime
from meshlib.xds.runtime_numbers import number, share_of

__all__ = ["RETRY_SHARE_KEY", "merge_layers", "with_runtime"]

T = TypeVar("T")

RETRY_KEY: Final = "upstream.base_retry_backoff_ms"
RETRY_SHARE_KEY: Final = "upstream.use_retry"
_OWN_KEYS: Final[Mapping[type, RuntimeKeys]] = MappingProxyType(
    {
        RetryPolicy: (("base_interval_s", RETRY_KEY),),
    }
)
"""Keys of fields for which the resource names none."""
_Keyed = AdmissionControl | AdaptiveConcurrency | LeastRequest | SlowStart | StatusIs | TookMs


def merge_layers(layers: Iterable[Mapping[str, RuntimeValue]]) -> Mapping[str, RuntimeValue]:
    """Return the values in force: those of later layers replace those of earlier ones."""
    merged: dict[str, RuntimeValue] = {}
    for layer in layers:
        merged.update(layer)
    return merged


def with_runtime(value: T, runtime: Mapping[str, RuntimeValue]) -> T:
    """Return a part of the model with the runtime values of the keys that it names; itself when they change nothing."""
    if not runtime:
        return value
    changed = _changed(value, runtime)
    return changed  # type: ignore[return-value]  # of the same class as what it is made of


def _changed(value: object, runtime: Mapping[str, RuntimeValue]) -> object:
    match value:
        case tuple():
            items = tuple([_changed(item, runtime) for item in value])
            return value if all(new is old for new, old in zip(items, value, strict=True)) else items
        case Fraction(runtime_key=key):
            return share_of(value, key, runtime)
        case FaultPolicy():
            return fault_with_runtime(value, runtime)
        case WeightedClusters(runtime_key_prefix=prefix) if prefix:
            value = _weights(value, prefix, runtime)
    keys = _OWN_KEYS.get(type(value), ())
    if isinstance(value, _Keyed):
        keys = (*keys, *value.runtime_keys)
    if keys:
        value = _with_fields(value, dict(keys), runtime)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changes = {}
    for field in fields(value):
        old = getattr(value, field.name)
        if isinstance(old, tuple) or is_dataclass(old):
            new = _changed(old, runtime)
            if new is not old:
                changes[field.name] = new
    return replace(value, **changes) if changes else value


def _with_fields(value: object, keys: Mapping[str, str], runtime: Mapping[str, RuntimeValue]) -> object:
    changes = {}
    for field, key in keys.items():
        if key in runtime:
            new = _field(value, field, runtime, key)
            if new is not None and new != getattr(value, field):
                changes[field] = new
    return replace(value, **changes) if changes else value  # type: ignore[type-var]  # a dataclass, as it has keys


def _field(value: object, field: str, runtime: Mapping[str, RuntimeValue], key: str) -> float | None:
    """Return what a field is by its runtime value; None: the resource's own value holds."""
    if field == "is_enabled":
        found = runtime[key]
        return found if isinstance(found, bool) else None
    given = number(runtime, key)
    if given is None:
        return None
    match value, field:
        case RetryPolicy(has_own_base=False), "base_interval_s":
            return max(1, int(given)) / 1000
        case AdmissionControl(), "aggression":
            return max(1.0, given)
        case AdmissionControl(), "threshold" | "max_rejection":
            return min(100.0, given) / 100
        case AdmissionControl(), "rps_threshold":
            return int(given)
        case LeastRequest(), "active_request_bias":
            return given
        case StatusIs() | TookMs(), "value":
            return int(given)
        case SlowStart(), "aggression":
            return given or None
    return None


def _weights(value: WeightedClusters, prefix: str, runtime: Mapping[str, RuntimeValue]) -> WeightedClusters:
    clusters = tuple([_weight(entry, f"{prefix}.{entry.name}", runtime) for entry in value.clusters])
    if clusters == value.clusters or not sum(entry.weight for entry in clusters):
        # Weights that add up to nothing would send the requests nowhere.
        return value
    return replace(value, clusters=clusters)


def _weight(entry: ClusterWeight, key: str, runtime: Mapping[str, RuntimeValue]) -> ClusterWeight:
    found = runtime.get(key)
    if found is None or isinstance(found, bool | Fraction) or found < 0:
        return entry
    return entry if int(found) == entry.weight else replace(entry, weight=int(found))
