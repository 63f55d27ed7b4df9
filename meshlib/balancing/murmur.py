"""The 64-bit Murmur2 of libstdc++'s `std::hash`, which Envoy's rings may ask for.

Source: libstdc++, `hash_bytes.cc` (`_Hash_bytes` for 64 bits); Envoy, `MurmurHash::murmurHash2`.
"""

from struct import unpack_from

__all__ = ["murmur2_64"]

_MASK = 2**64 - 1
_MULTIPLIER = (0xC6A4A793 << 32) + 0x5BD1E995
SEED = 0xC70F6907


def murmur2_64(data: bytes, seed: int = SEED) -> int:
    """Return the hash as 64 unsigned bits. Some microseconds for a host's key."""
    length = len(data)
    whole = length & ~7
    value = seed ^ (length * _MULTIPLIER & _MASK)
    for (word,) in (unpack_from("<Q", data, place) for place in range(0, whole, 8)):
        mixed = word * _MULTIPLIER & _MASK
        mixed = (mixed ^ mixed >> 47) * _MULTIPLIER & _MASK
        value = (value ^ mixed) * _MULTIPLIER & _MASK
    if length & 7:
        value = (value ^ int.from_bytes(data[whole:], "little")) * _MULTIPLIER & _MASK
    value = (value ^ value >> 47) * _MULTIPLIER & _MASK
    return value ^ value >> 47
