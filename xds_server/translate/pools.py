"""Connection pools, circuit breakers and outlier detection of a cluster."""

from collections.abc import Mapping
from typing import Any

from xds_server.model import Position, Profile
from xds_server.translate.fields import UINT32_MAX
from xds_server.translate.messages import Json, typed
from xds_server.translate.report import Report

CONNECT_TIMEOUT = "10s"  # Istio's default
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def pool_fields(
    policy: Mapping[str, Any], profile: Profile, report: Report, place: Position | None, *, http2: bool
) -> Json:
    """Return the cluster's fields for `connectionPool` and `retryBudget`.

    Limits that nobody set are the largest number, as Istio has it: left out, Envoy would take its own 1024 requests and
    3 retries. To Istio 0 is as good as nothing; handed on, it would let no request through.
    """
    tcp = policy.get("connectionPool", {}).get("tcp", {})
    http = policy.get("connectionPool", {}).get("http", {})
    if profile is Profile.GRPC:
        return _grpc_pool(tcp, http, policy, report, place)
    threshold: Json = {
        "max_connections": tcp.get("maxConnections") or UINT32_MAX,
        "max_pending_requests": http.get("http1MaxPendingRequests") or UINT32_MAX,
        "max_requests": http.get("http2MaxRequests") or UINT32_MAX,
        "max_retries": http.get("maxRetries") or UINT32_MAX,
    }
    if profile is Profile.ENVOY:
        threshold["track_remaining"] = True  # a statistic of its own
    if (budget := policy.get("retryBudget")) is not None:
        threshold["retry_budget"] = {
            "budget_percent": {"value": budget.get("percent", 20)},
            "min_retry_concurrency": budget.get("minRetryConcurrency") or 3,
        }
    result: Json = {
        "connect_timeout": tcp.get("connectTimeout", CONNECT_TIMEOUT),
        "circuit_breakers": {"thresholds": [threshold]},
    }
    common: Json = {}
    if "idleTimeout" in http:
        common["idle_timeout"] = http["idleTimeout"]
    if http.get("maxRequestsPerConnection"):
        common["max_requests_per_connection"] = http["maxRequestsPerConnection"]
    if common or http2:
        options: Json = {
            "explicit_http_config": {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}},
            **({"common_http_protocol_options": common} if common else {}),
        }
        result["typed_extension_protocol_options"] = {_HTTP_OPTIONS: typed(_HTTP_OPTIONS, options)}
    return result


def _grpc_pool(
    tcp: Mapping[str, Any], http: Mapping[str, Any], policy: Mapping[str, Any], report: Report, place: Position | None
) -> Json:
    for block, names in (("tcp", tcp), ("http", http)):
        for name in names:
            if name != "http2MaxRequests":
                report.dropped(Profile.GRPC, f"connectionPool.{block}.{name}", "gRPC has no such limit", place)
    if "retryBudget" in policy:
        report.dropped(Profile.GRPC, "retryBudget", "gRPC has its own retry throttling", place)
    if http.get("http2MaxRequests"):
        return {"circuit_breakers": {"thresholds": [{"max_requests": http["http2MaxRequests"]}]}}
    return {}


def outlier_fields(block: Mapping[str, Any], profile: Profile, report: Report, place: Position | None) -> Json:
    """Return the cluster's fields for `outlierDetection`.

    Success-rate ejection, which Envoy would do by default, is always off, as in Istio.
    """
    if profile is Profile.GRPC:
        report.dropped(profile, "outlierDetection", "gRPC counts no consecutive errors; nothing is ejected", place)
        return {}
    detection: Json = {"enforcing_success_rate": 0}
    for field, name, enforcing in (
        ("consecutive5xxErrors", "consecutive_5xx", "enforcing_consecutive_5xx"),
        ("consecutiveGatewayErrors", "consecutive_gateway_failure", "enforcing_consecutive_gateway_failure"),
    ):
        if (count := block.get(field)) is not None:
            # 0 turns the check off. Envoy demands a count of at least 1 elsewhere, so then it stays at its default.
            detection |= {name: count, enforcing: 100} if count else {enforcing: 0}
    if block.get("splitExternalLocalOriginErrors"):
        detection |= {"split_external_local_origin_errors": True, "enforcing_local_origin_success_rate": 0}
        if count := block.get("consecutiveLocalOriginFailures"):  # which counts with the split alone
            name = "consecutive_local_origin_failure"
            detection |= {name: count, f"enforcing_{name}": 100}
    for field, name in (
        ("interval", "interval"),
        ("baseEjectionTime", "base_ejection_time"),
        ("maxEjectionPercent", "max_ejection_percent"),
    ):
        if block.get(field):  # to Istio 0 percent is as good as nothing
            detection[name] = block[field]
    # Panic: 0 % is off, which is Istio's default, unlike Envoy's 50 %.
    panic = {"healthy_panic_threshold": {"value": block.get("minHealthPercent", 0)}}
    return {"outlier_detection": detection, "common_lb_config": panic}
