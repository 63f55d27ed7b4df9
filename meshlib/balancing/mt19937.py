"""The Mersenne Twister of C++'s `std::mt19937`, which Envoy seeds with a request's hash.

Python's own is seeded in another way. Seeding costs some 0.1 ms, so it is for the rare case only.

Source: Matsumoto and Nishimura, "Mersenne Twister".
"""

__all__ = ["Mt19937"]

SIZE = 624
SHIFT = 397


class Mt19937:
    """Whole numbers of 32 bits."""

    __slots__ = ("_index", "_state")

    def __init__(self, seed: int) -> None:
        value = seed & 0xFFFFFFFF
        state = [value]
        for index in range(1, SIZE):
            value = (1812433253 * (value ^ (value >> 30)) + index) & 0xFFFFFFFF
            state.append(value)
        self._state = state
        self._index = 0

    def next(self) -> int:
        """Return the next number. The state is renewed word by word, just before each is used."""
        state, index = self._state, self._index
        following = index + 1 if index + 1 < SIZE else 0
        mixed = (state[index] & 0x80000000) | (state[following] & 0x7FFFFFFF)
        value = state[(index + SHIFT) % SIZE] ^ (mixed >> 1) ^ (0x9908B0DF if mixed & 1 else 0)
        state[index] = value
        self._index = following
        value ^= value >> 11
        value ^= (value << 7) & 0x9D2C5680
        value ^= (value << 15) & 0xEFC60000
        return (value ^ (value >> 18)) & 0xFFFFFFFF

    def below(self, limit: int) -> int:
        """Return a number in [0, limit), each with the same probability, as Envoy draws it."""
        width = 2**32 // limit
        value = limit
        while value >= limit:
            value = self.next() // width
        return value
