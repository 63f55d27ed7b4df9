"""What deciding about one call costs, without sending it: beside a plain httpx call, and as microseconds of CPU.

A hundred routes, of which the last takes the request, and fifty endpoints; match, pick, record and release.
"""

import random
import time
from collections.abc import Callable

from meshlib.call import Attempt, Call
from meshlib.model.outcome import Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.model.snapshot import Snapshot
from meshlib.testing import builders
from meshlib.view import build_view

__all__ = ["ENDPOINTS", "ROUTES", "decider"]

ROUTES = 100
ENDPOINTS = 50


def snapshot() -> Snapshot:
    """Return a service with many routes."""
    action = RouteAction(SingleCluster("bench"))
    routes = [builders.any_path(action, name=f"r{number}", prefix=f"/area-{number}/") for number in range(ROUTES - 1)]
    addresses = [f"127.0.0.{number + 1}:80" for number in range(ENDPOINTS)]
    return Snapshot(
        targets={"bench": builders.target("bench", *routes, builders.any_path(action, name="last"))},
        clusters={"bench": builders.cluster("bench", *addresses)},
        number=1,
    )


def decider() -> Callable[[int], None]:
    """Return what decides about so many calls."""
    view = build_view(snapshot(), None, now=time.monotonic())
    target, rng, clock = view.targets["bench"], random.Random(1), time.monotonic
    response = Response(200)

    def run(calls: int) -> None:
        for _ in range(calls):
            head = RequestHead("GET", "bench", "/orders/1", Headers((("user-agent", "bench"),)))
            call = Call(target, head, rng=rng, now=clock())
            step = call.start(clock())
            assert isinstance(step, Attempt)
            call.finished(response, clock())
            call.close(clock())

    return run


if __name__ == "__main__":
    run = decider()
    run(1000)
    spent = []
    for _ in range(15):
        before = time.thread_time()
        run(2000)
        spent.append((time.thread_time() - before) / 2000 * 1e6)
    print(f"{ROUTES} routes, {ENDPOINTS} endpoints: {sorted(spent)[len(spent) // 2]:.1f} us of CPU per call")
