"""Ring hash and Maglev against vectors and against straightforward implementations of their papers."""

import random
from collections.abc import Callable, Sequence

import pytest
import xxhash

from meshlib.balancing import EndpointState, Picker, build_picker
from meshlib.balancing.hash_weights import flat_shares, hash_key, locality_shares
from meshlib.balancing.maglev import MaglevPicker
from meshlib.balancing.murmur import murmur2_64
from meshlib.balancing.ring_hash import MAX_POINTS, RingHashPicker
from meshlib.model.cluster import Cluster, EdsDiscovery, Maglev, RingHash, RingHashFunction
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.snapshot import ClusterConfig
from meshlib.testing import FixedRng, SeededRng

MakeStates = Callable[..., list[EndpointState]]
TOP = 2**64 - 1


def digest(text: str, seed: int = 0) -> int:
    return xxhash.xxh64_intdigest(text.encode(), seed)


def hosts(*addresses: str, weights: Sequence[int] = ()) -> list[EndpointState]:
    given = weights or [1] * len(addresses)
    return [EndpointState(Endpoint(one, weight=weight)) for one, weight in zip(addresses, given, strict=True)]


# What gRFC A42 and Envoy come to, computed elsewhere: the ring of three hosts of equal weight with sizes 4 and 8.
TRIO = ("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80")
TRIO_RING = [
    (0x18341D927EA10691, 0), (0x3D32EAA4A864962E, 1), (0x7079D8E1823E007F, 1),
    (0x74DA18DB9F57CC7E, 2), (0x75041381E7371A08, 0), (0x98663D8C8E38E677, 2),
]  # fmt: skip


def test_points_of_a_known_ring() -> None:
    states = hosts(*TRIO)
    picker = RingHashPicker(flat_shares(states), RingHash(4, 8))
    rng = SeededRng()
    for point, owner in TRIO_RING:
        assert states[owner] is picker.pick(point, rng)
    for index, (point, _) in enumerate(TRIO_RING):
        assert states[TRIO_RING[(index + 1) % 6][1]] is picker.pick(point + 1, rng)
    assert states[0] is picker.pick(0, rng)
    assert states[0] is picker.pick(TOP, rng), "the ring is closed"


@pytest.mark.parametrize(("key", "owner"), [("hello", 1), ("abc", 1), ("a", 0)])
def test_known_keys_on_the_known_ring(key: str, owner: int) -> None:
    states = hosts(*TRIO)
    assert states[owner] is RingHashPicker(flat_shares(states), RingHash(4, 8)).pick(digest(key), SeededRng())


@pytest.mark.parametrize(
    ("least", "most", "counts"),
    [(3, 20, (1, 1, 2)), (8, 8, (3, 2, 3)), (10, 20, (3, 3, 4)), (1024, 4096, (308, 308, 411))],
)
def test_points_by_weight(least: int, most: int, counts: tuple[int, ...]) -> None:
    states = hosts("a:1", "b:1", "c:1", weights=(3, 3, 4))
    expected = {
        digest(f"{state.address}_{number}"): state
        for state, count in zip(states, counts, strict=True)
        for number in range(count)
    }
    picker, rng = RingHashPicker(flat_shares(states), RingHash(least, most)), SeededRng()
    points = sorted(expected)
    assert [expected[point] for point in points] == [picker.pick(point, rng) for point in points]
    # One beyond each point is the next one's: there are no points between.
    after = [expected[point] for point in points[1:]]
    assert after == [picker.pick(point + 1, rng) for point in points[:-1]]


def ketama(ring: Sequence[tuple[int, str]], hash_: int, attempt: int) -> str:
    """The search as Envoy has it from ketama."""
    low, high = 0, len(ring)
    while True:
        middle = (low + high) // 2
        if middle == len(ring):
            middle = 0
            break
        if hash_ <= ring[middle][0] and hash_ > (ring[middle - 1][0] if middle else 0):
            break
        low, high = (middle + 1, high) if ring[middle][0] < hash_ else (low, middle - 1)
        if low > high:
            middle = 0
            break
    return ring[(middle + attempt) % len(ring)][1]


def plain_ring(weights: Sequence[tuple[str, float]], least: int, most: int) -> list[tuple[int, str]]:
    smallest = min(weight for _, weight in weights)
    whole = smallest * least
    scale = min((int(whole) + (whole > int(whole))) / smallest, most)
    current = target = 0.0
    ring = []
    for address, weight in weights:
        target += scale * weight
        number = 0
        while current < target:
            ring.append((digest(f"{address}_{number}"), address))
            number += 1
            current += 1
    return sorted(ring)


def plain_maglev(weights: Sequence[tuple[str, float]], size: int) -> list[str]:
    table = [""] * size
    largest = max(weight for _, weight in weights)
    order = sorted(weights)
    step, target = dict.fromkeys(dict(order), 0), dict.fromkeys(dict(order), 0.0)
    filled, iteration = 0, 0
    while filled < size:
        iteration += 1
        for address, weight in order:
            if filled == size:
                break
            if iteration * weight < target[address]:
                continue
            target[address] += largest
            while True:
                slot = (digest(address) % size + (digest(address, 1) % (size - 1) + 1) * step[address]) % size
                step[address] += 1
                if not table[slot]:
                    break
            table[slot] = address
            filled += 1
    return table


def cases() -> list[tuple[int, list[EndpointState]]]:
    made = random.Random(42)
    return [
        (seed, hosts(*(f"127.0.0.{n}:80" for n in range(size)), weights=[made.randint(1, 9) for _ in range(size)]))
        for seed, size in enumerate((1, 2, 3, 5, 8, 13))
    ]


@pytest.mark.parametrize(("seed", "states"), cases())
def test_ring_is_that_of_a_plain_implementation(seed: int, states: list[EndpointState]) -> None:
    made, rng = random.Random(seed), SeededRng()
    least = made.randint(1, 300)
    most = least + made.randint(0, 300)
    total = sum(state.endpoint.weight for state in states)
    ring = plain_ring([(state.address, state.endpoint.weight / total) for state in states], least, most)
    picker = RingHashPicker(flat_shares(states), RingHash(least, most))
    for hash_ in [0, TOP, *(made.getrandbits(64) for _ in range(300))]:
        first = picker.pick(hash_, rng)
        assert ketama(ring, hash_, 0) == first.address
        # All are avoided, so the last pick counts.
        for attempts in (1, 2, 3):
            assert ketama(ring, hash_, attempts) == picker.pick(hash_, rng, states, attempts).address


@pytest.mark.parametrize(("seed", "states"), cases())
def test_table_is_that_of_a_plain_implementation(seed: int, states: list[EndpointState]) -> None:
    made, rng = random.Random(seed), SeededRng()
    size = made.choice((2, 11, 101, 251))
    total = sum(state.endpoint.weight for state in states)
    table = plain_maglev([(state.address, state.endpoint.weight / total) for state in states], size)
    picker = MaglevPicker(flat_shares(states), Maglev(size))
    assert table == [picker.pick(slot, rng).address for slot in range(size)]
    for hash_ in [0, TOP, *(made.getrandbits(64) for _ in range(100))]:
        for attempts in (1, 2, 3):
            other = (hash_ ^ (2**64 - attempts)) % size
            assert table[other] == picker.pick(hash_, rng, states, attempts).address


def test_order_of_the_resource_does_not_matter_to_maglev() -> None:
    states, rng = hosts(*TRIO), SeededRng()
    one, other = (MaglevPicker(flat_shares(order), Maglev(101)) for order in (states, states[::-1]))
    assert [one.pick(slot, rng) for slot in range(101)] == [other.pick(slot, rng) for slot in range(101)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # libstdc++'s std::hash of these strings.
        ("", 6142509188972423790),
        ("a", 4993892634952068459),
        ("hello", 2762169579135187400),
        ("127.0.0.1:8080_0", 16027637164591516499),
        ("hello world", 5577293430985752569),
    ],
)
def test_murmur(text: str, expected: int) -> None:
    assert expected == murmur2_64(text.encode())


def test_a_ring_may_be_made_with_murmur() -> None:
    states, rng = hosts(*TRIO), SeededRng()
    picker = RingHashPicker(flat_shares(states), RingHash(4, 8, RingHashFunction.MURMUR_HASH_2))
    for state in states:
        assert state is picker.pick(murmur2_64(f"{state.address}_1".encode()), rng)


def test_the_ring_has_a_limit_whatever_the_weights_ask_for() -> None:
    states = hosts("a:1", "b:1", weights=(1, 10_000_000))
    picker = RingHashPicker(flat_shares(states), RingHash())
    assert MAX_POINTS == picker._size


@pytest.mark.parametrize(
    ("endpoint", "by_address", "by_name"),
    [
        (Endpoint("[::1]:80", hostname="h"), "[::1]:80", "h"),
        (Endpoint("unix:/run/x"), "/run/x", ""),
        (Endpoint("a:1", hostname="h", metadata={"envoy.lb": {"hash_key": "k"}}), "k", "k"),
        (Endpoint("a:1", hostname="h", metadata={"envoy.lb": {"hash_key": 5}}), "a:1", "h"),
        (Endpoint("a:1", hostname="h", metadata={"envoy.lb": {"hash_key": ""}}), "a:1", "h"),
    ],
)
def test_key_of_a_host(endpoint: Endpoint, by_address: str, by_name: str) -> None:
    state = EndpointState(endpoint)
    assert by_address == hash_key(state, uses_hostname=False)
    assert by_name == hash_key(state, uses_hostname=True)


def test_localities_share_by_weight_and_one_without_gets_nothing() -> None:
    a, b, c, d = hosts("a:1", "b:1", "c:1", "d:1", weights=(1, 3, 1, 1))
    shares = locality_shares([(1, (a, b)), (3, (c,)), (0, (d,))])
    assert [(a, 0.0625), (b, 0.1875), (c, 0.75)] == shares
    # Whose hosts are all out keeps its part.
    assert [(a, 0.03125), (b, 0.09375), (c, 0.375)] == locality_shares([(1, (a, b)), (3, (c,)), (4, ())])
    assert [] == locality_shares([(0, (a,)), (0, (b,))])


@pytest.mark.parametrize("policy", [RingHash(), Maglev(101)])
def test_a_request_without_hash_goes_anywhere(policy: RingHash | Maglev) -> None:
    states = hosts(*TRIO)
    shares = flat_shares(states)
    picker = RingHashPicker(shares, policy) if isinstance(policy, RingHash) else MaglevPicker(shares, policy)
    rng = SeededRng(3)
    assert set(states) == {picker.pick(None, rng) for _ in range(60)}
    assert picker.pick(None, FixedRng(0.0)) is picker.pick(0, rng)
    assert picker.choose(FixedRng(0.0)) is picker.pick(0, rng)


def test_an_avoided_host_is_passed_over_within_the_attempts() -> None:
    states, rng = hosts(*TRIO), SeededRng()
    picker = RingHashPicker(flat_shares(states), RingHash(4, 8))
    first, second = TRIO_RING[0], TRIO_RING[1]
    assert states[second[1]] is picker.pick(first[0], rng, [states[first[1]]], 1)
    # Points 1 and 2 are the same host's.
    assert states[1] is picker.pick(first[0], rng, [states[0], states[1]], 2)
    assert states[2] is picker.pick(first[0], rng, [states[0], states[1]], 3)


# Priorities, health and panic.


def build(*groups: tuple[int, str], policy: RingHash | Maglev | None = None) -> Picker:
    """`(0, "hhud")`: in priority 0 two healthy hosts, an unhealthy and a degraded one."""
    kinds = {"h": HealthStatus.HEALTHY, "u": HealthStatus.UNHEALTHY, "d": HealthStatus.DEGRADED}
    localities = tuple(
        LocalityEndpoints(
            Locality(zone=str(number)),
            tuple(Endpoint(f"{priority}{kind}{index}:1", health=kinds[kind]) for index, kind in enumerate(word)),
            priority=priority,
        )
        for number, (priority, word) in enumerate(groups)
    )
    cluster = Cluster("c", EdsDiscovery("c"), policy or RingHash())
    states = {one.address: EndpointState(one) for locality in localities for one in locality.endpoints}
    return build_picker(ClusterConfig(cluster, ClusterLoadAssignment("c", localities)), states)


def picked(picker: Picker, count: int = 100) -> list[str | None]:
    rng = SeededRng()
    # Steps that are spread over the ring and end in all hundredths.
    found = (picker.pick((TOP // count * number) // 100 * 100 + number % 100, rng) for number in range(count))
    return [None if state is None else state.address for state in found]


@pytest.mark.parametrize("policy", [RingHash(), Maglev(101)])
def test_the_hash_chooses_the_priority(policy: RingHash | Maglev) -> None:
    found = picked(build((0, "hu"), (1, "hh"), policy=policy))
    assert ["0"] * 70 + ["1"] * 30 == [str(address)[0] for address in found]
    assert build((0, "hu"), (1, "hh"), policy=policy).uses_hash


def test_degraded_hosts_get_nothing_and_their_load_goes_to_the_healthy_ones() -> None:
    assert {"0h0:1"} == set(picked(build((0, "hdu"))))
    assert {None} == set(picked(build((0, "dd"))))


def test_panic_uses_all_hosts() -> None:
    assert {"0h0:1", "0u1:1", "0u2:1"} == set(picked(build((0, "huu"))))


def test_without_hosts_nobody_is_picked() -> None:
    assert {None} == set(picked(build((0, ""))))


@pytest.mark.parametrize("policy", [RingHash(min_size=MAX_POINTS), Maglev(table_size=65537)])
def test_large_tables_are_made_in_slices_and_once(policy: RingHash | Maglev) -> None:
    shares = flat_shares([EndpointState(Endpoint(f"10.1.{index >> 8}.{index & 255}:80")) for index in range(10_000)])
    pauses: list[None] = []

    def picker() -> RingHashPicker | MaglevPicker:
        if isinstance(policy, RingHash):
            return RingHashPicker(shares, policy, lambda: pauses.append(None))
        return MaglevPicker(shares, policy, lambda: pauses.append(None))

    first, rng = picker(), SeededRng()
    assert len(pauses) > 65536 / 256
    del pauses[:]
    second = picker()
    assert [] == pauses
    assert all(first.pick(hash_, rng) is second.pick(hash_, rng) for hash_ in range(0, 2**64, 2**58))
