"""Retry and hedge policies (xDS `RetryPolicy`, `HedgePolicy`)."""

from dataclasses import dataclass

from meshlib.model.matcher import Fraction, HeaderMatcher

__all__ = ["HedgePolicy", "RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often an attempt is repeated.

    Attributes:
        retry_on: Envoy's and gRPC's words, trimmed; unknown words are kept and mean nothing.
        num_retries: Beyond the first attempt. Envoy's default is 1.
        per_try_timeout_s: None: none.
        per_try_idle_timeout_s: How long nothing may come of an attempt; None: no limit.
        base_interval_s: Upper bound of the first wait. Envoy's default is 25 ms.
        max_interval_s: Upper bound of every wait; None: ten times the base.
        avoid_previous_hosts: `retry_host_predicate` previous_hosts is there.
        host_selection_attempts: `host_selection_retry_max_attempts`; Envoy's default is 1.
    """

    retry_on: frozenset[str]
    num_retries: int = 1
    per_try_timeout_s: float | None = None
    per_try_idle_timeout_s: float | None = None
    retriable_status_codes: tuple[int, ...] = ()
    retriable_headers: tuple[HeaderMatcher, ...] = ()
    retriable_request_headers: tuple[HeaderMatcher, ...] = ()
    base_interval_s: float = 0.025
    max_interval_s: float | None = None
    avoid_previous_hosts: bool = False
    host_selection_attempts: int = 1


NEVER = Fraction(0)


@dataclass(frozen=True, slots=True)
class HedgePolicy:
    """When attempts run beside each other. The first good response wins, the others are cancelled.

    Attributes:
        on_per_try_timeout: An attempt whose `per_try_timeout` is over goes on, and another begins beside it.
        initial_requests: Attempts at the beginning. Envoy 1.40 reads it and does nothing with it.
        additional_chance: Of one more at the beginning. Envoy 1.40 reads it and does nothing with it.
    """

    on_per_try_timeout: bool = False
    initial_requests: int = 1
    additional_chance: Fraction = NEVER
