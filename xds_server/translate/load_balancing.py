"""The load-balancing part of a cluster, and the hash policy of routes to it."""

from collections.abc import Mapping
from typing import Any

from xds_server.model import Position, Profile
from xds_server.translate.fields import duration_text
from xds_server.translate.messages import Json
from xds_server.translate.report import Report

DEFAULT_RING_SIZE = 1024  # Istio's
DEFAULT_WARMUP_PERCENT = 10  # Istio's, and Envoy's
_SIMPLE = {
    "UNSPECIFIED": "LEAST_REQUEST",
    "LEAST_CONN": "LEAST_REQUEST",  # a deprecated alias in Istio too
    "LEAST_REQUEST": "LEAST_REQUEST",
    "RANDOM": "RANDOM",
    "ROUND_ROBIN": "ROUND_ROBIN",
}


def balancer_fields(block: Mapping[str, Any], profile: Profile, report: Report, position: Position | None) -> Json:
    """Return the cluster's fields for a `loadBalancer` block; Istio's default is least request."""
    consistent = block.get("consistentHash")
    if consistent is not None:
        if _warmup(block):
            what = "loadBalancer.warmup with consistentHash"
            report.dropped(profile, what, "a new endpoint's keys move to it at once", position)
        return _hash_fields(consistent, profile, report, position)
    word = block.get("simple", "UNSPECIFIED")
    if profile is Profile.GRPC:
        # grpcio refuses a cluster with any other policy but ring hash.
        if "simple" in block and _SIMPLE[word] != "ROUND_ROBIN":
            report.dropped(profile, f"loadBalancer.simple {word}", "round robin is used", position)
        if _warmup(block):
            report.dropped(profile, "loadBalancer.warmup", "new endpoints get their whole share at once", position)
        return {"lb_policy": "ROUND_ROBIN"}
    return {"lb_policy": _SIMPLE[word], **_slow_start(block, _SIMPLE[word], profile, report, position)}


def _warmup(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the `warmup` of a block, the deprecated `warmupDurationSecs` taken for one; empty: there is none."""
    old = block.get("warmup.duration")
    warmup: Mapping[str, Any] = block.get("warmup", {} if old is None else {"duration": old})
    return warmup


def _slow_start(
    block: Mapping[str, Any], policy: str, profile: Profile, report: Report, position: Position | None
) -> Json:
    warmup = _warmup(block)
    if not warmup:
        return {}
    if policy == "RANDOM":
        report.dropped(profile, "loadBalancer.warmup with RANDOM", "endpoints are drawn whatever their age", position)
        return {}
    config: Json = {
        "slow_start_window": warmup["duration"],
        "min_weight_percent": {"value": warmup.get("minimumPercent", DEFAULT_WARMUP_PERCENT)},
    }
    if "aggression" in warmup:
        # Envoy wants a key for its runtime, which nobody sets.
        config["aggression"] = {"default_value": warmup["aggression"], "runtime_key": "xds_server.warmup.aggression"}
    return {f"{policy.lower()}_lb_config": {"slow_start_config": config}}


def _hash_fields(block: Mapping[str, Any], profile: Profile, report: Report, position: Position | None) -> Json:
    size = block.get("ringHash", {}).get("minimumRingSize", block.get("ringHash.minimumRingSize", DEFAULT_RING_SIZE))
    if "maglev" in block:
        if profile is not Profile.GRPC:
            table = block["maglev"].get("tableSize")
            return {"lb_policy": "MAGLEV"} | ({"maglev_lb_config": {"table_size": table}} if table else {})
        report.dropped(profile, "consistentHash.maglev", "ring hash is used", position)
    # The other end of the range: Envoy's and gRPC's 8 Mi.
    return {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": size}}


def hash_policies(block: Mapping[str, Any], profile: Profile, report: Report, position: Position | None) -> list[Json]:
    """Return what routes to a cluster with this `loadBalancer` block hash on."""
    consistent = block.get("consistentHash", {})
    if "httpHeaderName" in consistent:
        return [{"header": {"header_name": consistent["httpHeaderName"].lower()}}]
    if consistent and profile is Profile.GRPC:
        report.dropped(profile, "consistentHash on anything but a header", "each request hashes at random", position)
        return []
    if "httpCookie" in consistent:
        cookie = consistent["httpCookie"]
        path = {"path": cookie["path"]} if cookie.get("path") else {}
        return [{"cookie": {"name": cookie["name"], "ttl": cookie.get("ttl", duration_text(0)), **path}}]
    if consistent.get("useSourceIp"):
        if profile is Profile.MESHLIB:
            # The caller is the process itself, so there is no address to tell callers apart by.
            report.dropped(profile, "consistentHash.useSourceIp", "each request hashes at random", position)
        return [{"connection_properties": {"source_ip": True}}]
    if "httpQueryParameterName" in consistent:
        return [{"query_parameter": {"name": consistent["httpQueryParameterName"]}}]
    return []
