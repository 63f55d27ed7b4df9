"""What load-balancing policies are tested with."""

from collections import Counter
from collections.abc import Sequence

from meshlib.balancing import EndpointState
from meshlib.model.custom_policy import LbEndpoint, LbPolicy, LbRequest
from meshlib.model.endpoint import Endpoint
from meshlib.ports import Rng
from meshlib.testing.rng import SeededRng

__all__ = ["lb_endpoints", "pick_many"]


def lb_endpoints(*endpoints: str | Endpoint) -> tuple[LbEndpoint, ...]:
    """Make what a policy chooses among, of endpoints or of their addresses, `host:port`."""
    return tuple(EndpointState(Endpoint(one) if isinstance(one, str) else one) for one in endpoints)


def pick_many(
    policy: LbPolicy,
    endpoints: Sequence[LbEndpoint],
    picks: int,
    *,
    now: float = 0.0,
    rng: Rng | None = None,
    hash: int | None = None,  # as in LbRequest
) -> Counter[str]:
    """Have a policy choose many times, and count its choices by address; those of nobody under the empty address.

    Args:
        rng: None: a `SeededRng(0)`.
    """
    request = LbRequest(now, SeededRng() if rng is None else rng, hash)
    found = (policy.pick(endpoints, request) for _ in range(picks))
    return Counter("" if endpoint is None else endpoint.address for endpoint in found)
