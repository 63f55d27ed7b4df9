"""What runtime values make of routes: shares and weights that name a runtime key, with the value that it has.

It is done once per configuration and set of values, so requests meet plain numbers.

Source: Envoy `SnapshotImpl::featureEnabled`, `getInteger`; `WeightedClustersConfigEntry`; fault filter.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Final, TypeVar

from meshlib.model.discovery import RuntimeValue
from meshlib.model.matcher import Fraction
from meshlib.model.route import ClusterWeight, FaultAbort, FaultDelay, FaultRateLimit, WeightedClusters

__all__ = ["merge_layers", "with_runtime"]

T = TypeVar("T")

ABORT_KEY: Final = "fault.http.abort.abort_percent"
DELAY_KEY: Final = "fault.http.delay.fixed_delay_percent"
RATE_LIMIT_KEY: Final = "fault.http.rate_limit.response_percent"
"""What Envoy looks at when a fault names no keys."""


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
            return _share(value, key, runtime)
        case FaultAbort(share=share) if not share.runtime_key:
            found = _share(share, ABORT_KEY, runtime)
            return value if found is share else replace(value, share=found)
        case FaultDelay(share=share) if not share.runtime_key:
            found = _share(share, DELAY_KEY, runtime)
            return value if found is share else replace(value, share=found)
        case FaultRateLimit(share=share) if not share.runtime_key:
            found = _share(share, RATE_LIMIT_KEY, runtime)
            return value if found is share else replace(value, share=found)
        case WeightedClusters(runtime_key_prefix=prefix) if prefix:
            value = _weights(value, prefix, runtime)
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


def _share(share: Fraction, key: str, runtime: Mapping[str, RuntimeValue]) -> Fraction:
    found = runtime.get(key) if key else None
    if found is None or isinstance(found, bool):
        return share
    if not isinstance(found, Fraction):
        if found < 0:
            return share
        # "The runtime value is assumed to be specified as an integer": a number of requests out of a hundred.
        found = Fraction(min(100, int(found)))
    found = replace(found, runtime_key=share.runtime_key)
    return share if found == share else found


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
