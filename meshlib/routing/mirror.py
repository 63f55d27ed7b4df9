"""Which clusters get a copy of a request, and what the copy looks like."""

from collections.abc import Sequence

from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import MirrorPolicy
from meshlib.routing.matchers import in_fraction

__all__ = ["mirrored_head", "pick_mirrors"]

_INTERNAL = ("x-envoy-internal", "true")


def pick_mirrors(policies: Sequence[MirrorPolicy], stream_id: int) -> tuple[MirrorPolicy, ...]:
    """Return the mirrors to send copies to, in order.

    Args:
        stream_id: The request's 64 random bits. Envoy reads the same number for weighted clusters, so that a mirror of
            half the requests behind a 50/50 split copies one side only.
    """
    return tuple(policy for policy in policies if in_fraction(policy.share, stream_id))


def mirrored_head(head: RequestHead, policy: MirrorPolicy) -> RequestHead:
    """Return the head of a copy: the host says `-shadow` before its port, and it is marked as internal.

    Envoy also adds a hop to `x-forwarded-for`. There is no hop here: the application itself sends the copy.

    Args:
        head: Of the first attempt, as it goes out.
    """
    host = head.authority if policy.keeps_host else _shadow(head.authority)
    items = (*(item for item in head.headers.items if item[0] != _INTERNAL[0]), _INTERNAL)
    return RequestHead(head.method, host, head.path, Headers(items), scheme=head.scheme, is_grpc=head.is_grpc)


def _shadow(host: str) -> str:
    colon = host.rfind(":")
    if colon < 0 or host.endswith("]"):  # the colons of an IPv6 address are no port
        return f"{host}-shadow"
    return f"{host[:colon]}-shadow{host[colon:]}"
