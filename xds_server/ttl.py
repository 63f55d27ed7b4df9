"""Resources that expire at the client unless they are refreshed (section 15 of the rules).

A time to live is set in native documents, per resource, and sent only to clients that know it. A heartbeat names the
resource and its version, without the body. In the state of the world the resources themselves are sent again: of clusters
and listeners Envoy takes a heartbeat for a deletion of everything (TTL-2), and it lets endpoints expire in spite of one.
"""

from collections.abc import Iterable, Mapping

from xds_server.snapshot import Resource
from xds_server.subscription import Subscription
from xds_server.wire import Node

SUPPORTS_TTL = "xds.config.supports-resource-ttl"
"""Client feature; Envoy honours a time to live without saying so."""

BEATS_PER_TTL = 3
"""Two may be late or lost before anything expires."""


def supports_ttl(node: Node | None) -> bool:
    """Tell whether a client knows times to live, and in the state of the world the wrapper that carries them."""
    return node is not None and (node.user_agent_name == "envoy" or SUPPORTS_TTL in node.client_features)


def schedule(subscription: Subscription, names: Iterable[str], wanted: Mapping[str, Resource], now: float) -> None:
    """Plan the next heartbeats of what is being sent; `now` is monotonic seconds, here and below."""
    for name in names:
        resource = wanted.get(name)
        if resource is not None and resource.ttl_s is not None:
            subscription.refresh_at[name] = now + resource.ttl_s / BEATS_PER_TTL
        else:
            subscription.refresh_at.pop(name, None)


def next_refresh(subscription: Subscription) -> float | None:
    return min(subscription.refresh_at.values(), default=None)


def take_late(subscription: Subscription, wanted: Mapping[str, Resource], now: float) -> list[str]:
    """Return the names whose refresh is so late that they may have expired; they are no longer planned."""
    late: list[str] = []
    for name, at in list(subscription.refresh_at.items()):
        resource = wanted.get(name)
        if resource is None or resource.ttl_s is None or name in subscription.suspect:
            continue
        if now > at + resource.ttl_s / BEATS_PER_TTL:
            late.append(name)
            del subscription.refresh_at[name]
    return late


def take_due(subscription: Subscription, wanted: Mapping[str, Resource], now: float) -> list[str]:
    """Return the names of a type to refresh now, sorted, and plan their next time.

    Those that are due soon come along, so that resources which were sent at different times share a message. Not refreshed
    is what the client does not have: what has changed since, and what it rejected.
    """
    if not any(at <= now for at in subscription.refresh_at.values()):
        return []
    due: list[str] = []
    for name, at in list(subscription.refresh_at.items()):
        resource = wanted.get(name)
        if (
            resource is None
            or resource.ttl_s is None
            or name in subscription.suspect
            or subscription.known.get(name) != resource.version
        ):
            del subscription.refresh_at[name]
        elif at <= now + resource.ttl_s / BEATS_PER_TTL / 2:
            due.append(name)
    schedule(subscription, due, wanted, now)
    return sorted(due)
