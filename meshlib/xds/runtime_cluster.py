"""What runtime values make of clusters: circuit breakers, outlier detection, panic, zones, options of policies, health
checks, maintenance.

Source: Envoy `ResourceManagerImpl`, `DetectorImpl`, `LoadBalancerBase`.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeVar

from meshlib.model.cluster import CircuitBreakers, Cluster, OutlierDetection, ZoneAware
from meshlib.model.discovery import RuntimeValue
from meshlib.model.health import HealthCheck
from meshlib.xds.runtime import with_runtime
from meshlib.xds.runtime_numbers import number

__all__ = ["cluster_with_runtime"]

V = TypeVar("V", CircuitBreakers, OutlierDetection, ZoneAware, HealthCheck)

PANIC_KEY: Final = "upstream.healthy_panic_threshold"
_ZONES: Final = "upstream.zone_routing."
_MAINTENANCE: Final = "upstream.maintenance_mode."
_CHECKS: Final = "health_check."
_OUTLIERS: Final = "outlier_detection."
_BREAKERS: Final = "circuit_breakers."
_BREAKER_KEYS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_connections": "max_connections",
        "max_pending_requests": "max_pending_requests",
        "max_requests": "max_requests",
        "max_retries": "max_retries",
        "retry_budget.budget_percent": "retry_budget_percent",
        "retry_budget.min_retry_concurrency": "min_retry_concurrency",
    }
)
DEFAULT_BUDGET_PERCENT: Final = 20.0
"""Of a retry budget that the resource does not have and a runtime value brings in."""
_TIMES: Final = ("interval", "base_ejection_time", "max_ejection_time", "max_ejection_time_jitter")
_PERCENTAGES: Final = frozenset({"max_ejection_percent", "failure_percentage_threshold"})
_COUNTS: Final = (
    "consecutive_5xx",
    "consecutive_gateway_failure",
    "consecutive_local_origin_failure",
    "max_ejection_percent",
    "enforcing_consecutive_5xx",
    "enforcing_consecutive_gateway_failure",
    "enforcing_consecutive_local_origin_failure",
    "enforcing_success_rate",
    "enforcing_local_origin_success_rate",
    "success_rate_minimum_hosts",
    "success_rate_request_volume",
    "success_rate_stdev_factor",
    "failure_percentage_threshold",
    "enforcing_failure_percentage",
    "enforcing_failure_percentage_local_origin",
    "failure_percentage_minimum_hosts",
    "failure_percentage_request_volume",
)


def cluster_with_runtime(cluster: Cluster, runtime: Mapping[str, RuntimeValue]) -> Cluster:
    """Return a cluster with the runtime values that concern it; itself when they change nothing."""
    if not runtime:
        return cluster
    changed = with_runtime(cluster, runtime)
    panic = number(runtime, PANIC_KEY)
    if panic is not None and min(100, int(panic)) != changed.panic_threshold_percent:
        changed = replace(changed, panic_threshold_percent=float(min(100, int(panic))))
    maintained = number(runtime, _MAINTENANCE + cluster.name)
    if maintained is not None and min(100, int(maintained)) != changed.maintenance_percent:
        changed = replace(changed, maintenance_percent=min(100, int(maintained)))
    if changed.health_check is not None:
        check = _checks(changed.health_check, runtime)
        if check is not changed.health_check:
            changed = replace(changed, health_check=check)
    zones = _zones(changed.zone_aware, runtime)
    if zones is not changed.zone_aware:
        changed = replace(changed, zone_aware=zones)
    default = _breakers(changed.circuit_breakers, f"{_BREAKERS}{cluster.name}.default.", runtime)
    high = _breakers(changed.high_priority_circuit_breakers, f"{_BREAKERS}{cluster.name}.high.", runtime)
    if default is not changed.circuit_breakers or high is not changed.high_priority_circuit_breakers:
        changed = replace(changed, circuit_breakers=default, high_priority_circuit_breakers=high)
    if changed.outlier_detection is not None:
        outliers = _outliers(changed.outlier_detection, runtime)
        if outliers is not changed.outlier_detection:
            changed = replace(changed, outlier_detection=outliers)
    return changed


def _zones(value: ZoneAware, runtime: Mapping[str, RuntimeValue]) -> ZoneAware:
    share, least = number(runtime, f"{_ZONES}enabled"), number(runtime, f"{_ZONES}min_cluster_size")
    changes = {} if share is None else {"enabled_percent": min(100, int(share))}
    if least is not None:
        changes["min_cluster_size"] = int(least)
    return _replaced(value, changes)


def _checks(value: HealthCheck, runtime: Mapping[str, RuntimeValue]) -> HealthCheck:
    changes: dict[str, float] = {}
    for key, field in (("min_interval", "min_wait_s"), ("max_interval", "max_wait_s")):
        found = number(runtime, _CHECKS + key)
        if found is not None:
            changes[field] = int(found) / 1000
    verified = number(runtime, f"{_CHECKS}verify_cluster")
    if verified is not None:
        changes["verify_percent"] = min(100, int(verified))
    return _replaced(value, changes)


def _breakers(value: CircuitBreakers, prefix: str, runtime: Mapping[str, RuntimeValue]) -> CircuitBreakers:
    changes: dict[str, float] = {}
    for key, field in _BREAKER_KEYS.items():
        found = number(runtime, prefix + key)
        if found is not None:
            changes[field] = found if field == "retry_budget_percent" else int(found)
    if "min_retry_concurrency" in changes and value.retry_budget_percent is None:
        # Either value makes it a budget, in place of `max_retries`.
        changes.setdefault("retry_budget_percent", DEFAULT_BUDGET_PERCENT)
    return _replaced(value, changes)


def _outliers(value: OutlierDetection, runtime: Mapping[str, RuntimeValue]) -> OutlierDetection:
    changes: dict[str, float] = {}
    for name in _TIMES:
        found = number(runtime, f"{_OUTLIERS}{name}_ms")
        if found is not None:
            changes[f"{name}_s"] = int(found) / 1000
    for name in _COUNTS:
        found = number(runtime, _OUTLIERS + name)
        if found is not None:
            is_percentage = name in _PERCENTAGES or name.startswith("enforcing_")
            changes[name] = min(100, int(found)) if is_percentage else int(found)
    if not changes.get("interval_s", 1.0):
        del changes["interval_s"]  # rounds without a pause between them
    return _replaced(value, changes)


def _replaced(value: V, changes: Mapping[str, float]) -> V:
    new = {field: found for field, found in changes.items() if getattr(value, field) != found}
    return replace(value, **new) if new else value  # type: ignore[arg-type]
