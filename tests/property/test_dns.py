"""The pace of DNS look-ups, and what is kept of answers, whatever servers say."""

from hypothesis import given
from hypothesis import strategies as st

from meshlib.model.dns import DnsAnswer, DnsPace, DnsQuestion, DnsRecords, LookupFamily
from meshlib.testing import FixedRng, SeededRng
from meshlib.xds.dns import DnsWish, answer_after, of_family, wait_s

SECONDS = st.floats(0.002, 1e6)
PACES = st.builds(
    DnsPace, SECONDS, st.floats(0.0, 100.0), st.none() | SECONDS, st.none() | SECONDS, needs_addresses=st.booleans()
)
TTLS = st.none() | st.floats(0.0, 2.0**31)
ADDRESSES = st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "::1"]), max_size=6).map(tuple)
LOOKS = st.lists(st.none() | ADDRESSES, max_size=10)


ALMOST_ONE = FixedRng(1.0 - 2.0**-53)


def joined(one: DnsPace, two: DnsPace) -> DnsPace:
    question = DnsQuestion("h")
    return DnsWish(question, one).joined(DnsWish(question, two)).pace


@given(PACES, st.integers(0, 10_000), TTLS, st.integers(0))
def test_every_wait_is_within_its_bounds(pace: DnsPace, failures: int, ttl_s: float | None, seed: int) -> None:
    waited = wait_s(pace, failures, ttl_s, SeededRng(seed))
    if not failures:
        usual_s = min(ttl_s, 86400.0) if ttl_s else pace.refresh_s
        assert max(0.05, usual_s) <= waited <= max(0.05, usual_s + pace.jitter_s)
    elif pace.failure_base_s is None:
        assert waited == max(0.05, pace.refresh_s)
    else:
        most_s = 10 * pace.failure_base_s if pace.failure_max_s is None else pace.failure_max_s
        assert 0.05 <= waited <= max(0.05, min(most_s, pace.failure_base_s * 2.0 ** min(failures - 1, 100)))


@given(PACES, PACES, st.integers(0, 5), TTLS, st.integers(0))
def test_a_shared_look_up_comes_no_later_than_the_slower_cluster_wants_it(
    one: DnsPace, two: DnsPace, failures: int, ttl_s: float | None, seed: int
) -> None:
    both = joined(one, two)
    if failures:
        assert wait_s(both, 99, None, ALMOST_ONE) <= min(wait_s(pace, 99, None, ALMOST_ONE) for pace in (one, two))
    else:
        waits = [wait_s(pace, 0, ttl_s, SeededRng(seed)) for pace in (both, one, two)]
        assert waits[0] <= min(waits)
    assert both == joined(two, one)


@given(PACES, PACES, PACES)
def test_it_does_not_matter_in_which_order_clusters_come_to_share_a_look_up(
    one: DnsPace, two: DnsPace, three: DnsPace
) -> None:
    assert joined(joined(one, two), three) == joined(one, joined(two, three))


@given(LOOKS)
def test_answers_hold_what_was_found_last_and_addresses_in_use_keep_their_places(
    looks: list[tuple[str, ...] | None],
) -> None:
    answer: DnsAnswer | None = None
    found: list[tuple[str, ...]] = []
    for look in looks:
        before = answer
        answer = answer_after(before, None if look is None else DnsRecords(look), "" if look is not None else "refused")
        if look is not None:
            found.append(look)
        assert set(answer.addresses) == set(found[-1] if found else ())
        assert len(set(answer.addresses)) == len(answer.addresses)
        if not answer.addresses:
            assert set(answer.last) == set(next((one for one in reversed(found) if one), ()))
        assert bool(answer.error) == (look is None or not look)
        if before is not None and before.addresses:
            stayed = [address for address in before.addresses if address in answer.addresses]
            assert stayed == list(answer.addresses)[: len(stayed)]


@given(ADDRESSES, st.sampled_from(LookupFamily), st.booleans())
def test_families_leave_addresses_out_and_change_nothing_else(
    addresses: tuple[str, ...], family: LookupFamily, has_ipv6: bool
) -> None:
    found = of_family(addresses, family, has_ipv6=has_ipv6)
    assert [address for address in addresses if address in found] == list(found)
    assert len({":" in address for address in found}) <= (2 if family is LookupFamily.ALL else 1)
    if family not in (LookupFamily.V4_ONLY, LookupFamily.V6_ONLY):
        assert bool(found) == bool(addresses)
