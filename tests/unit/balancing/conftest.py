"""Endpoint states from short descriptions."""

from collections.abc import Callable

import pytest

from meshlib.balancing import EndpointState
from meshlib.model.endpoint import Endpoint

MakeStates = Callable[..., list[EndpointState]]


@pytest.fixture
def states() -> MakeStates:
    """`states(1, 2, 5)`: endpoints `h0:1`, `h1:1`, `h2:1` with these weights."""

    def make(*weights: int) -> list[EndpointState]:
        return [EndpointState(Endpoint(f"h{index}:1", weight=weight)) for index, weight in enumerate(weights)]

    return make
