"""Probation after an ejection: a cluster's metadata `meshlib: {probation: {...}}`, since Envoy has no field for it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from meshlib.model.cluster import OutlierDetection, Probation
from meshlib.xds.decode_common import join
from meshlib.xds.problems import Problems

__all__ = ["with_probation"]

_FIELDS: Final = frozenset({"successes", "max_requests", "interval"})


def with_probation(
    outlier: OutlierDetection | None, metadata: Mapping[str, Mapping[str, Any]], path: str, problems: Problems
) -> OutlierDetection | None:
    """Return outlier detection with the cluster's rules of probation, if it has some.

    Args:
        metadata: filter_metadata by name.
        path: Of the cluster.
    """
    given = metadata.get("meshlib", {}).get("probation")
    if given is None:
        return outlier
    place = join(path, 'metadata.filter_metadata["meshlib"].probation')
    if outlier is None:
        problems.error(place, "needs outlier_detection")
        return None
    if not isinstance(given, Mapping):
        problems.error(place, "must be an object")
        return outlier
    for name in sorted(given.keys() - _FIELDS):
        problems.error(f"{place}.{name}", "is not supported")
    default = Probation()
    return replace(
        outlier,
        probation=Probation(
            _count(given, "successes", default.successes, place, problems),
            _count(given, "max_requests", default.max_requests, place, problems),
            _seconds(given, default.interval_s, place, problems),
        ),
    )


def _count(given: Mapping[str, Any], name: str, default: int, place: str, problems: Problems) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
        problems.error(f"{place}.{name}", "must be a whole number from 1 on")
        return default
    return int(value)


def _seconds(given: Mapping[str, Any], default: float, place: str, problems: Problems) -> float:
    value = given.get("interval", default)
    try:
        seconds = float(value.removesuffix("s")) if isinstance(value, str) and value.endswith("s") else float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(value, bool) or not 0 < seconds < float("inf"):
        problems.error(f"{place}.interval", "must be a duration of more than 0, such as 0.1s")
        return default
    return seconds
