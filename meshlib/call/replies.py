"""What the mesh answers by itself when a request cannot be sent: Envoy's local replies."""

from dataclasses import replace

from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.snapshot import ConfigFault
from meshlib.routing.replies import cluster_not_found

__all__ = ["MAINTENANCE", "NO_CONTENT", "NO_HOST", "OVERFLOW", "OVERFLOW_AGAIN", "drop_reply", "no_cluster_reply"]

_UNAVAILABLE = 14
_TEXT = (("content-type", "text/plain"),)

NO_CONTENT = LocalReply(204, "UT", "response_timeout")
"""The time is over, and the request asked to be told so with a 204 (`x-envoy-upstream-rq-timeout-alt-response`)."""

NO_HOST = LocalReply(503, "UH", "no_healthy_upstream", b"no healthy upstream", _TEXT, _UNAVAILABLE)
"""The picker found nobody."""

OVERFLOW = LocalReply(
    503,
    "UO",
    "upstream_reset_before_response_started{overflow}",
    b"upstream connect error or disconnect/reset before headers. reset reason: overflow",
    (*_TEXT, ("x-envoy-overloaded", "true")),
    _UNAVAILABLE,
)
"""The circuit breaker's limit of requests is reached."""

OVERFLOW_AGAIN = replace(OVERFLOW, body=OVERFLOW.body.replace(b". reset", b". retried and the latest reset"))
"""The same, of a retry."""


MAINTENANCE = LocalReply(
    503, "UO", "maintenance_mode", b"maintenance mode", (*_TEXT, ("x-envoy-overloaded", "true")), _UNAVAILABLE
)
"""A runtime value has the cluster's requests answered so."""


def drop_reply(head: RequestHead, share: float, category: str) -> LocalReply:
    """EDS asked for this request to be dropped.

    Args:
        share: Of the requests that are dropped; from 1.0 on it is all of them, which has a flag of its own.
        category: Names the reason in a gRPC status (A27).
    """
    flag, what = ("UDO", "unconditional drop overload") if share >= 1 else ("DO", "drop overload")
    body = f"EDS-configured drop: {category}" if not head.profile.answers_itself else what
    headers = (*_TEXT, ("x-envoy-" + what.replace(" ", "-"), "true"))
    return LocalReply(503, flag, what.replace(" ", "_"), body.encode(), headers, _UNAVAILABLE)


def no_cluster_reply(head: RequestHead, name: str, status: int, fault: ConfigFault | None) -> LocalReply:
    """The route's cluster is not there, or cannot be used.

    Args:
        status: The route's `cluster_not_found_response_code`.
        fault: Why it cannot be used. Envoy's answer has no body; here there is a reason to give.
    """
    reply = cluster_not_found(head, name, status)
    return reply if fault is None else replace(reply, body=fault.message.encode(), headers=_TEXT)
