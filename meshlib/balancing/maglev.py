"""Maglev: a table with one host per slot, filled by the hosts' own orders of preference; a hash is a slot.

Shares are as exact as the table is large, looking up is one step, and when a host leaves, few requests of the others
move along with its own.

Filling takes time (some 50 ms for the usual 65537 slots), so tables are remembered: an ejection and the return after
it, or several clusters over the same hosts, do not fill them again.

Source: Envoy, `MaglevLoadBalancer`; Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer".
"""

from array import array
from collections.abc import Sequence

import xxhash

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.hash_weights import Shares, hash_key
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.remembered import Remembered
from meshlib.model.cluster import Maglev
from meshlib.ports import Pause, Rng, no_pause

__all__ = ["MAX_SLOTS", "MaglevPicker"]

MAX_SLOTS = 131071
"""The largest table that is accepted, a prime: 0.1 to 0.2 s to fill. Envoy's limit of 5000011 would be half a minute."""
PIECE = 256
"""Slots filled without a pause: some 0.2 ms."""

_ALL = 2**64


class MaglevPicker(HostPicker):
    """Chooses by the request's hash, by chance without one; the hosts are not none."""

    __slots__ = ("_size", "_states", "_table")

    uses_hash = True

    def __init__(self, shares: Shares, config: Maglev, pause: Pause = no_pause) -> None:
        # By key, so that the table does not depend on the order of the resource.
        keyed = sorted(
            ((hash_key(state, uses_hostname=config.uses_hostname), state, part) for state, part in shares),
            key=lambda entry: entry[0].encode("utf-8", "surrogateescape"),
        )
        self._states = tuple(state for _, state, _ in keyed)
        self._size = config.table_size
        keys, parts = tuple(key for key, _, _ in keyed), tuple(part for _, _, part in keyed)
        self._table = _TABLES.get((keys, parts, self._size), lambda: _table(keys, parts, self._size, pause))

    def choose(self, rng: Rng) -> EndpointState:
        return self.pick(None, rng)

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState:
        """As `Picker.pick`; pick n takes the hash xor 2^64 - n."""
        if hash_ is None:
            hash_ = rng.getrandbits(64)
        state = self._states[self._table[hash_ % self._size]]
        if avoid:
            for step in range(1, attempts + 1):
                if state not in avoid:
                    break
                state = self.nth(hash_, step)
        return state

    def nth(self, hash_: int, number: int) -> EndpointState:
        """Return the host of another slot for each number; 0: that of the hash itself."""
        return self._states[self._table[(hash_ ^ (_ALL - number) if number else hash_) % self._size]]


_TABLES: Remembered[tuple[tuple[str, ...], tuple[float, ...], int], Sequence[int]] = Remembered(32)


def _table(keys: tuple[str, ...], parts: tuple[float, ...], size: int, pause: Pause) -> Sequence[int]:
    """Return the index of the host of each slot."""
    table = array("L", [0]) * size
    is_taken = bytearray(size)
    largest = max(parts)
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    # The slot each host wants next, how far it goes on from there, and when it is its turn again.
    pause()
    slots = [xxhash.xxh64_intdigest(key, 0) % size for key in encoded]
    pause()
    skips = [xxhash.xxh64_intdigest(key, 1) % (size - 1) + 1 for key in encoded]
    pause()
    targets = [0.0] * len(keys)
    hosts = range(len(keys))
    left, iteration = size, 0
    rest_at = max(0, size - PIECE)
    while True:
        iteration += 1
        for host in hosts:
            if iteration * parts[host] < targets[host]:
                continue
            targets[host] += largest
            slot, skip = slots[host], skips[host]
            while is_taken[slot]:
                slot += skip
                if slot >= size:
                    slot -= size
            table[slot] = host
            is_taken[slot] = 1
            slot += skip
            slots[host] = slot - size if slot >= size else slot
            left -= 1
            if left <= rest_at:
                if not left:
                    return table
                rest_at = max(0, left - PIECE)
                pause()
