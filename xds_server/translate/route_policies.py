"""Retries, faults, mirrors and header operations of a route."""

from collections.abc import Mapping
from typing import Any

from xds_server.model import Position, Profile
from xds_server.translate.messages import Json, typed
from xds_server.translate.report import Report
from xds_server.translate.schema_virtual_service import GRPC_STATUSES

FAULT_FILTER = "envoy.filters.http.fault"
# Istio's, section "defaultHttpRetryPolicy"; it retries nothing that may have reached the application with a 5xx.
DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
DEFAULT_ATTEMPTS = 2
_GRPC_WORDS = ("cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable")
# HTTP failures that a gRPC client sees as status UNAVAILABLE.
_MEANS_UNAVAILABLE = frozenset(
    {"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream"}
)
_PREVIOUS_HOSTS = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
}
# As Istio. A copy sent by meshlib has no trace of its own that could be sampled.
_SAME_HOST = {"disable_shadow_host_suffix_append": True}
_SAME_HOST_UNTRACED = {"trace_sampled": False, **_SAME_HOST}
_PREVIOUS_PRIORITIES = {
    "name": "envoy.retry_priorities.previous_priorities",
    "typed_config": typed(
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", {"update_frequency": 2}
    ),
}


def retry_policy(
    block: Mapping[str, Any] | None, profile: Profile, report: Report, place: Position | None, *, hashed: bool = False
) -> Json | None:
    """Return the retry policy of a `retries` block, the default one without a block, or nothing when it says 0 attempts.

    Args:
        hashed: The route's cluster hashes; then retries may go to the host that failed, as its neighbour has no session.
    """
    retries: Mapping[str, Any] = block if block is not None else {}
    attempts = retries.get("attempts", DEFAULT_ATTEMPTS if block is None else 0)
    if attempts <= 0:
        return None
    words, codes = _retry_on(retries.get("retryOn", DEFAULT_RETRY_ON))
    if profile is Profile.MESHLIB and "retryOn" not in retries:
        # A replica that dies resets the requests it has. Envoy cannot tell which of them are safe to repeat, so Istio's
        # default leaves them; meshlib repeats only idempotent ones (RFC 9110, section 9.2.2) unless the route says more.
        words.append("reset")
    back_off = {"retry_back_off": {"base_interval": retries["backoff"]}} if "backoff" in retries else {}
    if profile is Profile.GRPC:
        words = _grpc_retry_on(words, report, place, is_written="retryOn" in retries)
        for name in ("perTryTimeout", "retryRemoteLocalities", "retryIgnorePreviousHosts"):
            if name in retries:
                report.dropped(profile, f"retries.{name}", "gRPC has no such setting", place)
        return {"retry_on": ",".join(words), "num_retries": attempts, **back_off} if words else None
    result: Json = {"retry_on": ",".join(words), "num_retries": attempts, **back_off}
    if codes:
        result["retriable_status_codes"] = codes
    if "perTryTimeout" in retries:
        result["per_try_timeout"] = retries["perTryTimeout"]
    if retries.get("retryIgnorePreviousHosts", not hashed):
        result |= {"retry_host_predicate": [_PREVIOUS_HOSTS], "host_selection_retry_max_attempts": "5"}
    if retries.get("retryRemoteLocalities") and profile is Profile.MESHLIB:
        report.dropped(profile, "retries.retryRemoteLocalities", "retries stay in their priority for now", place)
    elif retries.get("retryRemoteLocalities"):
        result["retry_priority"] = _PREVIOUS_PRIORITIES
    return result


def _retry_on(text: str) -> tuple[list[str], list[int]]:
    """Split into conditions and HTTP statuses; a status brings the condition that lets it count."""
    parts = text.split(",")
    words = [part for part in parts if not part.isdigit()]
    codes = [int(part) for part in parts if part.isdigit()]
    if codes and "retriable-status-codes" not in words:
        words.append("retriable-status-codes")
    return words, codes


def _grpc_retry_on(words: list[str], report: Report, place: Position | None, *, is_written: bool) -> list[str]:
    kept = [word for word in words if word in _GRPC_WORDS]
    if "unavailable" not in kept and _MEANS_UNAVAILABLE.intersection(words):
        kept.append("unavailable")
    lost = [word for word in words if word not in _GRPC_WORDS and word not in _MEANS_UNAVAILABLE]
    if lost and is_written:
        instead = f"gRPC retries on {', '.join(kept)}" if kept else "gRPC retries on none of it"
        report.dropped(Profile.GRPC, f"retries.retryOn {', '.join(lost)}", instead, place)
    return kept


def fault_config(block: Mapping[str, Any]) -> Json:
    """Return the per-route configuration of the fault filter. An unset percentage means 0 %, as in Istio."""
    result: Json = {}
    if (delay := block.get("delay")) is not None:
        result["delay"] = {"fixed_delay": delay["fixedDelay"], "percentage": per_million(delay.get("percentage"))}
    if (abort := block.get("abort")) is not None:
        status = (
            {"http_status": abort["httpStatus"]}
            if "httpStatus" in abort
            else {"grpc_status": GRPC_STATUSES.index(abort["grpcStatus"])}
        )
        result["abort"] = {**status, "percentage": per_million(abort.get("percentage"))}
    return {FAULT_FILTER: typed("envoy.extensions.filters.http.fault.v3.HTTPFault", result)}


def per_million(percentage: Any, default: float = 0) -> Json:
    """Return a percentage ({value: 12.5}, or the deprecated integer) as a fraction of a million."""
    value = (
        percentage.get("value", 0) if isinstance(percentage, Mapping) else default if percentage is None else percentage
    )
    return {"numerator": round(value * 10_000), "denominator": "MILLION"}


def mirror_policies(http: Mapping[str, Any], profile: Profile, cluster_of: Any) -> list[Json]:
    """Return where requests are copied to.

    Args:
        cluster_of: Gives the name of a destination's cluster.
    """
    mirrors = list(http.get("mirrors", ()))
    if "mirror" in http:
        mirrors.append({"destination": http["mirror"], "percentage": http.get("mirrorPercentage")})
    result = []
    for mirror in mirrors:
        fraction = per_million(mirror.get("percentage"), default=100)
        if fraction["numerator"]:
            result.append(
                {
                    "cluster": cluster_of(mirror["destination"]),
                    "runtime_fraction": {"default_value": fraction},
                    **(_SAME_HOST if profile is Profile.MESHLIB else _SAME_HOST_UNTRACED),
                }
            )
    return result


def header_operations(*blocks: Mapping[str, Any]) -> Json:
    """Return the header fields of a route or weighted cluster; of several blocks later ones come last."""
    result: Json = {}
    for direction in ("request", "response"):
        options: list[Json] = []
        removed: list[str] = []
        for block in blocks:
            operations = block.get(direction, {})
            for word, action in (("set", "OVERWRITE_IF_EXISTS_OR_ADD"), ("add", "APPEND_IF_EXISTS_OR_ADD")):
                options += [
                    {"header": {"key": name.lower(), "value": value}, "append_action": action, "keep_empty_value": True}
                    for name, value in sorted(operations.get(word, {}).items())
                    if name.lower() != "host"
                ]
            removed += [name.lower() for name in operations.get("remove", ()) if name.lower() != "host"]
        if options:
            result[f"{direction}_headers_to_add"] = options
        if removed:
            result[f"{direction}_headers_to_remove"] = list(dict.fromkeys(removed))
    return result


def authority_of(headers: Mapping[str, Any]) -> str | None:
    """Return the value that `headers.request.set` gives the Host header, which is a rewrite."""
    for name, value in headers.get("request", {}).get("set", {}).items():
        if name.lower() == "host":
            return str(value)
    return None
