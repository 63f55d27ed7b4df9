"""Retry and hedge policies (xDS `RetryPolicy`, `HedgePolicy`)."""

from dataclasses import dataclass, field

from meshlib.model.matcher import Fraction, HeaderMatcher
from meshlib.options import check_number

__all__ = ["DEFAULT_SAFETY", "HedgePolicy", "RetryBudget", "RetryPolicy", "Safety"]


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
        reset_headers: Response headers that say when to come back: name in lower case, and whether it is a time of day
            (seconds since the epoch) instead of seconds from now. The first that can be used decides the wait.
        max_reset_s: Longer waits are not believed. Envoy's default is 300 s.
        avoid_previous_hosts: `retry_host_predicate` previous_hosts is there; so with
        avoid_canaries: omit_canary_hosts, and
        avoid_metadata: omit_host_metadata, each with what all of a host's `envoy.lb` metadata must hold.
        priority_update: `retry_priority` previous_priorities, its `update_frequency`; 0: it is not there.
        host_selection_attempts: `host_selection_retry_max_attempts`; Envoy's default is 1.
        has_own_base: The resource says `base_interval_s`, so no runtime value stands for it.
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
    reset_headers: tuple[tuple[str, bool], ...] = ()
    max_reset_s: float = 300.0
    avoid_previous_hosts: bool = False
    avoid_canaries: bool = False
    avoid_metadata: tuple[tuple[tuple[str, object], ...], ...] = ()
    priority_update: int = 0
    host_selection_attempts: int = 1
    has_own_base: bool = field(default=False, compare=False)

    @property
    def chooses_hosts(self) -> bool:
        """A retry is not to go to any host."""
        return self.avoid_previous_hosts or self.avoid_canaries or bool(self.avoid_metadata)


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


@dataclass(frozen=True, slots=True)
class RetryBudget:
    """How many retries and hedges one process may make to one cluster, on top of what the policies and limits say.

    A failing service is asked `percent` more often than it is called, not several times as often. The defaults are those
    of finagle and linkerd.

    Attributes:
        percent: Retries that calls earn: 20 means that five calls pay for one. Not negative.
        min_per_s: Retries a second that need not be earned, so that a client with few calls can retry. Not negative.
        window_s: What was earned longer ago does not count. Above 0.
    """

    percent: float = 20.0
    min_per_s: float = 10.0
    window_s: float = 10.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            TypeError: One is no number.
            ValueError: One is out of range.
        """
        for name in ("percent", "min_per_s", "window_s"):
            check_number(f"RetryBudget: {name}", getattr(self, name))
        if not (self.percent >= 0 and self.min_per_s >= 0 and self.window_s > 0):
            raise ValueError(f"{self}: percent and min_per_s must not be negative, window_s must be above 0")


@dataclass(frozen=True, slots=True)
class Safety:
    """What a process does beyond the policies so that retries do no harm.

    Attributes:
        budget: Per cluster; None: none.
        one_layer: Retries are marked with a header, and calls made while serving a marked request are not repeated.
    """

    budget: RetryBudget | None = RetryBudget()
    one_layer: bool = True


DEFAULT_SAFETY = Safety()
