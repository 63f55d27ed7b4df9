"""Which clusters get a copy of a request, and what the copy looks like."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import HeaderChange, MirrorPolicy
from meshlib.routing.changes import Changes
from meshlib.routing.matchers import in_fraction

__all__ = ["mirrored_head", "pick_mirrors"]

_INTERNAL = ("x-envoy-internal", "true")


def pick_mirrors(policies: Sequence[MirrorPolicy], stream_id: int, head: RequestHead) -> tuple[MirrorPolicy, ...]:
    """Return the mirrors to send copies to, in order, each with the name of its cluster.

    Args:
        stream_id: The request's 64 random bits. Envoy reads the same number for weighted clusters, so that a mirror of
            half the requests behind a 50/50 split copies one side only.
    """
    picked = (policy for policy in policies if in_fraction(policy.share, stream_id))
    return tuple(found for policy in picked if (found := _with_cluster(policy, head)) is not None)


def _with_cluster(policy: MirrorPolicy, head: RequestHead) -> MirrorPolicy | None:
    if not policy.cluster_header:
        return policy
    values = head.values(policy.cluster_header)
    return replace(policy, cluster=values[0]) if values and values[0] else None


def mirrored_head(head: RequestHead, policy: MirrorPolicy) -> RequestHead:
    """Return the head of a copy: the host says `-shadow` before its port, and it is marked as internal.

    Envoy also adds a hop to `x-forwarded-for`. There is no hop here: the application itself sends the copy.

    Args:
        head: Of the first attempt, as it goes out.
    """
    host = policy.host_rewrite or (head.authority if policy.keeps_host else _shadow(head.authority))
    items = (*(item for item in head.headers.items if item[0] != _INTERNAL[0]), _INTERNAL)
    if policy.changes:
        items = _compiled(policy.changes).apply(Headers(items), head).items
    return head.but(authority=host, headers=Headers(items))


def _shadow(host: str) -> str:
    colon = host.rfind(":")
    if colon < 0 or host.endswith("]"):  # the colons of an IPv6 address are no port
        return f"{host}-shadow"
    return f"{host[:colon]}-shadow{host[colon:]}"


@lru_cache(maxsize=256)
def _compiled(changes: tuple[HeaderChange, ...]) -> Changes:
    """Policies are values of the configuration, and few."""
    return Changes(changes, is_response=False, attempts=1)
