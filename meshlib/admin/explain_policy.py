"""What a route does to a request on its way, in an explanation: times, retries, copies, faults, by cluster where they differ."""

from dataclasses import dataclass, replace

from meshlib.call.limits import asked_limits, has_control_headers
from meshlib.call.repeat import IDEMPOTENT
from meshlib.model.cluster import Cluster
from meshlib.model.lb_policy import Maglev, RandomSubsetting, RingHash
from meshlib.model.request import RequestHead
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import (
    ClusterHeader,
    FaultPolicy,
    HashPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    VirtualHost,
)
from meshlib.routing.trace import RouteStep
from meshlib.view import ClusterState, TargetView

__all__ = ["PolicyExplanation", "explain_policies", "policy_text"]


@dataclass(frozen=True, slots=True)
class PolicyExplanation:
    """What a route does to a request on its way. Seconds; None: no limit.

    Attributes:
        cluster: Of a split whose clusters bring policies of their own: the cluster that this holds for; empty: for all.
        timeout_s: From the first attempt on, retries included.
        per_try_timeout_s: Of one attempt, until its response headers.
        stream_s: Of the whole exchange, from the call's beginning on.
        idle_s: How long nothing may happen.
        retry: In words, or empty.
        retries: How often an attempt may be repeated.
        retry_on: For which reasons, sorted.
        repeats: Which failures of this very request are repeated: `all`, or `unprocessed` (what may have been processed
            is not sent twice, because the request does not say that this does no harm).
        hedge: In words, or empty.
        fault: In words, or empty.
        mirrors: Clusters that get a copy, with the share of requests, 0.0-1.0.
        is_high_priority: The limits of high priority hold.
        hashes: What the request's hash is made of, in order, like `header x-user`.
        cluster_s: How long the cluster lets an exchange with it take; None: it does not say.
    """

    route: str
    timeout_s: float | None
    retry: str
    fault: str
    per_try_timeout_s: float | None = None
    stream_s: float | None = None
    idle_s: float | None = None
    retries: int = 0
    retry_on: tuple[str, ...] = ()
    repeats: str = "all"
    hedge: str = ""
    mirrors: tuple[tuple[str, float], ...] = ()
    is_high_priority: bool = False
    hashes: tuple[str, ...] = ()
    cluster_s: float | None = None
    cluster: str = ""


def _policy(
    step: RouteStep,
    route: Route,
    action: RouteAction,
    host: VirtualHost,
    target: TargetView,
    head: RequestHead,
    owner: Cluster | None,
) -> PolicyExplanation:
    """Say what a route does to a request to one of its clusters; None: there is none, or it is not known."""
    above = action.retry if action.retry is not None else host.retry
    # What a cluster says itself takes the place of what routes say.
    mirrors = action.mirrors if owner is None or not owner.mirrors else owner.mirrors
    hashes = action.hash_policies if owner is None else _own_hashes(owner) or action.hash_policies
    plan = target.plan(action, above, None if owner is None else owner.retry)
    retry = plan.retry
    timeout_s, per_try_s, stream_s = plan.grpc if head.profile.grpc_times else plan.http
    if has_control_headers(head.headers):
        asked = asked_limits(head, plan, target.max_stream_duration_s)
        timeout_s, per_try_s, stream_s = asked.timeout_s, asked.per_try_s, asked.stream_s
    rules = plan.rules.for_request(head)
    retries = rules.num_retries if rules.on else 0
    hedge = action.hedge if action.hedge is not None else host.hedge
    return PolicyExplanation(
        f"route {step.number}{f' {step.name}' if step.name else ''}",
        timeout_s,
        _retry_words(retry, plan.per_try_s),
        _fault_words(_fault(route, host, target.config.routes, target)),
        per_try_timeout_s=per_try_s,
        stream_s=stream_s,
        idle_s=plan.idle_s,
        retries=retries,
        retry_on=() if retry is None else tuple(sorted(retry.retry_on)),
        repeats="all" if _may_repeat(head, route) else "unprocessed",
        hedge=_hedge_words(hedge),
        mirrors=tuple(
            (mirror.cluster or f"(header {mirror.cluster_header})", mirror.share.numerator / mirror.share.denominator)
            for mirror in mirrors
        ),
        is_high_priority=action.high_priority,
        hashes=tuple(f"{one.kind} {one.name}".rstrip() for one in hashes),
        cluster_s=None if owner is None or head.profile.grpc_times else owner.max_stream_duration_s,
    )


def explain_policies(
    step: RouteStep, route: Route, action: RouteAction, host: VirtualHost, target: TargetView, head: RequestHead
) -> list[PolicyExplanation]:
    """Return a route's policy; one for each of its clusters where these bring their own and differ by that."""
    owners = _clusters_of(step, action, target, head) or {"": None}
    found = {name: _policy(step, route, action, host, target, head, owner) for name, owner in owners.items()}
    first, *others = found.values()
    if all(one == first for one in others):
        return [first]
    return [replace(one, cluster=name) for name, one in found.items()]


def _own_hashes(cluster: Cluster) -> tuple[HashPolicy, ...]:
    """Return what a cluster, or its policy, hashes on whatever routes say; empty: nothing."""
    policy = cluster.lb_policy
    while isinstance(policy, RandomSubsetting):
        policy = policy.child
    return (policy.hash_policies if isinstance(policy, RingHash | Maglev) else ()) or cluster.hash_policies


def _clusters_of(
    step: RouteStep, action: RouteAction, target: TargetView, head: RequestHead
) -> dict[str, Cluster | None]:
    """Return what each of a route's clusters says, by name; None: it is not there. The request may name one."""
    names = [name for name, _ in step.clusters]
    if isinstance(action.cluster, ClusterHeader):
        names += head.values(action.cluster.header.lower())[:1]
    states = {name: target.clusters.get(name) for name in names}
    return {name: state.config.cluster if isinstance(state, ClusterState) else None for name, state in states.items()}


def _may_repeat(head: RequestHead, route: Route) -> bool:
    """Whether what may have been processed can be sent again; see `meshlib.call.repeat`."""
    if head.profile.grpc_retries or head.method in IDEMPOTENT or "idempotency-key" in head.headers:
        return True
    return route.metadata.get("meshlib", {}).get("retry_non_idempotent") is True


def policy_text(policy: PolicyExplanation) -> str:
    """Write a policy for people."""
    facts = ["no timeout" if policy.timeout_s is None else f"timeout {policy.timeout_s:g} s"]
    for value, words in ((policy.per_try_timeout_s, "per try"), (policy.stream_s, "in all"), (policy.idle_s, "idle")):
        if value is not None:
            facts.append(f"{value:g} s {words}")
    if policy.cluster_s:
        facts.append(f"{policy.cluster_s:g} s by the cluster")
    facts.append(policy.retry or "no retries")
    if policy.retries and policy.repeats != "all":
        facts.append("what may have been processed is not repeated")
    facts += [policy.hedge, policy.fault]
    facts += [f"{100 * share:g} % copied to {name}" for name, share in policy.mirrors]
    if policy.hashes:
        facts.append(f"hashes on {', '.join(policy.hashes)}")
    if policy.is_high_priority:
        facts.append("high priority")
    return "; ".join(part for part in facts if part)


def _fault(route: Route, host: VirtualHost, routes: RouteConfiguration, target: TargetView) -> FaultPolicy | None:
    listener = target.config.listener
    if not listener.has_fault_filter:
        return None
    return route.fault or host.fault or routes.fault or listener.fault


def _retry_words(retry: RetryPolicy | None, per_try_s: float | None) -> str:
    if retry is None or retry.num_retries == 0 or not retry.retry_on:
        return ""
    words = f"up to {retry.num_retries} retries on {','.join(sorted(retry.retry_on))}"
    if per_try_s is not None:
        words += f", {per_try_s:g} s per try"
    most_s = retry.base_interval_s * 10 if retry.max_interval_s is None else retry.max_interval_s
    return words + f", waits of up to {retry.base_interval_s:g} s, doubling to {most_s:g} s"


def _hedge_words(hedge: HedgePolicy | None) -> str:
    return "a second attempt beside one that is slow" if hedge is not None and hedge.on_per_try_timeout else ""


def _fault_words(fault: FaultPolicy | None) -> str:
    if fault is None:
        return ""
    kinds = [kind for kind, part in (("delay", fault.delay), ("abort", fault.abort)) if part is not None]
    return f"injects faults: {', '.join(kinds)}" if kinds else ""
