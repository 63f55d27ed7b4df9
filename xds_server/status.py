"""What the server knows about its clients, as JSON data."""

from collections.abc import Iterable
from typing import Any

from xds_server.hub import LiveStream
from xds_server.ordering import in_push_order, short_name
from xds_server.subscription import Subscription


def clients_status(streams: Iterable[LiveStream], now: float) -> list[dict[str, Any]]:
    """Describe the open streams, by node id.

    Args:
        now: Monotonic seconds.
    """
    return sorted((_stream_status(stream, now) for stream in streams), key=lambda each: str(each["node_id"]))


def _stream_status(stream: LiveStream, now: float) -> dict[str, Any]:
    node = stream.machine.node
    subscriptions = stream.machine.subscriptions
    return {
        "node_id": node.id if node else "",
        "node_cluster": node.cluster if node else "",
        "user_agent": f"{node.user_agent_name} {node.user_agent_version}".strip() if node else "",
        "profile": str(stream.group.profile),
        "identity": str(stream.identity) if stream.identity else None,
        "peer": stream.peer,
        "connected_s": round(now - stream.opened_at, 3),
        "types": {
            short_name(type_url): _subscription_status(subscriptions[type_url], now)
            for type_url in in_push_order(subscriptions)
        },
    }


def _subscription_status(subscription: Subscription, now: float) -> dict[str, Any]:
    in_flight = subscription.in_flight
    return {
        "state": _state(subscription),
        "names": sorted(subscription.names),
        "wildcard": subscription.wildcard,
        "resources": len(subscription.known),
        "sent_version": subscription.sent_version,
        "acked_version": subscription.acked_version,
        "unanswered_s": round(now - in_flight.sent_at, 3) if in_flight else None,
        "rejections": subscription.nacks,
        "last_error": subscription.last_error,
        "stale_nonces": subscription.stale_nonces,
    }


def _state(subscription: Subscription) -> str:
    """Return the state in CSDS' words (OBS-1)."""
    if subscription.last_error is not None:
        return "ERROR"
    if subscription.in_flight is not None:
        return "STALE"
    return "SYNCED" if subscription.sent_version else "NOT_SENT"
