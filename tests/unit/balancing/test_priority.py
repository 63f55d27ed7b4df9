import pytest

from meshlib.balancing.priority import PriorityHealth, PriorityLoad, load_without, priority_load


def health(healthy: int, count: int, *, degraded: int = 0, draining: int = 0) -> PriorityHealth:
    return PriorityHealth(healthy, degraded, count, count + draining)


@pytest.mark.parametrize(
    ("priorities", "factor", "expected"),
    [
        ([health(1, 1)], 140, (100,)),
        ([health(1, 2), health(2, 2)], 140, (70, 30)),
        ([health(1, 2), health(2, 2)], 100, (50, 50)),
        ([health(1, 4), health(3, 4)], 140, (35, 65)),
        ([health(5, 7), health(3, 3)], 140, (100, 0)),  # 5/7 is above 1/1.4: nothing spills
        ([health(0, 0), health(3, 3)], 140, (0, 100)),  # a gap in the priorities
    ],
)
def test_healthy_load_spills_over(priorities: list[PriorityHealth], factor: int, expected: tuple[int, ...]) -> None:
    load = priority_load(priorities, overprovisioning_factor=factor)

    assert expected == load.healthy
    assert (0,) * len(priorities) == load.degraded


def test_degraded_hosts_get_what_the_healthy_cannot_take() -> None:
    assert PriorityLoad((70,), (30,), (False,)) == priority_load([health(2, 4, degraded=1)])


def test_degraded_hosts_get_nothing_while_enough_are_healthy() -> None:
    assert PriorityLoad((100,), (0,), (False,)) == priority_load([health(3, 4, degraded=1)])


def test_weights_decide_about_load_and_numbers_about_panic() -> None:
    # One of two is healthy, and has three quarters of the weight: all load stays.
    heavy, other = PriorityHealth(1, 0, 2, 2, weights=(3, 0, 4)), PriorityHealth(2, 0, 2, 2, weights=(2, 0, 2))
    assert (100, 0) == priority_load([heavy, other]).healthy
    light = PriorityHealth(1, 0, 2, 2, weights=(1, 0, 4))
    assert (35, 65) == priority_load([light, other]).healthy
    # Three of four are healthy with a tenth of the weight: little can be taken, and nobody panics.
    assert (False,) == priority_load([PriorityHealth(3, 0, 4, 4, weights=(3, 0, 30))]).is_panicking


def test_draining_hosts_do_not_count() -> None:
    assert PriorityLoad((100,), (0,), (False,)) == priority_load([health(1, 1, draining=3)])


def test_priority_panics_below_the_threshold() -> None:
    load = priority_load([health(1, 4)])

    assert PriorityLoad((100,), (0,), (True,)) == load


def test_no_priority_panics_while_together_they_can_take_all() -> None:
    load = priority_load([health(1, 4), health(4, 4)])

    assert load.is_panicking == (False, False)


def test_panic_of_some_priorities_leaves_the_loads() -> None:
    """14 % and 60 %: 74 in all, so the shares are 18 and 81, and the first gets the rest. The second is over 40 %."""
    load = priority_load([health(1, 10), health(3, 7)], panic_threshold=40)

    assert PriorityLoad((19, 81), (0, 0), (True, False)) == load


def test_total_panic_spreads_by_hosts() -> None:
    load = priority_load([health(0, 1, draining=1), health(0, 4)])

    assert PriorityLoad((34, 66), (0, 0), (True, True)) == load


def test_without_panic_the_first_priority_has_it_all_when_nothing_is_healthy() -> None:
    """Its healthy hosts, that is: nobody is chosen there."""
    assert PriorityLoad((100,), (0,), (False,)) == priority_load([health(0, 4)], panic_threshold=0)


def test_no_priorities_have_no_load() -> None:
    assert PriorityLoad((), (), ()) == priority_load([])


@pytest.mark.parametrize(
    ("priorities", "avoided", "expected"),
    [
        ([health(2, 2), health(0, 2, degraded=1)], {0}, ((0, 0), (0, 100))),
        ([health(2, 2), health(1, 2, degraded=1), health(1, 1)], {0}, ((0, 70, 30), (0, 0, 0))),
        ([health(1, 3), health(1, 3), health(0, 1, degraded=1)], set(), ((46, 46, 0), (0, 0, 8))),
        ([health(1, 1)], {0}, None),
    ],
)
def test_retries_leave_priorities_out(priorities: list[PriorityHealth], avoided: set[int], expected: object) -> None:
    found = load_without(priorities, frozenset(avoided))
    assert expected == (None if found is None else (found.healthy, found.degraded))


def test_without_panic_the_first_priority_has_it_all_when_nobody_counts() -> None:
    """A host that is healthy and does not count yet is chosen, as in Envoy."""
    nobody = [PriorityHealth(healthy=1, degraded=0, count=0, hosts=2), PriorityHealth(0, 0, count=1, hosts=1)]
    assert priority_load(nobody, panic_threshold=0) == PriorityLoad((100, 0), (0, 0), (False, False))
