"""Retry and hedge policies of routes and virtual hosts."""

from typing import Any, Final

from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.xds.decode_common import cover, duration, join, wrapped
from meshlib.xds.decode_matcher import fraction, header_matchers
from meshlib.xds.problems import Problems

__all__ = ["hedge_policy", "retry_policy"]

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
        "retry_host_predicate",
        "host_selection_retry_max_attempts",
    }
)
_PREVIOUS_HOSTS: Final = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
_PREVIOUS_HOSTS_NAME: Final = "envoy.retry_host_predicates.previous_hosts"


def retry_policy(message: Any, path: str, problems: Problems) -> RetryPolicy:
    """Decode a RetryPolicy."""
    cover(message, path, problems, used=_USED, harmless=frozenset())
    base_s, max_s = _back_off(message, path, problems)
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
        max_interval_s=max_s,
        avoid_previous_hosts=_avoids_previous_hosts(message, path, problems),
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


def _avoids_previous_hosts(message: Any, path: str, problems: Problems) -> bool:
    found = False
    for index, predicate in enumerate(message.retry_host_predicate):
        name = predicate.typed_config.type_url.rpartition("/")[2]
        if name == _PREVIOUS_HOSTS or (not name and predicate.name == _PREVIOUS_HOSTS_NAME):
            found = True
        else:
            place = f"{join(path, 'retry_host_predicate')}[{index}]"
            problems.error(place, f"{name or predicate.name or 'an empty predicate'} is not supported")
    return found
