from random import Random

import pytest

from meshlib.testing import FixedRng, SeededRng


def test_seed_is_shown_and_gives_the_same_numbers_again() -> None:
    first = SeededRng(7)
    again = SeededRng(first.seed_value)

    assert repr(first) == "SeededRng(7)"
    assert [first.random() for _ in range(3)] == [again.random() for _ in range(3)]
    assert SeededRng(7).getrandbits(64) == Random(7).getrandbits(64)


def test_fixed_numbers_then_the_last_for_ever() -> None:
    rng = FixedRng(0.1, 0.5)

    assert [rng.random() for _ in range(4)] == [0.1, 0.5, 0.5, 0.5]
    assert rng.getrandbits(8) == 128


@pytest.mark.parametrize("values", [(), (1.0,), (-0.1,)])
def test_fixed_numbers_are_in_range(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[0\.0, 1\.0\)"):
        FixedRng(*values)
