"""XXH64 of every length from 0 to 1024, by the library in use and by the published algorithm, written down plainly here.

The plain one is checked by the published vectors of the algorithm first.
"""

import random

import pytest
import xxhash

MASK = 2**64 - 1
P1, P2, P3, P4, P5 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
PRIME32 = 2654435761


def rotated(value: int, bits: int) -> int:
    value &= MASK
    return (value << bits | value >> 64 - bits) & MASK


def lane(accumulator: int, read: int) -> int:
    return rotated(accumulator + read * P2, 31) * P1 & MASK


def plain(data: bytes, seed: int = 0) -> int:
    """The algorithm as its specification has it: stripes of four lanes, then the rest, then the avalanche."""
    at = 0
    if len(data) >= 32:
        lanes = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        while at + 32 <= len(data):
            for index in range(4):
                lanes[index] = lane(lanes[index], int.from_bytes(data[at : at + 8], "little"))
                at += 8
        value = sum(rotated(one, bits) for one, bits in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for one in lanes:
            value = ((value ^ lane(0, one)) * P1 + P4) & MASK
    else:
        value = (seed + P5) & MASK
    value = (value + len(data)) & MASK
    while at + 8 <= len(data):
        value = (rotated(value ^ lane(0, int.from_bytes(data[at : at + 8], "little")), 27) * P1 + P4) & MASK
        at += 8
    if at + 4 <= len(data):
        value = (rotated(value ^ int.from_bytes(data[at : at + 4], "little") * P1 & MASK, 23) * P2 + P3) & MASK
        at += 4
    for byte in data[at:]:
        value = rotated(value ^ byte * P5 & MASK, 11) * P1 & MASK
    value = (value ^ value >> 33) * P2 & MASK
    value = (value ^ value >> 29) * P3 & MASK
    return value ^ value >> 32


def sanity_buffer(length: int) -> bytes:
    """The bytes that the algorithm's own sanity check hashes."""
    generator, result = PRIME32, bytearray()
    for _ in range(length):
        result.append(generator >> 56)
        generator = generator * 11400714785074694797 & MASK
    return bytes(result)


PUBLISHED = [
    (b"", 0, 0xEF46DB3751D8E999),
    (b"", PRIME32, 0xAC75FDA2929B17EF),
    (sanity_buffer(1), 0, 0xE934A84ADB052768),
    (sanity_buffer(1), PRIME32, 0x5014607643A9B4C3),
    (sanity_buffer(4), 0, 0x9136A0DCA57457EE),
    (sanity_buffer(14), 0, 0x8282DCC4994E35C8),
    (sanity_buffer(14), PRIME32, 0xC3BD6BF63DEB6DF0),
    (sanity_buffer(222), 0, 0xB641AE8CB691C174),
    (sanity_buffer(222), PRIME32, 0x20CB8AB7AE10C14A),
    (b"abc", 0, 0x44BC2CF5AD770999),
]


@pytest.mark.parametrize(("data", "seed", "expected"), PUBLISHED)
def test_published_vectors(data: bytes, seed: int, expected: int) -> None:
    assert (expected, expected) == (plain(data, seed), xxhash.xxh64_intdigest(data, seed))


@pytest.mark.parametrize("seed", [0, 1, PRIME32, MASK])
def test_every_length(seed: int) -> None:
    data = random.Random(seed).randbytes(1024)
    wrong = [
        length for length in range(1025) if plain(data[:length], seed) != xxhash.xxh64_intdigest(data[:length], seed)
    ]
    assert [] == wrong
