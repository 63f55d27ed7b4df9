"""Fault injection: the filter's own configuration and its overrides at routes, virtual hosts and weighted clusters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from meshlib.model.matcher import Fraction
from meshlib.model.route import FaultAbort, FaultDelay, FaultPolicy, FaultRateLimit
from meshlib.protos import message_class
from meshlib.xds.decode_common import cover, duration, join, override_configs, unpack, wrapped
from meshlib.xds.decode_header_filter import HEADER_FILTER_OVERRIDE
from meshlib.xds.decode_limits import LIMIT_TYPES
from meshlib.xds.decode_matcher import fraction, header_matchers
from meshlib.xds.decode_session import SESSION_OVERRIDE_TYPE
from meshlib.xds.problems import Problems

__all__ = ["FAULT_TYPE", "fault_override", "fault_policy"]

FAULT_TYPE: Final = "envoy.extensions.filters.http.fault.v3.HTTPFault"
RBAC_OVERRIDE_TYPE: Final = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"

_USED: Final = frozenset(
    {
        "delay",
        "abort",
        "headers",
        "max_active_faults",
        "upstream_cluster",
        "downstream_nodes",
        "response_rate_limit",
        "delay_percent_runtime",
        "abort_percent_runtime",
        "response_rate_limit_percent_runtime",
        "delay_duration_runtime",
        "abort_http_status_runtime",
        "abort_grpc_status_runtime",
        "max_active_faults_runtime",
    }
)
_HARMLESS: Final = frozenset(
    {
        "disable_downstream_cluster_stats",
        "filter_metadata",
    }
)


def fault_policy(message: Any, path: str, problems: Problems) -> FaultPolicy:
    """Decode an HTTPFault."""
    cover(message, path, problems, used=_USED, harmless=_HARMLESS)
    delay = _delay(message.delay, join(path, "delay"), problems) if message.HasField("delay") else None
    abort = _abort(message.abort, join(path, "abort"), problems) if message.HasField("abort") else None
    if delay is not None and message.delay_percent_runtime:
        delay = replace(delay, share=replace(delay.share, runtime_key=message.delay_percent_runtime))
    if abort is not None and message.abort_percent_runtime:
        abort = replace(abort, share=replace(abort.share, runtime_key=message.abort_percent_runtime))
    if delay is not None and (key := message.delay_duration_runtime):
        delay = replace(delay, runtime_keys=(("fixed_s", key),))
    if abort is not None:
        keys = (("http_status", message.abort_http_status_runtime), ("grpc_status", message.abort_grpc_status_runtime))
        abort = replace(abort, runtime_keys=tuple((field, key) for field, key in keys if key))
    limit = None
    if message.HasField("response_rate_limit"):
        limit = _rate_limit(message.response_rate_limit, join(path, "response_rate_limit"), problems)
    if limit is not None and message.response_rate_limit_percent_runtime:
        limit = replace(limit, share=replace(limit.share, runtime_key=message.response_rate_limit_percent_runtime))
    return FaultPolicy(
        delay=delay,
        abort=abort,
        upstream_cluster=message.upstream_cluster,
        downstream_nodes=tuple(message.downstream_nodes),
        rate_limit=limit,
        headers=header_matchers(message.headers, join(path, "headers"), problems),
        max_active=wrapped(message, "max_active_faults"),
        runtime_keys=(("max_active", key),) if (key := message.max_active_faults_runtime) else (),
    )


def fault_override(configs: Mapping[str, Any], path: str, problems: Problems) -> FaultPolicy | None:
    """Return what `typed_per_filter_config` says about faults, or None when it says nothing.

    Overrides of filters that meshlib does not have are reported as unused: a listener with such a filter is refused, so
    the override cannot have an effect. A type that is not known at all is an error unless it is optional, and so is an
    override of authorization, which must not be lost.

    Args:
        configs: By the name of the filter in the filter chain.
        path: Path of the map.
        problems: Takes the errors.
    """
    result: FaultPolicy | None = None
    for one in override_configs(configs, path, problems):
        name, place, config, kind, is_disabled = one.name, one.path, one.config, one.kind, one.is_disabled
        is_optional = one.is_optional
        if one.is_wrapped and not kind and not is_disabled:
            problems.error(place, "is required")
            continue
        if kind == SESSION_OVERRIDE_TYPE or (is_disabled and not kind and "session" in name):
            continue  # read by session_override
        if is_disabled and (kind == FAULT_TYPE or (not kind and "fault" in name)):
            result = FaultPolicy()
        elif kind == FAULT_TYPE:
            message = unpack(config, place, problems)
            if message is None:
                continue
            if result is not None:
                problems.error(place, "is a second fault filter, only one is supported")
            result = fault_policy(message, place, problems)
        elif kind == RBAC_OVERRIDE_TYPE or (is_disabled and not kind and "rbac" in name):
            problems.error(place, "an override of authorization is not supported")
        elif kind in LIMIT_TYPES or kind == HEADER_FILTER_OVERRIDE or (is_disabled and not kind):
            pass  # `limit_overrides` and `header_filter_overrides` read them
        elif is_optional or is_disabled or _is_known(kind):
            problems.unused(place)
        else:
            problems.error(place, f"unknown filter type {kind or '(none)'}")
    return result


def _delay(message: Any, path: str, problems: Problems) -> FaultDelay | None:
    used = frozenset({"fixed_delay", "header_delay", "percentage"})
    cover(message, path, problems, used=used, harmless=frozenset({"type"}))
    if message.HasField("header_delay"):
        return FaultDelay(0.0, _share(message, path, problems), by_header=True)
    fixed_s = duration(message, "fixed_delay", path, problems)
    if fixed_s is None:
        return None
    return FaultDelay(fixed_s, _share(message, path, problems))


def _abort(message: Any, path: str, problems: Problems) -> FaultAbort | None:
    used = frozenset({"http_status", "grpc_status", "header_abort", "percentage"})
    cover(message, path, problems, used=used, harmless=frozenset())
    share = _share(message, path, problems)
    match message.WhichOneof("error_type"):
        case "http_status":
            return FaultAbort(share, http_status=message.http_status)
        case "grpc_status":
            if message.grpc_status > 16:
                problems.error(join(path, "grpc_status"), "must be at most 16")
            return FaultAbort(share, grpc_status=message.grpc_status)
        case "header_abort":
            return FaultAbort(share, by_header=True)
        case _:
            return None


def _rate_limit(message: Any, path: str, problems: Problems) -> FaultRateLimit | None:
    used = frozenset({"fixed_limit", "header_limit", "percentage"})
    cover(message, path, problems, used=used, harmless=frozenset())
    share = _share(message, path, problems)
    match message.WhichOneof("limit_type"):
        case "fixed_limit":
            return FaultRateLimit(message.fixed_limit.limit_kbps, share)
        case "header_limit":
            return FaultRateLimit(0, share, by_header=True)
        case _:
            return None


def _share(message: Any, path: str, problems: Problems) -> Fraction:
    """A missing percentage means never."""
    return fraction(message.percentage, join(path, "percentage"), problems)


def _is_known(kind: str) -> bool:
    try:
        message_class(kind)
    except KeyError:
        return False
    return True
