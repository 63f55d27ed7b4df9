"""Retry policy (xDS `RetryPolicy`)."""

from dataclasses import dataclass

from meshlib.model.matcher import HeaderMatcher

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and how often an attempt is repeated.

    Attributes:
        retry_on: Envoy's and gRPC's words, trimmed; unknown words are kept and mean nothing.
        num_retries: Beyond the first attempt. Envoy's default is 1.
        per_try_timeout_s: None: none.
        base_interval_s: Upper bound of the first wait. Envoy's default is 25 ms.
        max_interval_s: Upper bound of every wait; None: ten times the base.
        avoid_previous_hosts: `retry_host_predicate` previous_hosts is there.
        host_selection_attempts: `host_selection_retry_max_attempts`; Envoy's default is 1.
    """

    retry_on: frozenset[str]
    num_retries: int = 1
    per_try_timeout_s: float | None = None
    retriable_status_codes: tuple[int, ...] = ()
    retriable_headers: tuple[HeaderMatcher, ...] = ()
    retriable_request_headers: tuple[HeaderMatcher, ...] = ()
    base_interval_s: float = 0.025
    max_interval_s: float | None = None
    avoid_previous_hosts: bool = False
    host_selection_attempts: int = 1
