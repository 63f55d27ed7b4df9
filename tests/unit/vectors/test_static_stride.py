"""Sequences of the static stride scheduler, by the words of gRFC A58 and by the laws that its authors test."""

import random
from collections import Counter
from itertools import count

import pytest

from meshlib.balancing.static_stride import FULL, StaticStride


def by_the_words(weights: list[int], start: int, picks: int) -> list[int]:
    """A58: "the next backend is chosen by incrementing the sequence; the backend at `sequence % n` is used unless
    `(weight * generation + offset) % max < max - weight`", with offsets of half the greatest weight times the index.
    """
    found: list[int] = []
    sequence = start
    while len(found) < picks:
        index, generation = sequence % len(weights), sequence // len(weights)
        sequence += 1
        if (weights[index] * generation + index * (FULL // 2)) % FULL < FULL - weights[index]:
            continue
        found.append(index)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_sequences(seed: int) -> None:
    chance = random.Random(seed)
    weights = [chance.choice((1.0, 2.0, 3.0, 0.5, 10.0)) for _ in range(chance.randrange(2, 9))]
    start = chance.randrange(10**6)
    scheduler = StaticStride(weights, count(start).__next__)
    assert by_the_words(list(scheduler.weights), start, 500) == [scheduler.next() for _ in range(500)]


@pytest.mark.parametrize("weights", [(1, 2, 3), (1, 1), (5, 1, 1, 3)])
def test_turns_are_exactly_by_weight_over_a_full_cycle(weights: tuple[int, ...]) -> None:
    """Over as many generations as the greatest weight has values each host has as many turns as its weight."""
    ticks = count()
    scheduler = StaticStride(weights, ticks.__next__)
    turns: Counter[int] = Counter()
    for _ in range(sum(scheduler.weights)):
        turns[scheduler.next()] += 1
    assert dict(enumerate(scheduler.weights)) == turns


def test_the_greatest_has_a_turn_in_every_generation() -> None:
    ticks = count()
    scheduler = StaticStride((1, 2, 3), ticks.__next__)
    picks = [scheduler.next() for _ in range(600)]
    longest = max(len(run) for run in "".join(map(str, picks)).split("2"))
    assert 2 >= longest


def test_equal_weights_take_turns() -> None:
    scheduler = StaticStride((7, 7, 7), count().__next__)
    assert [0, 1, 2, 0, 1, 2, 0, 1, 2] == [scheduler.next() for _ in range(9)]


def test_a_scheduler_made_anew_goes_on_where_the_last_one_was() -> None:
    weights, ticks, whole = (1.0, 4.0, 2.5), count(), StaticStride((1.0, 4.0, 2.5), count().__next__)
    parts = [StaticStride(weights, ticks.__next__).next() for _ in range(300)]
    assert [whole.next() for _ in range(300)] == parts


def test_the_sequence_may_wrap() -> None:
    start = 2**32 - 50
    wrapped = StaticStride((1, 3), count(start).__next__)
    picks = [wrapped.next() for _ in range(100)]
    assert {0, 1} == set(picks)
