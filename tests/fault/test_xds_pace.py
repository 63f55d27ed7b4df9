"""Updates that follow each other closely are taken into use together, and nobody who waits for something has to wait."""

from typing import Any

import pytest

from meshlib.runtime.pace import LONGEST_REST_S
from meshlib.xds.resources import EDS


@pytest.fixture
def busy(world: Any) -> Any:
    """A mesh that has just spent a long time on an update."""
    control = world.control
    control._pace.spend(60.0)
    control._pace.rest(world.clock())
    return world


def answers(world: Any) -> list[str]:
    return [request.response_nonce for request in world.server.stream.of_type(EDS) if request.response_nonce]


def test_updates_wait_for_each_other_and_are_answered_when_they_are_in_use(busy: Any, make: Any) -> None:
    stream, snapshots = busy.server.stream, busy.snapshots
    before, sent = answers(busy), stream.sent
    for port in (2, 3, 4):
        busy.server.put(EDS, checkout=make.endpoints("checkout", port))
        busy.spin()
    assert ([1], before) == (busy.ports("checkout"), answers(busy))
    assert sent + 3 == stream.sent  # each was read
    busy.pass_time(LONGEST_REST_S / 2)
    assert [1] == busy.ports("checkout")
    busy.pass_time(LONGEST_REST_S)
    assert [4] == busy.ports("checkout")
    assert snapshots + 1 == busy.snapshots
    # Of the state of the world the newest response is answered, of increments each.
    assert [*before, *[f"1-{sent + number}" for number in ((1, 2, 3) if busy.is_delta else (3,))]] == answers(busy)


def test_a_refusal_is_said_whatever_follows(busy: Any) -> None:
    """In the state of the world at once, where the answer to the next response would stand for it."""
    good = dict(busy.server.tables[EDS])
    busy.server.put(EDS, checkout=b"\x0a\x08checkout\x12\xff")
    busy.spin()
    assert busy.is_delta is not any(request.error_detail.message for request in busy.server.stream.requests)
    busy.pass_time(LONGEST_REST_S * 2)
    assert busy.server.stream.of_type(EDS)[-1].error_detail.message
    assert [1] == busy.ports("checkout")
    busy.server.put(EDS, **good)
    busy.pass_time(1.0)
    assert not busy.server.stream.of_type(EDS)[-1].error_detail.message


def test_a_service_that_somebody_asks_for_does_not_wait(busy: Any, make: Any) -> None:
    busy.server.put_service("orders", 7)
    busy.server.put(EDS, checkout=make.endpoints("checkout", 2))
    busy.spin()
    assert [1] == busy.ports("checkout")
    busy.watch("orders")  # no time passes
    assert [7] == busy.ports("orders")
    assert [2] == busy.ports("checkout")


def test_a_stream_that_ends_meanwhile_leaves_nothing_unanswered(busy: Any, make: Any) -> None:
    busy.server.put(EDS, checkout=make.endpoints("checkout", 2))
    busy.spin()
    busy.server.cut()
    busy.pass_time(5.0)
    assert [2] == busy.ports("checkout")
    busy.server.put(EDS, checkout=make.endpoints("checkout", 3))
    busy.pass_time(1.0)
    assert [3] == busy.ports("checkout")
    assert answers(busy)
