from collections import Counter

from meshlib.balancing.schedule import MAX_CYCLE, HeapSchedule, TableSchedule, weighted_schedule
from meshlib.testing import FixedRng, SeededRng


def test_each_entry_gets_exactly_its_share_of_any_whole_cycle() -> None:
    schedule, rng = weighted_schedule([1, 2, 5]), SeededRng(3)

    assert Counter(schedule.next(rng) for _ in range(160)) == {0: 20, 1: 40, 2: 100}


def test_turns_are_spread_and_of_equal_deadlines_the_one_put_back_earlier_is_first() -> None:
    """Deadlines of 1:2:5 are 1/5, 2/5, 1/2, 3/5, 4/5, then three at 1, put back at 0, 1/2 and 4/5."""
    schedule, rng = weighted_schedule([1, 2, 5]), FixedRng(0.0)

    assert [schedule.next(rng) for _ in range(8)] == [2, 2, 1, 2, 2, 0, 1, 2]


def test_start_is_random() -> None:
    first = {weighted_schedule([1, 1, 1, 2]).next(SeededRng(seed)) for seed in range(50)}

    assert {0, 1, 2, 3} == first


def test_common_divisor_shortens_the_cycle() -> None:
    assert isinstance(weighted_schedule([1_000_000, 3_000_000]), TableSchedule)


def test_entry_without_weight_never_has_its_turn() -> None:
    schedule, rng = weighted_schedule([0, 3]), SeededRng()

    assert {1} == {schedule.next(rng) for _ in range(20)}


def test_long_cycle_is_worked_out_step_by_step_in_the_same_order() -> None:
    weights = [MAX_CYCLE, 1, 7]
    schedule, rng = weighted_schedule(weights), FixedRng(0.0)
    assert isinstance(schedule, HeapSchedule)

    counted = Counter(schedule.next(rng) for _ in range(sum(weights)))

    assert dict(enumerate(weights)) == counted


def test_heap_and_table_agree() -> None:
    table, heap, rng = weighted_schedule([3, 1, 4, 1, 5]), HeapSchedule([3, 1, 4, 1, 5]), FixedRng(0.0)

    assert [table.next(rng) for _ in range(42)] == [heap.next(rng) for _ in range(42)]
