"""Retry and hedge policies of routes and virtual hosts."""

from typing import Any, Final

from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.xds.decode_common import any_type, cover, duration, join, read_metadata, unpack, wrapped
from meshlib.xds.decode_matcher import fraction, header_matchers
from meshlib.xds.problems import Problems

__all__ = ["hedge_policy", "retry_policy"]

DEFAULT_MAX_RESET_S: Final = 300.0
"""Envoy's default of `rate_limited_retry_back_off.max_interval`."""

MIN_BACKOFF_S: Final = 0.001
"""Envoy and gRPC read shorter intervals as one millisecond."""

_USED: Final = frozenset(
    {
        "retry_on",
        "num_retries",
        "per_try_timeout",
        "per_try_idle_timeout",
        "retriable_status_codes",
        "retriable_headers",
        "retriable_request_headers",
        "retry_back_off",
        "rate_limited_retry_back_off",
        "retry_host_predicate",
        "retry_priority",
        "host_selection_retry_max_attempts",
        "retry_options_predicates",
    }
)
_HOST: Final = "envoy.extensions.retry.host."
_PREVIOUS_HOSTS: Final = _HOST + "previous_hosts.v3.PreviousHostsPredicate"
_CANARIES: Final = _HOST + "omit_canary_hosts.v3.OmitCanaryHostsPredicate"
_METADATA: Final = _HOST + "omit_host_metadata.v3.OmitHostMetadataConfig"
_BY_NAME: Final = {
    "envoy.retry_host_predicates.previous_hosts": _PREVIOUS_HOSTS,
    "envoy.retry_host_predicates.omit_canary_hosts": _CANARIES,
}
"""Predicates without options may be named without a configuration."""
_PRIORITIES: Final = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"


def retry_policy(message: Any, path: str, problems: Problems) -> RetryPolicy:
    """Decode a RetryPolicy."""
    cover(message, path, problems, used=_USED, harmless=frozenset())
    base_s, max_s = _back_off(message, path, problems)
    reset_headers, max_reset_s = _rate_limited(message, path, problems)
    predicates = _host_predicates(message, path, problems)
    for index, extension in enumerate(message.retry_options_predicates):
        place = f"{join(path, 'retry_options_predicates')}[{index}]"
        problems.error(place, f"{any_type(extension.typed_config) or extension.name} is not supported")
    retries = wrapped(message, "num_retries")
    attempts = message.host_selection_retry_max_attempts
    return RetryPolicy(
        retry_on=frozenset(word for part in message.retry_on.split(",") if (word := part.strip())),
        num_retries=1 if retries is None else retries,
        # Zero is Envoy's way of saying "none".
        per_try_timeout_s=duration(message, "per_try_timeout", path, problems) or None,
        per_try_idle_timeout_s=duration(message, "per_try_idle_timeout", path, problems) or None,
        retriable_status_codes=tuple(message.retriable_status_codes),
        retriable_headers=header_matchers(message.retriable_headers, join(path, "retriable_headers"), problems),
        retriable_request_headers=header_matchers(
            message.retriable_request_headers, join(path, "retriable_request_headers"), problems
        ),
        base_interval_s=base_s,
        has_own_base=message.HasField("retry_back_off"),
        max_interval_s=max_s,
        reset_headers=reset_headers,
        max_reset_s=max_reset_s,
        avoid_previous_hosts=_PREVIOUS_HOSTS in predicates,
        avoid_canaries=_CANARIES in predicates,
        avoid_metadata=predicates.get(_METADATA, ()),
        priority_update=_priority(message, path, problems),
        host_selection_attempts=attempts if attempts > 0 else 1,
    )


def hedge_policy(message: Any, path: str, problems: Problems) -> HedgePolicy:
    """Decode a HedgePolicy.

    Envoy 1.40 reads `initial_requests` and `additional_request_chance` and does nothing with them. Route metadata
    `meshlib: {hedge_initial_requests: true}` says that here they are meant.
    """
    used = frozenset(field.name for field in message.DESCRIPTOR.fields)
    cover(message, path, problems, used=used, harmless=frozenset())
    for name in ("initial_requests", "additional_request_chance"):
        if message.HasField(name):
            problems.unused(join(path, name), "counts only with route metadata meshlib: {hedge_initial_requests: true}")
    return HedgePolicy(
        on_per_try_timeout=message.hedge_on_per_try_timeout,
        initial_requests=message.initial_requests.value if message.HasField("initial_requests") else 1,
        additional_chance=fraction(
            message.additional_request_chance, join(path, "additional_request_chance"), problems
        ),
    )


def _back_off(message: Any, path: str, problems: Problems) -> tuple[float, float | None]:
    if not message.HasField("retry_back_off"):
        return 0.025, None
    place = join(path, "retry_back_off")
    base_s = duration(message.retry_back_off, "base_interval", place, problems)
    max_s = duration(message.retry_back_off, "max_interval", place, problems)
    if base_s is None:
        problems.error(join(place, "base_interval"), "is required")
        return 0.025, None
    base_s = max(base_s, MIN_BACKOFF_S)
    if max_s is not None:
        max_s = max(max_s, MIN_BACKOFF_S)
        if max_s < base_s:
            problems.error(join(place, "max_interval"), "must be at least base_interval")
    return base_s, max_s


def _rate_limited(message: Any, path: str, problems: Problems) -> tuple[tuple[tuple[str, bool], ...], float]:
    if not message.HasField("rate_limited_retry_back_off"):
        return (), DEFAULT_MAX_RESET_S
    backoff, place = message.rate_limited_retry_back_off, join(path, "rate_limited_retry_back_off")
    cover(backoff, place, problems, used=frozenset({"reset_headers", "max_interval"}), harmless=frozenset())
    longest_s = duration(backoff, "max_interval", place, problems)
    headers = tuple((header.name.lower(), header.format == 1) for header in backoff.reset_headers)
    return headers, DEFAULT_MAX_RESET_S if longest_s is None else longest_s


Pairs = tuple[tuple[str, object], ...]


def _host_predicates(message: Any, path: str, problems: Problems) -> dict[str, tuple[Pairs, ...]]:
    """Return the predicates by type; for host metadata what each of them asks for."""
    found: dict[str, tuple[Pairs, ...]] = {}
    for index, predicate in enumerate(message.retry_host_predicate):
        place = f"{join(path, 'retry_host_predicate')}[{index}]"
        kind = any_type(predicate.typed_config) or _BY_NAME.get(predicate.name, "")
        if kind in (_PREVIOUS_HOSTS, _CANARIES):
            found.setdefault(kind, ())
        elif kind == _METADATA:
            config = unpack(predicate.typed_config, join(place, "typed_config"), problems)
            if config is not None:
                where = join(place, "typed_config.metadata_match")
                wanted = read_metadata(config.metadata_match, where, problems).get("envoy.lb", {})
                found[kind] = (*found.get(kind, ()), tuple(sorted(wanted.items())))
        else:
            problems.error(place, f"{kind or predicate.name or 'an empty predicate'} is not supported")
    return found


def _priority(message: Any, path: str, problems: Problems) -> int:
    """Return how often the priorities that were tried are looked at; 0: never."""
    if not message.HasField("retry_priority"):
        return 0
    extension, place = message.retry_priority, join(path, "retry_priority")
    kind = any_type(extension.typed_config)
    if kind != _PRIORITIES:
        problems.error(place, f"{kind or extension.name or 'an empty extension'} is not supported")
        return 0
    config = unpack(extension.typed_config, join(place, "typed_config"), problems)
    return 0 if config is None else int(config.update_frequency)
