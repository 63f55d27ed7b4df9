"""The call that carries a copy of a request to a mirror cluster.

It is a call like any other, so the mirror's endpoints, limits and outlier detection are those of its cluster, and it
ends with the time of the request that it copies. What it has not is a route of its own: nothing is repeated, injected
or rewritten. Source: Envoy, `ShadowWriterImpl` over an `AsyncClient` with a route that says nothing.
"""

from functools import lru_cache
from typing import Final

from meshlib.call.facts import CallFacts
from meshlib.call.machine import Call
from meshlib.events import Event, Hook, HostEjected
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import (
    MirrorPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
)
from meshlib.model.snapshot import TargetConfig
from meshlib.model.subset import MatchCriteria
from meshlib.ports import Rng
from meshlib.routing.mirror import mirrored_head
from meshlib.view import TargetView

__all__ = ["mirror_call"]

_NAME: Final = "mirror"
_OF_HOSTS: Final = frozenset({"x-envoy-original-host", "x-forwarded-host"})


def mirror_call(
    call: CallFacts,
    policy: MirrorPolicy,
    sent: RequestHead,
    *,
    rng: Rng,
    now: float,
    timeout_s: float | None,
    hook: Hook | None = None,
) -> Call:
    """Make the call for a copy; nothing happens before its `start`.

    Args:
        call: Of the request itself.
        policy: One of its match's mirrors.
        sent: Head of its first attempt. The copy is of what it was before an endpoint's hostname became its host
            (`auto_host_rewrite`).
        timeout_s: Until its deadline; None: no limit.
        hook: Hears of ejections only: a copy is no call of the application.
    """
    made = _target(policy.cluster, None if call.match is None else call.match.criteria)
    target = TargetView(made.name, made.config, call.target.clusters, previous=made)
    if call.match is not None and call.match.action.auto_host_rewrite:
        sent = _with_host_of(sent, call.sent_head)
    head = mirrored_head(sent, policy)
    only_ejections = None if hook is None else _ejections(hook)
    return Call(target, head, rng=rng, now=now, timeout_s=timeout_s, hook=only_ejections)


def _with_host_of(head: RequestHead, other: RequestHead) -> RequestHead:
    """Return a head with the host of another, and what that says of its host."""
    kept = (item for item in head.headers.items if item[0] not in _OF_HOSTS)
    told = (item for item in other.headers.items if item[0] in _OF_HOSTS)
    return head.but(authority=other.authority, headers=Headers((*kept, *told)))


def _ejections(hook: Hook) -> Hook:
    def filtered(event: Event) -> None:
        if isinstance(event, HostEjected):
            hook(event)

    return filtered


@lru_cache(maxsize=256)
def _target(cluster: str, criteria: MatchCriteria | None) -> TargetView:
    """Return the compiled route to a mirror; it fits every view. A copy goes to the subset of the request."""
    # The time is that of the request: a timeout of the route's own would be Envoy's 15 s.
    action = RouteAction(SingleCluster(cluster), timeout_s=0.0, metadata_match=criteria)
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "")), action)
    routes = RouteConfiguration(_NAME, (VirtualHost(_NAME, ("*",), (route,)),))
    return TargetView(_NAME, TargetConfig(ClientListener(_NAME, routes), routes), {})
