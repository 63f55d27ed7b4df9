"""What a call would come to: its times and retries, for those who explain it. Nothing is sent or counted."""

from dataclasses import dataclass

from meshlib.call.limits import asked_limits, has_control_headers
from meshlib.call.repeat import capped_retries, is_safe_to_hedge
from meshlib.model.request import RequestHead
from meshlib.resilience.budget import retry_limit
from meshlib.resilience.retry import RetryOn
from meshlib.routing.table import RouteMatch
from meshlib.view import ClusterState, TargetView

__all__ = ["CallPlan", "plan_call"]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """Seconds; None: no limit.

    Attributes:
        timeout_s: Of the call, from its first attempt on.
        stream_s: Of the whole exchange.
        per_try_s: Of one attempt, until its response headers are there.
        hedge_after_s: When another attempt begins beside one that is slow; None: never.
        retries: At most, after the first attempt; 0: nothing is repeated.
        retry_on: Conditions in force, by name (`SERVER_ERROR`, ...).
        waits_s: Longest wait before each retry.
        repeats_processed: What may have reached the application is repeated too; else only what surely did not.
        source: Whose policy it is: `cluster`, `route`, `request` (its headers alone), or empty: nobody's.
        room: Retries that the circuit breaker would let begin now.
    """

    timeout_s: float | None
    stream_s: float | None
    per_try_s: float | None
    hedge_after_s: float | None
    retries: int
    retry_on: tuple[str, ...]
    waits_s: tuple[float, ...]
    repeats_processed: bool
    source: str
    room: int | None


def plan_call(target: TargetView, match: RouteMatch, head: RequestHead, *, guard_unsafe: bool = True) -> CallPlan:
    """Say what a request would get under a route.

    Args:
        match: Of the request.
        head: As the application makes it.
        guard_unsafe: As for `Call`.
    """
    found = target.clusters.get(match.cluster)
    cluster = found if isinstance(found, ClusterState) else None
    own = None if cluster is None else cluster.config.cluster.retry
    policy = match.retry if own is None else own
    plan = target.plan(match.action, match.retry, own)
    timeout_s, per_try_s, stream_s = plan.grpc if head.profile.grpc_times else plan.http
    if has_control_headers(head.headers):
        asked = asked_limits(head, plan, target.max_stream_duration_s)
        timeout_s, per_try_s, stream_s = asked.timeout_s, asked.per_try_s, asked.stream_s
    times = [seconds for seconds in (per_try_s, plan.idle_try_s) if seconds is not None]
    first_s = min(times, default=None)
    wanted = head.headers.get("x-envoy-hedge-on-per-try-timeout")
    is_hedged = match.hedge is not None and match.hedge.on_per_try_timeout
    if wanted in ("true", "false"):
        is_hedged = wanted == "true"
    rules = plan.rules.for_request(match.rewrite(head))
    is_safe = not guard_unsafe or is_safe_to_hedge(head, match)
    retries = capped_retries(rules.num_retries if rules.on else 0, head.profile)
    breaker = None
    if cluster is not None:
        breaker = cluster.high_breaker if match.action.high_priority else cluster.breaker
    base_s = 0.025 if policy is None else policy.base_interval_s
    most_s = 10 * base_s if policy is None or policy.max_interval_s is None else policy.max_interval_s
    source = "cluster" if own is not None else "route" if match.retry is not None else "request" if rules.on else ""
    return CallPlan(
        timeout_s=timeout_s,
        stream_s=stream_s,
        per_try_s=None if is_hedged else first_s,
        hedge_after_s=first_s if is_hedged and is_safe and rules.can_hedge else None,
        retries=retries,
        retry_on=tuple(word.name or "" for word in RetryOn if rules.on & word),
        waits_s=tuple(min(base_s * 2**number, most_s) for number in range(retries)),
        repeats_processed=is_safe,
        source=source if retries else "",
        room=None if breaker is None else max(0, retry_limit(breaker.limits, breaker.active) - breaker.retries),
    )
