"""All pairs."""

from contextlib import ExitStack

import httpx
import pairs_grpc
import pairs_httpx
from core import decider
from pair import Pair, Runner
from world import World


def _decision(world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    """A plain call, and the decisions about one alone: route, endpoint, limits, record. The goal is below 5 %."""
    client = stack.enter_context(httpx.Client())

    def plain(calls: int) -> None:
        for _ in range(calls):
            assert client.get(f"http://{world.http}/orders/1").status_code == 200

    return plain, decider()


PAIRS = (
    *pairs_httpx.PAIRS,
    Pair("decision alone, 100 routes and 50 endpoints", _decision, 1000),
    *pairs_grpc.PAIRS,
)
