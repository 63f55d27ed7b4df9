import pytest

from meshlib.runtime.pace import LONGEST_REST_S, PATIENCE_S, SHARE, Pace


def test_the_first_update_does_not_wait() -> None:
    assert 0.0 == Pace().wait_s(0.0)


def test_what_follows_waits_as_long_as_keeps_updates_to_their_share() -> None:
    pace = Pace()
    pace.spend(0.001)
    pace.spend(0.001)
    pace.rest(10.0)
    assert pytest.approx(0.002 / SHARE - 0.002) == pace.wait_s(10.0)
    assert 0.0 == pace.wait_s(10.0 + 0.002 / SHARE)
    pace.rest(20.0)
    assert 0.0 == pace.wait_s(20.0)  # nothing was spent since


def test_nothing_waits_for_long() -> None:
    pace = Pace()
    pace.spend(5.0)
    pace.rest(10.0)
    assert pytest.approx(LONGEST_REST_S) == pace.wait_s(10.0)


def test_nobody_who_waits_is_kept_waiting() -> None:
    pace = Pace()
    pace.spend(1.0)
    pace.rest(10.0)
    assert pace.arrive(10.0)
    pace.hurry()
    assert not pace.is_pressed  # what is under way gets done
    assert 0.0 == pace.wait_s(10.0)
    assert not pace.arrive(10.0)
    pace.is_awaited = False
    assert pytest.approx(LONGEST_REST_S) == pace.wait_s(10.0)
    assert pace.arrive(10.0)


def test_patience_begins_anew_with_the_first_update_after_all_are_in_use() -> None:
    pace = Pace()
    pace.arrive(0.0)
    pace.spend(0.1)
    pace.wait_patiently(0.25 * PATIENCE_S)
    assert pytest.approx(0.75) == pace.patience
    pace.arrive(0.1)  # more of them
    assert pytest.approx(0.75) == pace.patience
    pace.wait_patiently(PATIENCE_S)
    assert 0.0 == pace.patience
    pace.rest(0.2)
    pace.arrive(0.3)
    assert 1.0 == pace.patience
