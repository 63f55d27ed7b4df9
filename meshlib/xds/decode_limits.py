"""Filters that limit what goes out: local rate limit, admission control, adaptive concurrency."""

from collections.abc import Mapping
from typing import Any, Final

from meshlib.model.descriptors import HostLimits
from meshlib.model.filters import (
    HTTP_SUCCESS,
    AdaptiveConcurrency,
    AdmissionControl,
    DescriptorLimit,
    LimitFilter,
    LimitOverrides,
    LocalRateLimit,
    TokenBucket,
)
from meshlib.model.matcher import Fraction
from meshlib.xds.decode_common import cover, duration, join, override_configs, unpack, wrapped
from meshlib.xds.decode_descriptors import filter_rules
from meshlib.xds.decode_headers import header_additions
from meshlib.xds.decode_matcher import percent, runtime_fraction, runtime_keys
from meshlib.xds.problems import Problems

__all__ = ["LIMIT_TYPES", "limit_filter", "limit_overrides"]

RATE_LIMIT_TYPE: Final = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
ADMISSION_TYPE: Final = "envoy.extensions.filters.http.admission_control.v3.AdmissionControl"
CONCURRENCY_TYPE: Final = "envoy.extensions.filters.http.adaptive_concurrency.v3.AdaptiveConcurrency"
LIMIT_TYPES: Final = frozenset({RATE_LIMIT_TYPE, ADMISSION_TYPE, CONCURRENCY_TYPE})

MIN_FILL_S: Final = 0.05
"""Envoy: "local rate limit token bucket fill timer must be >= 50ms"."""

_RATE_LIMIT_USED: Final = frozenset(
    {
        "status",
        "token_bucket",
        "filter_enabled",
        "filter_enforced",
        "request_headers_to_add_when_not_enforced",
        "response_headers_to_add",
        "enable_x_ratelimit_headers",
        "rate_limited_as_resource_exhausted",
        "descriptors",
        "rate_limits",
        "stage",
        "vh_rate_limits",
        "always_consume_default_token_bucket",
        "max_dynamic_descriptors",
    }
)
_RATE_LIMIT_REFUSED: Final = frozenset({"local_cluster_rate_limit"})


def limit_filter(
    kind: str, packed: Any, path: str, problems: Problems, *, is_override: bool = False, is_server: bool = False
) -> LimitFilter | None:
    """Decode the configuration of one of `LIMIT_TYPES`; None after an error.

    Args:
        is_override: It is that of a level.
        is_server: It is a server's.
    """
    message = unpack(packed, path, problems)
    if message is None:
        return None
    if kind == RATE_LIMIT_TYPE:
        if is_override and not message.HasField("token_bucket"):
            problems.error(join(path, "token_bucket"), "is required")
        if is_server:
            _check_server(message, path, problems)
        return _rate_limit(message, path, problems)
    if kind == ADMISSION_TYPE:
        return _admission(message, path, problems)
    return _concurrency(message, path, problems)


def limit_overrides(configs: Mapping[str, Any], path: str, problems: Problems) -> LimitOverrides:
    """Return what `typed_per_filter_config` says about limits, by the filter's name; None: it is switched off.

    Any filter that is switched off is among them: of what kind one is, the listener knows.
    """
    found: dict[str, LimitFilter | None] = {}
    for one in override_configs(configs, path):
        name, place, config, kind = one.name, one.path, one.config, one.kind
        if one.is_disabled:
            found[name] = None
            continue
        if kind == RATE_LIMIT_TYPE:
            decoded = limit_filter(kind, config, place, problems, is_override=True)
            if decoded is not None:
                found[name] = decoded
        elif kind in LIMIT_TYPES:
            problems.error(place, f"{kind.rpartition('.')[2]} has no configuration per route")
    return tuple(found.items())


def _check_server(message: Any, path: str, problems: Problems) -> None:
    """Refuse what a server cannot do: a request is handed to the application as it came, whatever its connection."""
    if message.request_headers_to_add_when_not_enforced:
        problems.error(join(path, "request_headers_to_add_when_not_enforced"), "is not supported in a server")
    if message.local_rate_limit_per_downstream_connection:
        problems.error(join(path, "local_rate_limit_per_downstream_connection"), "is not supported in a server")


def server_fault(config: object) -> str:
    """Return what a server cannot do of a discovered filter, which may be a client's as well; empty: nothing."""
    if not isinstance(config, LocalRateLimit):
        return ""
    if config.unenforced_headers:
        return "request_headers_to_add_when_not_enforced is not supported in a server"
    return "local_rate_limit_per_downstream_connection is not supported in a server" if config.is_per_connection else ""


def _rate_limit(message: Any, path: str, problems: Problems) -> LocalRateLimit:
    cover(message, path, problems, used=_RATE_LIMIT_USED, refused=_RATE_LIMIT_REFUSED)
    bucket = None
    if message.HasField("token_bucket"):
        bucket = _bucket(message.token_bucket, join(path, "token_bucket"), problems)
    status = message.status.code
    if message.enable_x_ratelimit_headers not in (0, 1):
        problems.error(join(path, "enable_x_ratelimit_headers"), f"unknown value {message.enable_x_ratelimit_headers}")
    always, most = wrapped(message, "always_consume_default_token_bucket"), wrapped(message, "max_dynamic_descriptors")
    unenforced = "request_headers_to_add_when_not_enforced"
    return LocalRateLimit(
        bucket=bucket,
        is_per_connection=message.local_rate_limit_per_downstream_connection,
        enabled=_share(message, "filter_enabled", path, problems),
        enforced=_share(message, "filter_enforced", path, problems),
        status=status if status >= 400 else 429,
        response_headers=header_additions(message, "response_headers_to_add", path, problems),
        unenforced_headers=header_additions(message, unenforced, path, problems),
        is_exhaustion=message.rate_limited_as_resource_exhausted,
        tells_limits=bool(message.enable_x_ratelimit_headers),
        descriptors=_descriptors(message.descriptors, join(path, "descriptors"), problems),
        rules=filter_rules(message.rate_limits, join(path, "rate_limits"), problems),
        stage=message.stage,
        host_limits=_host_limits(message, path, problems),
        always_takes=True if always is None else always,
        max_dynamic=20 if most is None else most,
    )


def _host_limits(message: Any, path: str, problems: Problems) -> HostLimits:
    try:
        return HostLimits(message.vh_rate_limits)
    except ValueError:
        problems.error(join(path, "vh_rate_limits"), f"unknown value {message.vh_rate_limits}")
        return HostLimits.OVERRIDDEN


def _descriptors(messages: Any, path: str, problems: Problems) -> tuple[DescriptorLimit, ...]:
    found: dict[tuple[tuple[str, str], ...], DescriptorLimit] = {}
    for number, message in enumerate(messages):
        place = f"{path}[{number}]"
        cover(message, place, problems, used=frozenset({"entries", "token_bucket"}), harmless=frozenset())
        entries = tuple((entry.key, entry.value) for entry in message.entries)
        if entries in found:
            problems.error(place, "is the same as an earlier one")
        bucket = _bucket(message.token_bucket, join(place, "token_bucket"), problems)
        found[entries] = DescriptorLimit(entries, bucket)
    return tuple(found.values())


def _share(message: Any, name: str, path: str, problems: Problems) -> Fraction:
    """Absent means never."""
    if not message.HasField(name):
        return Fraction(0)
    return runtime_fraction(getattr(message, name), join(path, name), problems)


def _bucket(message: Any, path: str, problems: Problems) -> TokenBucket:
    cover(
        message,
        path,
        problems,
        used=frozenset({"max_tokens", "tokens_per_fill", "fill_interval"}),
        harmless=frozenset(),
    )
    interval_s = duration(message, "fill_interval", path, problems) or 0.0
    if interval_s < MIN_FILL_S:
        if message.max_tokens:  # else it is never filled
            problems.error(join(path, "fill_interval"), "must be at least 0.05 s")
        interval_s = MIN_FILL_S
    per_fill = wrapped(message, "tokens_per_fill")
    return TokenBucket(message.max_tokens, 1 if per_fill is None else per_fill, interval_s)


def _admission(message: Any, path: str, problems: Problems) -> AdmissionControl:
    used = frozenset(
        {
            "enabled",
            "success_criteria",
            "sampling_window",
            "aggression",
            "sr_threshold",
            "rps_threshold",
            "max_rejection_probability",
        }
    )
    cover(message, path, problems, used=used, harmless=frozenset())
    window_s = duration(message, "sampling_window", path, problems)
    if window_s is not None and window_s < 1.0:
        problems.error(join(path, "sampling_window"), "must be at least 1 s")
    aggression = _runtime_value(message, "aggression")
    threshold = _runtime_percent(message, "sr_threshold", path, problems)
    if message.HasField("sr_threshold") and (threshold or 0.0) < 1.0:
        problems.error(join(path, "sr_threshold"), "must be at least 1 %")
        threshold = None
    rejection = _runtime_percent(message, "max_rejection_probability", path, problems)
    rps = _runtime_value(message, "rps_threshold")
    criteria = message.success_criteria
    http: tuple[tuple[int, int], ...] = HTTP_SUCCESS
    grpc: frozenset[int] | None = None
    if criteria.HasField("http_criteria"):
        place = join(path, "success_criteria.http_criteria.http_success_status")
        ranges = criteria.http_criteria.http_success_status
        http = tuple((entry.start, entry.end) for entry in ranges)
        for index, (start, end) in enumerate(http):
            if not 100 <= start <= end <= 600 or start == 600:
                problems.error(f"{place}[{index}]", "must be a range within 100 to 600")
    if criteria.HasField("grpc_criteria"):
        grpc = frozenset(criteria.grpc_criteria.grpc_success_status)
        if any(code > 16 for code in grpc):
            problems.error(join(path, "success_criteria.grpc_criteria.grpc_success_status"), "codes go up to 16")
    return AdmissionControl(
        is_enabled=_is_enabled(message),
        window_s=30.0 if window_s is None else float(int(window_s) or 1),  # Envoy counts in whole seconds
        aggression=1.0 if aggression is None else max(1.0, aggression),
        threshold=0.95 if threshold is None else threshold / 100,
        rps_threshold=0 if rps is None else int(rps),
        max_rejection=0.8 if rejection is None else rejection / 100,
        http_success=http,
        grpc_success=grpc,
        runtime_keys=runtime_keys(
            message,
            enabled="is_enabled",
            aggression="aggression",
            sr_threshold="threshold",
            rps_threshold="rps_threshold",
            max_rejection_probability="max_rejection",
        ),
    )


def _concurrency(message: Any, path: str, problems: Problems) -> AdaptiveConcurrency:
    used = frozenset({"gradient_controller_config", "enabled", "concurrency_limit_exceeded_status"})
    cover(message, path, problems, used=used, harmless=frozenset())
    config, place = message.gradient_controller_config, join(path, "gradient_controller_config")
    limits, limits_path = config.concurrency_limit_params, join(place, "concurrency_limit_params")
    rtt, rtt_path = config.min_rtt_calc_params, join(place, "min_rtt_calc_params")
    interval_s = duration(rtt, "interval", rtt_path, problems)
    fixed_s = duration(rtt, "fixed_value", rtt_path, problems)
    if not interval_s and not fixed_s:
        problems.error(join(rtt_path, "interval"), "either interval or fixed_value is required")
    update_s = duration(limits, "concurrency_update_interval", limits_path, problems)
    status = message.concurrency_limit_exceeded_status.code
    most, least, count = (
        wrapped(limits, "max_concurrency_limit"),
        wrapped(rtt, "min_concurrency"),
        wrapped(rtt, "request_count"),
    )
    return AdaptiveConcurrency(
        is_enabled=_is_enabled(message),
        status=status if status >= 400 else 503,
        percentile=percent(config.sample_aggregate_percentile)
        if config.HasField("sample_aggregate_percentile")
        else 50.0,
        max_limit=1000 if most is None else most,
        update_interval_s=update_s or 0.1,
        min_rtt_interval_s=None if fixed_s else interval_s,
        min_rtt_s=fixed_s or 0.0,
        min_rtt_requests=50 if count is None else count,
        min_rtt_jitter_percent=percent(rtt.jitter) if rtt.HasField("jitter") else 15.0,
        min_limit=3 if least is None else least,
        buffer_percent=percent(rtt.buffer) if rtt.HasField("buffer") else 25.0,
        runtime_keys=runtime_keys(message, enabled="is_enabled"),
    )


def _is_enabled(message: Any) -> bool:
    enabled = _runtime_value(message, "enabled")
    return True if enabled is None else bool(enabled)


def _runtime_value(message: Any, name: str) -> Any:
    """Return the default of a runtime value, or None: absent."""
    if not message.HasField(name):
        return None
    field = getattr(message, name)
    value = field.default_value
    if not hasattr(value, "DESCRIPTOR"):
        return value
    return value.value if field.HasField("default_value") else None


def _runtime_percent(message: Any, name: str, path: str, problems: Problems) -> float | None:
    value = _runtime_value(message, name)
    if value is None:
        return None
    if not 0.0 <= value <= 100.0:
        problems.error(join(path, f"{name}.default_value"), "must be between 0 and 100")
        return None
    return float(value)
