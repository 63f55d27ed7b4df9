"""A day of a mesh whose management server comes and goes, on a clock moved by hand; and what stays of it in memory."""

import gc
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meshlib.events import ControlPlaneConnected, ControlPlaneLost
from meshlib.runtime.ads import AdsStream
from meshlib.xds.bootstrap import InsecureCreds, ServerConfig
from meshlib.xds.resources import CDS, EDS, LDS, RDS

DAY_S = 86_400.0
NOTICEABLE = 25


def count_objects() -> Counter[str]:
    gc.collect()
    return Counter(type(found).__qualname__ for found in gc.get_objects())


def growth(*counts: Counter[str]) -> dict[str, list[int]]:
    """Return the types of which each look has found noticeably more than the one before.

    What leaks does so all the time. What is made once, by a first time of something or by a thread that another test has left
    behind, is in one difference and not in the next.
    """
    steps = [{name: after[name] - before[name] for name in after} for before, after in pairwise(counts)]
    found = {name: [step.get(name, 0) for step in steps] for name in counts[-1]}
    return {name: more for name, more in found.items() if min(more) > NOTICEABLE}


def forget_what_was_said(world: Any) -> None:
    """What the fakes keep of requests and events is not the mesh's."""
    world.events.clear()
    world.server.stream.requests.clear()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_day_of_cuts_outages_and_changes_ends_with_the_truth_and_without_growth(
    world: Any, make: Any, seed: int
) -> None:
    """Every few minutes something happens to the server or its resources. Calls always have endpoints."""
    rng, server = Random(seed), world.server
    seen: list[Counter[str]] = []
    looks_at = [world.clock() + DAY_S * share for share in (0.2, 0.6)]
    end = world.clock() + DAY_S
    port, lost, found = 1, 0, 0
    while world.clock() < end:
        match rng.choice(["cut", "restart", "down", "mute", "black hole", "change", "change", "bad", "move", "late"]):
            case "cut":
                server.cut()
            case "restart":
                server.restart()
            case "down" | "mute" | "black hole" as mood:
                server.mood = mood
                if mood == "down":
                    server.cut()
                world.pass_time(rng.uniform(1.0, 600.0))
                server.mood = "well"
                server.cut()
            case "change":
                port += 1
                server.put(EDS, checkout=make.endpoints("checkout", port))
            case "bad":
                good = dict(server.tables[EDS])
                server.put(EDS, checkout=b"\x0a\x08checkout\x12\xff")
                world.pass_time(rng.uniform(0.0, 60.0))
                server.put(EDS, **good)
            case "move":
                name = rng.choice(["checkout", "green"])
                server.put(CDS, green=make.eds_cluster("green"))
                server.put(EDS, green=make.endpoints("green", 80))
                server.put(RDS, checkout=make.routes("checkout", name))
            case "late":
                world.watch(f"made-up-{rng.randrange(10**9)}", keep=False)
        world.pass_time(rng.uniform(1.0, 600.0))
        assert world.target("checkout") is not None
        assert world.ports("checkout") or world.ports("green")
        if looks_at and world.clock() > looks_at[0]:
            looks_at.pop(0)
            lost += sum(isinstance(event, ControlPlaneLost) for event in world.events)
            found += sum(isinstance(event, ControlPlaneConnected) for event in world.events)
            forget_what_was_said(world)
            seen.append(count_objects())
    server.mood = "well"
    server.cut()
    world.pass_time(400.0)
    route = server.tables[RDS]["checkout"]
    name = "green" if b"green" in route else "checkout"
    assert world.ports(name) == ([80] if name == "green" else [port])
    assert (world.subscribed(LDS), world.subscribed(CDS), world.subscribed(EDS)) == ({"checkout"}, {name}, {name})
    assert server.opened > 100
    lost += sum(isinstance(event, ControlPlaneLost) for event in world.events)
    found += sum(isinstance(event, ControlPlaneConnected) for event in world.events)
    assert abs(lost - found) <= 1
    forget_what_was_said(world)
    assert growth(*seen, count_objects()) == {}


def test_a_thousand_reconnects_to_a_dead_server_leave_nothing_behind(world: Any) -> None:
    server = world.server
    server.mood = "down"
    server.cut()
    world.pass_time(3600.0)
    seen, opened, start = [count_objects()], server.opened, world.clock()
    for _ in range(2):
        until = server.opened + 500
        while server.opened < until:
            world.pass_time(600.0)
        seen.append(count_objects())
    assert growth(*seen) == {}
    assert 110.0 < (world.clock() - start) / (server.opened - opened) < 130.0
    assert len([event for event in world.events if isinstance(event, ControlPlaneLost)]) <= 2
    server.mood = "well"
    world.pass_time(150.0)
    assert world.control.connection.state == "connected"
    assert world.ports("checkout") == [1]


class Ended:
    """Who hears of one stream.

    Attributes:
        reasons: Why it ended, once it did.
    """

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.reasons: list[str] = []

    def sent(self) -> None:
        pass

    def received(self, data: bytes, done: Any) -> None:
        done()

    def ended(self, reason: str, *, is_unimplemented: bool = False) -> None:
        self.reasons.append(reason)
        self.is_over.set()


def test_real_streams_to_a_dead_server_leave_neither_threads_nor_channels_behind() -> None:
    server = ServerConfig("127.0.0.1:1", InsecureCreds())

    def open_and_fail() -> None:
        events = Ended()
        stream = AdsStream(server, events, lambda: 0.0)
        stream.send(b"x")
        assert events.is_over.wait(30.0)
        assert "UNAVAILABLE" in events.reasons[0]
        stream.close()

    for _ in range(20):
        open_and_fail()
    seen, threads = [count_objects()], threading.active_count()
    resident = []
    for _ in range(4):
        for _ in range(250):
            open_and_fail()
        resident.append(resident_mb())
        seen.append(count_objects())
    assert growth(*seen) == {}
    deadline = time.monotonic() + 20
    while threading.active_count() > threads:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
    # What grpcio holds is no object of Python's: a stream that stayed would be 30 kB, and these 250 streams 7 MB.
    assert min(later - earlier for earlier, later in pairwise(resident)) < 1.5, resident


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_what_nobody_wants_any_more_is_freed(world: Any, make: Any) -> None:
    """Two hundred clusters come and go, each with its endpoints; what is known of them goes with the routes to them."""
    server = world.server
    entries = len(world.control.entries())
    seen = []
    for number in range(200):
        if not number % 100:
            forget_what_was_said(world)
            seen.append(count_objects())
        name = f"c{number}"
        server.put(CDS, **{name: make.eds_cluster(name)})
        server.put(EDS, **{name: make.endpoints(name, 80)})
        server.put(RDS, checkout=make.routes("checkout", name))
        world.spin()
        assert world.ports(name) == [80]
        server.remove(CDS, name)
        server.remove(EDS, name)
    server.put(RDS, checkout=make.routes("checkout", "checkout"))
    world.pass_time(60.0)
    assert world.ports("checkout") == [1]
    assert entries == len(world.control.entries())
    assert {"checkout"} == world.subscribed(CDS) == world.subscribed(EDS)
    forget_what_was_said(world)
    assert growth(*seen, count_objects()) == {}
