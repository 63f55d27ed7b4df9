"""Layers of runtime values (RTDS, and `static_layer` in the bootstrap).

Keys of nested structures are joined with dots. A structure with a numerator or denominator is a share of requests.

Source: Envoy `ProtoLayer::walkProtoValue`, `SnapshotImpl::createEntry`.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from meshlib.model.discovery import RuntimeLayer, RuntimeValue
from meshlib.model.matcher import Fraction
from meshlib.xds.decode_common import cover, join, struct
from meshlib.xds.problems import Problems

__all__ = ["decode_runtime", "runtime_values"]

MAX_VALUES: Final = 10_000
WITHOUT_EFFECT: Final = (
    "envoy.reloadable_features.",
    "envoy.restart_features.",
    "overload.",
    "re2.",
    "ssl.",
    "tracing.",
    "upstream.weight_enabled",
)
"""How keys begin that Envoy looks at and meshlib does not."""
_DENOMINATORS: Final[Mapping[object, int]] = MappingProxyType(
    {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000, 0.0: 100, 1.0: 10_000, 2.0: 1_000_000}
)


def decode_runtime(message: Any, path: str, problems: Problems) -> RuntimeLayer:
    """Decode a Runtime."""
    cover(message, path, problems, used=frozenset({"name", "layer"}), harmless=frozenset())
    return RuntimeLayer(message.name, runtime_values(struct(message.layer), join(path, "layer"), problems))


def runtime_values(values: Mapping[str, object], path: str, problems: Problems) -> Mapping[str, RuntimeValue]:
    """Return the values of a structure by their whole keys.

    Args:
        values: JSON data, lists as tuples.
        path: For errors.
        problems: Takes the errors; values that are neither numbers, switches nor shares are noted as unused.
    """
    found: dict[str, RuntimeValue] = {}
    _walk("", values, path, problems, found)
    if len(found) > MAX_VALUES:
        problems.error(path, f"has more than {MAX_VALUES} values")
    return MappingProxyType(found)


def _walk(key: str, value: object, path: str, problems: Problems, found: dict[str, RuntimeValue]) -> None:
    match value:
        case bool() | int() | float():
            if key.startswith(WITHOUT_EFFECT):
                problems.unused(join(path, key), "has no effect here")
            found[key] = value if isinstance(value, bool) else float(value)
        case str():
            number = _number(value)
            if number is None:
                problems.unused(join(path, key), "texts have no effect")
            else:
                found[key] = number
        case Mapping() if "numerator" in value or "denominator" in value:
            share = _share(value)
            if share is None:
                problems.error(join(path, key), "is not a FractionalPercent")
            else:
                found[key] = share
        case Mapping():
            for name, inner in value.items():
                _walk(f"{key}.{name}" if key else str(name), inner, path, problems, found)
        case _:
            problems.error(join(path, key), "is neither a number, a text, a boolean nor a structure")


def _number(text: str) -> float | bool | None:
    if text in ("true", "false"):
        return text == "true"
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _share(value: Mapping[str, object]) -> Fraction | None:
    numerator, kind = value.get("numerator", 0.0), value.get("denominator", 0.0)
    if isinstance(kind, int):
        kind = float(kind)
    if isinstance(numerator, bool) or not isinstance(numerator, int | float) or kind not in _DENOMINATORS:
        return None
    if value.keys() - {"numerator", "denominator"} or numerator < 0 or numerator != int(numerator):
        return None
    return Fraction(int(numerator), _DENOMINATORS[kind])
