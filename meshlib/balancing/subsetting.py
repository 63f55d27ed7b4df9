"""Random subsetting: each client uses a few of the endpoints, which its own seed decides (rendezvous hashing).

The connections of many clients spread evenly over the endpoints, and one endpoint more or less changes one of a
client's.

Source: gRFC A68.
"""

from collections.abc import Sequence

import xxhash

from meshlib.balancing.endpoint_state import EndpointState

__all__ = ["random_subset"]


def random_subset(states: Sequence[EndpointState], size: int, seed: int) -> tuple[EndpointState, ...]:
    """Return the `size` endpoints with the least hashes, in that order; all, as they are, when there are not more.

    Args:
        seed: 64 bits of the client's own.
    """
    if len(states) <= size:
        return tuple(states)

    def key(state: EndpointState) -> int:
        return xxhash.xxh64_intdigest(state.address.encode("utf-8", "surrogateescape"), seed)

    return tuple(sorted(states, key=key)[:size])
