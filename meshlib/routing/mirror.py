"""Which clusters get a copy of a request."""

from collections.abc import Sequence

from meshlib.model.route import MirrorPolicy
from meshlib.routing.matchers import in_fraction

__all__ = ["pick_mirrors"]


def pick_mirrors(policies: Sequence[MirrorPolicy], stream_id: int) -> tuple[str, ...]:
    """Return the clusters to mirror to, in order.

    Args:
        stream_id: The request's 64 random bits. Envoy reads the same number for weighted clusters, so that a mirror of
            half the requests behind a 50/50 split copies one side only.
    """
    return tuple(policy.cluster for policy in policies if in_fraction(policy.share, stream_id))
