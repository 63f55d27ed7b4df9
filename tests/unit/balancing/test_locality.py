from collections import Counter

import pytest

from meshlib.balancing import EndpointState
from meshlib.balancing.locality import LocalityPicker, LocalityShare, effective_weights
from meshlib.balancing.round_robin import RoundRobinPicker
from meshlib.model.endpoint import Endpoint
from meshlib.testing import SeededRng


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([LocalityShare(10, 2, 2), LocalityShare(10, 1, 2)], (10, 7)),
        ([LocalityShare(1, 3, 3), LocalityShare(3, 5, 5)], (1, 3)),
        ([LocalityShare(1, 0, 3), LocalityShare(3, 5, 5)], (0, 1)),
        ([LocalityShare(0, 3, 3), LocalityShare(3, 5, 5)], (0, 1)),
        ([LocalityShare(5, 0, 0), LocalityShare(3, 5, 5)], (0, 1)),
        ([LocalityShare(1, 9, 10), LocalityShare(1, 8, 10)], (1, 1)),  # both above 1 / 1.4
    ],
)
def test_weight_shrinks_with_health(shares: list[LocalityShare], expected: tuple[int, int]) -> None:
    one, other = effective_weights(shares, 140)

    assert one * expected[1] == other * expected[0]
    assert one + other > 0


def test_localities_take_turns_by_weight() -> None:
    near, far = (EndpointState(Endpoint(address)) for address in ("near:1", "far:1"))
    picker, rng = LocalityPicker([RoundRobinPicker([near]), RoundRobinPicker([far])], [10, 7]), SeededRng()

    counted = Counter(picker.choose(rng) for _ in range(170))

    assert {near: 100, far: 70} == counted
