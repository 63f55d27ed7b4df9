"""Names of DNS clusters over time, with a fake resolver and a fake clock."""

import socket
from pathlib import Path

import pytest

from meshlib.model.dns import DnsAnswer, DnsLookup, DnsPace, DnsQuestion, DnsRecords, LookupFamily
from meshlib.runtime import dns
from meshlib.runtime.dns import Answered, DnsLookups, look_up
from meshlib.runtime.host_names import MIN_BETWEEN_S, HostNames
from meshlib.runtime.scheduler import Scheduler
from meshlib.testing import FakeClock, FixedRng
from meshlib.xds.dns import DnsWish


class World(DnsLookups):
    """Attributes:
    asked: When each look-up began, and of what.
    replies: By host; a text is the reason of a failure.
    is_slow: Look-ups wait for `reply`.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock)
        self.asked: list[tuple[float, str]] = []
        self.replies: dict[str, DnsRecords | str] = {}
        self.is_slow = False
        self.open: list[tuple[DnsQuestion, Answered]] = []
        self.changes = 0
        self.names = HostNames(self, self.scheduler, FixedRng(0.5), self.changed, {})

    def changed(self) -> None:
        self.changes += 1

    def start(self, question: DnsQuestion, answered: Answered) -> None:
        self.asked.append((self.clock(), question.host))
        self.open.append((question, answered))
        if not self.is_slow:
            self.reply()

    def reply(self) -> None:
        question, answered = self.open.pop(0)
        found = self.replies[question.host]
        answered(None if isinstance(found, str) else found, found if isinstance(found, str) else "")

    def want(self, host: str, pace: DnsPace) -> str:
        question = DnsQuestion(host)
        self.names.want({question.label: DnsWish(question, pace)})
        return question.label

    def pass_time(self, seconds: float) -> list[float]:
        """Returns after how many seconds look-ups began."""
        began, before = self.clock(), len(self.asked)
        for _ in range(int(seconds * 8)):
            self.clock.advance(0.125)
            self.scheduler.run(block=False)
        return [when - began for when, _ in self.asked[before:]]


def test_a_name_is_looked_up_again_when_its_answer_is_no_longer_good() -> None:
    world = World()
    world.replies["h"] = DnsRecords(("10.0.0.1",), ttl_s=3.0)
    label = world.want("h", DnsPace(60.0))
    assert [3.0, 6.0, 9.0] == world.pass_time(10)
    assert ({label: DnsAnswer(("10.0.0.1",))}, 1) == (world.names.answers, world.changes)
    world.replies["h"] = DnsRecords(("10.0.0.2",))
    assert [2.0] == world.pass_time(10)
    assert (DnsAnswer(("10.0.0.2",)), 2) == (world.names.answers[label], world.changes)


def test_failures_back_off_and_a_success_ends_that() -> None:
    world = World()
    world.replies["h"] = "refused"
    label = world.want("h", DnsPace(60.0, 0.0, 2.0, 8.0))
    assert [1.0, 3.0, 7.0, 11.0] == world.pass_time(12)
    assert DnsAnswer((), "refused") == world.names.answers[label]
    world.replies["h"] = DnsRecords(("10.0.0.1",), 5.0)
    assert [3.0, 8.0] == world.pass_time(9)
    world.replies["h"] = "refused"
    assert [4.0, 5.0] == world.pass_time(6)
    assert DnsAnswer(("10.0.0.1",), "refused") == world.names.answers[label]


def test_no_addresses_are_a_failure_where_some_are_needed() -> None:
    world = World()
    world.replies["h"] = DnsRecords(())
    world.want("h", DnsPace(3.0, 0.0, 1.0, needs_addresses=True))
    assert [0.5, 1.5] == world.pass_time(2)
    assert [1.5, 5.5] == world.pass_time(6)
    world.want("h", DnsPace(3.0, 0.0, 1.0))
    assert [3.0] == world.pass_time(4)


def test_names_that_nobody_wants_are_forgotten_with_what_is_under_way() -> None:
    world = World()
    world.replies["h"] = DnsRecords(("10.0.0.1",))
    world.want("h", DnsPace(1.0))
    world.names.want({})
    assert ({}, []) == (world.names.answers, world.pass_time(5))
    world.is_slow = True
    world.want("h", DnsPace(1.0))
    world.names.want({})
    label = world.want("h", DnsPace(1.0))
    world.reply()
    assert {} == world.names.answers
    world.reply()
    assert [label] == list(world.names.answers)


def test_another_pace_has_the_name_looked_up_at_once_but_never_twice_at_a_time() -> None:
    world = World()
    world.replies["h"] = DnsRecords(("10.0.0.1",))
    world.want("h", DnsPace(3600.0))
    world.want("h", DnsPace(5.0))
    assert [(0.0, "h"), (0.0, "h")] == [(when - world.clock(), host) for when, host in world.asked]
    world.is_slow = True
    world.pass_time(5)
    world.want("h", DnsPace(2.0))
    assert 1 == len(world.open)
    world.is_slow = False
    world.reply()
    assert [2.0, 4.0] == world.pass_time(5)


def found(*addresses: str) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    return [(socket.AF_INET6 if ":" in one else socket.AF_INET, 1, 6, "", (one, 0)) for one in addresses]


def resolve(monkeypatch: pytest.MonkeyPatch, family: LookupFamily, *addresses: str, routes: str = "46") -> list[str]:
    """Returns what the system's resolver is taken to say."""
    asked = []

    def getaddrinfo(host: str, port: None, *, family: int, type: int) -> object:
        asked.append(family)
        return found(*addresses)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(dns, "_has_route", lambda family: ("6" if family == socket.AF_INET6 else "4") in routes)
    records = look_up(DnsQuestion("h", DnsLookup(family, is_routable=routes != "46")))
    only = {LookupFamily.V4_ONLY: socket.AF_INET, LookupFamily.V6_ONLY: socket.AF_INET6}
    assert (None, [only.get(family, socket.AF_UNSPEC)]) == (records.ttl_s, asked)
    return list(records.addresses)


def test_the_systems_resolver_is_asked_for_the_family_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("10.0.0.2", "10.0.0.1", "10.0.0.1", "fd00::1")
    assert ["10.0.0.2", "10.0.0.1"] == resolve(monkeypatch, LookupFamily.V4_ONLY, *both)
    assert ["fd00::1"] == resolve(monkeypatch, LookupFamily.AUTO, *both)
    assert ["10.0.0.2", "10.0.0.1", "fd00::1"] == resolve(monkeypatch, LookupFamily.ALL, *both)


def test_families_without_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("10.0.0.1", "fd00::1")
    assert ["10.0.0.1"] == resolve(monkeypatch, LookupFamily.AUTO, *both, routes="4")
    assert ["10.0.0.1"] == resolve(monkeypatch, LookupFamily.ALL, *both, routes="4")
    assert [] == resolve(monkeypatch, LookupFamily.V6_ONLY, "fd00::1", routes="4")


@pytest.mark.parametrize("code", ["EAI_NONAME", "EAI_NODATA"])
def test_a_name_that_does_not_exist_has_no_addresses_and_that_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def getaddrinfo(*args: object, **kwargs: object) -> object:
        raise socket.gaierror(getattr(socket, code), "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert DnsRecords(()) == look_up(DnsQuestion("h"))


def test_a_resolver_that_does_not_answer_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*args: object, **kwargs: object) -> object:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match="try again"):
        look_up(DnsQuestion("h"))


def test_the_hosts_file_comes_first(tmp_path: Path) -> None:
    servers = pytest.importorskip("meshlib.runtime.dns_servers", reason="needs the extra `dns`", exc_type=ImportError)
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "# none\n127.0.0.1 localhost\n\n10.0.0.1  Db.example db # the one\n::1 localhost\nfe80::1%eth0 db\n"
    )
    read = servers.addresses_of_hosts_file
    assert [("10.0.0.1",), ("10.0.0.1",), ("127.0.0.1", "::1"), ()] == [
        read(name, hosts) for name in ("db", "DB.example.", "localhost", "other")
    ]
    assert () == read("db", tmp_path / "none")


def test_a_name_that_led_nowhere_is_looked_up_before_its_time_but_not_too_often() -> None:
    world = World()
    world.replies["h"] = DnsRecords(("10.0.0.1",))
    label = world.want("h", DnsPace(3600.0))
    world.pass_time(10)
    world.names.look_up_again([label, "stranger"], world.clock())
    world.names.look_up_again([label], world.clock())
    assert [MIN_BETWEEN_S - 10] == world.pass_time(60), "30 s after it was looked up"
    world.names.look_up_again([label], world.clock())
    assert [0.125] == world.pass_time(20), "at once"


def test_a_look_up_that_is_due_soon_or_under_way_or_failing_stays_as_it_is() -> None:
    world = World()
    world.replies["h"] = DnsRecords(("10.0.0.1",))
    label = world.want("h", DnsPace(20.0))
    world.names.look_up_again([label], world.clock())
    assert [20.0] == world.pass_time(21)
    world.is_slow = True
    world.pass_time(20)
    world.names.look_up_again([label], world.clock())
    assert [] == world.pass_time(100)
    world.is_slow = False
    world.replies["h"] = "refused"
    world.reply()
    world.want("h", DnsPace(3600.0, 0.0, 100.0, 100.0))
    world.pass_time(40)
    world.names.look_up_again([label], world.clock())
    assert [10.0] == world.pass_time(11), "of the back-off"
