"""DNS clusters: when a name is looked up again, and which addresses count."""

import pytest

from meshlib.model.dns import DnsAnswer, DnsPace, DnsRecords, LookupFamily
from meshlib.testing import FixedRng
from meshlib.xds.dns import answer_after, in_order, of_family, wait_s

FOUR, SIX = ("10.0.0.2", "10.0.0.1"), ("fd00::1",)
HALF = FixedRng(0.5)


def test_after_a_success_the_time_to_live_counts_else_the_refresh_rate_with_jitter_on_top() -> None:
    pace = DnsPace(5.0, 2.0, 1.0, 9.0)
    assert [6.0, 6.0, 31.0] == [wait_s(pace, 0, ttl_s, HALF) for ttl_s in (None, 0.0, 30.0)]
    assert 86400.0 == wait_s(DnsPace(), 0, 2.0**31, HALF)


def test_failures_wait_the_refresh_rate_or_below_a_window_that_doubles() -> None:
    assert [5.0, 5.0] == [wait_s(DnsPace(5.0, 2.0), failures, None, HALF) for failures in (1, 9)]
    given = DnsPace(5.0, 2.0, 1.0, 6.0)
    assert [0.5, 1.0, 2.0, 3.0, 3.0] == [wait_s(given, failures, 30.0, HALF) for failures in (1, 2, 3, 4, 99)]
    assert 5.0 == wait_s(DnsPace(failure_base_s=1.0), 10, None, HALF)  # ten times the base, without another maximum


def test_no_configuration_makes_look_ups_spin() -> None:
    assert 0.05 == wait_s(DnsPace(0.002), 0, None, HALF) == wait_s(DnsPace(failure_base_s=0.01), 1, None, HALF)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (LookupFamily.V4_ONLY, FOUR),
        (LookupFamily.V6_ONLY, SIX),
        (LookupFamily.V4_PREFERRED, FOUR),
        (LookupFamily.AUTO, SIX),
        (LookupFamily.ALL, (*FOUR, *SIX)),
    ],
)
def test_families_of_a_name_that_has_both(family: LookupFamily, expected: tuple[str, ...]) -> None:
    assert expected == of_family((*FOUR, *SIX), family)


def test_preferences_take_the_other_family_when_theirs_is_not_there() -> None:
    assert SIX == of_family(SIX, LookupFamily.V4_PREFERRED)
    assert FOUR == of_family(FOUR, LookupFamily.AUTO)
    assert () == of_family(FOUR, LookupFamily.V6_ONLY)


def test_auto_takes_ipv4_first_where_ipv6_leads_nowhere() -> None:
    assert FOUR == of_family((*SIX, *FOUR), LookupFamily.AUTO, has_ipv6=False)
    assert SIX == of_family(SIX, LookupFamily.AUTO, has_ipv6=False)
    assert ("127.0.0.1",) == of_family(("::1", "127.0.0.1"), LookupFamily.AUTO)
    assert ("::1",) == of_family(("::1",), LookupFamily.AUTO)


def test_an_answer_turned_round_is_the_same_answer() -> None:
    assert ("b", "a") == in_order(("b", "a"), ("a", "b", "a"))
    assert ("b", "c") == in_order(("a", "b"), ("c", "b"))


def test_a_failure_keeps_what_was_known_and_an_empty_answer_does_not() -> None:
    first = answer_after(None, DnsRecords(("a", "b")), "")
    assert DnsAnswer(("a", "b")) == first
    failed = answer_after(first, None, "refused")
    assert DnsAnswer(("a", "b"), "refused") == failed
    empty = answer_after(failed, DnsRecords(()), "")
    assert DnsAnswer((), "the name has no addresses", ("a", "b")) == empty
    assert DnsAnswer((), "refused", ("a", "b")) == answer_after(empty, None, "refused")
    assert DnsAnswer(("b", "c")) == answer_after(empty, DnsRecords(("c", "b")), "")
    assert DnsAnswer((), "refused") == answer_after(None, None, "refused")
