"""Ring hash: each host owns points on a ring of 64 bits, and a request goes to the next point at or after its hash.

When a host leaves, only the requests of its points move.

A ring is worked out once per set of hosts and then looked up with a binary search. Rings are remembered: an ejection
and the return after it, or several clusters over the same hosts, do not work them out again.

Source: Envoy, `RingHashLoadBalancer`; gRFC A42.
"""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from math import ceil

import xxhash

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.hash_weights import Shares, hash_key
from meshlib.balancing.murmur import murmur2_64
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.remembered import Remembered
from meshlib.model.cluster import RingHash, RingHashFunction
from meshlib.ports import Pause, Rng, no_pause

__all__ = ["MAX_POINTS", "RingHashPicker"]

MAX_POINTS = 64 * 1024
"""The largest ring that is made: a point costs about 1 us, so some 0.1 s. Envoy's limit of 8 Mi would be 10 s."""

PIECE = 256
SORTED_PIECE = 4096
"""Points worked out, and sorted, without a pause: some 0.2 ms, and 1 ms."""


class RingHashPicker(HostPicker):
    """Chooses by the request's hash, by chance without one; the hosts are not none."""

    __slots__ = ("_owners", "_points", "_size", "_states")

    uses_hash = True

    def __init__(self, shares: Shares, config: RingHash, pause: Pause = no_pause) -> None:
        self._states = tuple(state for state, _ in shares)
        keys = tuple(hash_key(state, uses_hostname=config.uses_hostname) for state in self._states)
        parts = tuple(part for _, part in shares)
        max_size = min(config.max_size, MAX_POINTS)
        self._points, self._owners = _RINGS.get(
            (keys, parts, config.min_size, max_size, config.function),
            lambda: _ring(keys, parts, config.min_size, max_size, config.function, pause),
        )
        self._size = len(self._points)

    def choose(self, rng: Rng) -> EndpointState:
        return self.pick(None, rng)

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState:
        """As `Picker.pick`; pick n looks n points further on the ring."""
        if hash_ is None:
            hash_ = rng.getrandbits(64)
        index = bisect_left(self._points, hash_)
        if index == self._size:
            index = 0
        state = self._states[self._owners[index]]
        if avoid:
            for step in range(1, attempts + 1):
                if state not in avoid:
                    break
                state = self.nth(hash_, step)
        return state

    def nth(self, hash_: int, number: int) -> EndpointState:
        """Return the host so many points further; 0: that of the hash itself."""
        index = bisect_left(self._points, hash_)
        start = 0 if index == self._size else index
        return self._states[self._owners[(start + number) % self._size]]


Ring = tuple[Sequence[int], Sequence[int]]
_RINGS: Remembered[tuple[tuple[str, ...], tuple[float, ...], int, int, RingHashFunction], Ring] = Remembered(32)


def _ring(
    keys: tuple[str, ...],
    parts: tuple[float, ...],
    min_size: int,
    max_size: int,
    function: RingHashFunction,
    pause: Pause,
) -> Ring:
    """Return the points in order, and the index of the host that owns each."""
    digest = xxhash.xxh64_intdigest if function is RingHashFunction.XX_HASH else murmur2_64
    # The host with the least weight gets a whole number of points; the sums are Envoy's, in its order.
    least = min(parts)
    scale = min(ceil(least * min_size) / least, float(max_size))
    made = 0
    target = 0.0
    # Hash and owner in one number: sorting those is faster than sorting pairs.
    entries: list[int] = []
    for owner, (key, part) in enumerate(zip(keys, parts, strict=True)):
        target += scale * part
        count = max(0, ceil(target) - made)
        prefix = f"{key}_".encode("utf-8", "surrogateescape")
        for start in range(0, count, PIECE):
            pause()
            numbers = range(start, min(count, start + PIECE))
            entries += [digest(b"%s%d" % (prefix, number)) << 32 | owner for number in numbers]
        made += count
    # Sorting does not let other threads run: first in pieces, then only what is sorted already has to be merged.
    for start in range(0, len(entries), SORTED_PIECE):
        pause()
        entries[start : start + SORTED_PIECE] = sorted(entries[start : start + SORTED_PIECE])
    pause()
    entries.sort()
    pause()
    return array("Q", [entry >> 32 for entry in entries]), array("L", [entry & 0xFFFFFFFF for entry in entries])
