"""What stands still before a fork, and what goes on after it."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshlib.clients import grpc_channels
from meshlib.clients.grpc_channels import Channels
from meshlib.clients.grpc_dial import SyncDialler, in_callback
from meshlib.clients.grpc_fork import Forks
from meshlib.runtime import fork
from meshlib.runtime.relay import TlsRelay

LONG_S = 60.0
"""Never reached; a test that waits for it has failed."""


class Dialler(SyncDialler):
    """Makes channels that only count; making one, and closing one, can be kept from ending."""

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self.fork_patience_s = patience_s
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()
        self.is_closing, self.may_close = threading.Event(), threading.Event()
        self.may_close.set()
        self.made = self.closed = 0

    def dial(self, *_: Any) -> Any:
        self.has_begun.set()
        assert self.may_end.wait(LONG_S)
        self.made += 1
        return object()

    def close(self, channel: Any) -> None:
        self.is_closing.set()
        assert self.may_close.wait(LONG_S)
        self.closed += 1


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> Forks:
    made = Forks()
    monkeypatch.setattr(grpc_channels, "_forks", made)
    return made


@pytest.fixture
def started() -> Iterator[Callable[[Callable[[], Any]], threading.Thread]]:
    """Run something in a thread."""
    threads: list[threading.Thread] = []

    def start(function: Callable[[], Any]) -> threading.Thread:
        threads.append(threading.Thread(target=function, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(LONG_S)
        assert not thread.is_alive()


def channels_with(patience_s: float) -> tuple[Channels[Any], Dialler]:
    dialler = Dialler(patience_s)
    channels: Channels[Any] = Channels(TlsRelay(), dialler, lambda: None)
    channels.view = VIEW
    channels._addresses = frozenset({"127.0.0.1:1"})
    return channels, dialler


VIEW: Any = SimpleNamespace(clusters={}, secrets={})


def take(channels: Channels[Any]) -> Any:
    cluster = SimpleNamespace(config=SimpleNamespace(cluster=SimpleNamespace(connect_timeout_s=1.0)))
    endpoint = SimpleNamespace(address="127.0.0.1:1", dials=())
    attempt: Any = SimpleNamespace(
        endpoint=endpoint, head=SimpleNamespace(authority="checkout"), tls=None, cluster=cluster
    )
    return channels.acquire(VIEW, attempt)


def test_the_first_of_two_forks_does_not_speak_for_the_other(forks: Forks, started: Any) -> None:
    channels, dialler = channels_with(LONG_S)
    forks.begin()
    forks.begin()
    forks.end()
    assert forks.are_under_way
    call = started(lambda: channels.release(take(channels)))
    assert not dialler.has_begun.wait(0.05)  # too short a time can only let a fault pass
    forks.end()
    call.join(LONG_S)
    assert 1 == dialler.made


def test_an_end_too_many_changes_nothing(forks: Forks) -> None:
    forks.end()
    forks.begin()
    assert forks.are_under_way
    forks.forget()
    assert not forks.are_under_way


def test_a_fork_waits_for_a_channel_that_is_being_made_and_its_call(forks: Forks, started: Any) -> None:
    """Its call went past the gate, and then into the fork."""
    channels, dialler = channels_with(LONG_S)
    dialler.may_end.clear()
    has_call, may_end = threading.Event(), threading.Event()

    def call() -> None:
        channel = take(channels)
        has_call.set()
        assert may_end.wait(LONG_S)
        channels.release(channel)

    started(call)
    assert dialler.has_begun.wait(LONG_S)
    forks.begin()
    quiescing = started(channels.quiesce)
    dialler.may_end.set()
    assert has_call.wait(LONG_S)
    assert quiescing.is_alive() and 0 == dialler.closed
    may_end.set()
    quiescing.join(LONG_S)
    assert (1, 1) == (dialler.made, dialler.closed)
    assert {"channels": 0, "active": 0} == channels.statistics()


def test_a_fork_waits_for_a_channel_that_another_thread_is_closing(forks: Forks, started: Any) -> None:
    channels, dialler = channels_with(LONG_S)
    channel = take(channels)
    channels.close()
    dialler.may_close.clear()
    started(lambda: channels.release(channel))
    assert dialler.is_closing.wait(LONG_S)
    quiescing = started(channels.quiesce)
    assert quiescing.is_alive()
    dialler.may_close.set()
    quiescing.join(LONG_S)
    assert 1 == dialler.closed


def test_a_stream_is_waited_for_once(forks: Forks) -> None:
    """A pool of fifty processes must not wait fifty times."""
    channels, dialler = channels_with(0.0001)
    stream = take(channels)
    channels.quiesce()
    dialler.fork_patience_s = LONG_S
    channels.quiesce()
    assert 0 == dialler.closed
    channels.release(stream)
    assert 1 == dialler.closed


def test_a_channel_that_cannot_be_made_leaves_nothing(forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    channels, dialler = channels_with(LONG_S)

    def fail(*_: Any) -> Any:
        raise OSError("no")

    monkeypatch.setattr(dialler, "dial", fail)
    with pytest.raises(OSError, match="no"):
        take(channels)
    channels.quiesce()


def test_threads_of_grpc_wait_for_no_fork(forks: Forks) -> None:
    """A fork waits for channels that are being closed, these for their threads."""
    channels, dialler = channels_with(LONG_S)
    forks.begin()
    with in_callback():
        channel = take(channels)
        stuck = threading.Thread(target=dialler.may_close.wait)
        dialler._closers.add(stuck)  # not started: to join it fails
        dialler.settle()
    channels.release(channel)
    assert 1 == dialler.made


def test_in_a_child_nothing_is_counted(forks: Forks) -> None:
    channels, dialler = channels_with(LONG_S)
    channels._dialling = 3
    dialler._lock.acquire()
    channels.forget()
    channels.quiesce()
    assert 0 == dialler.closed


class Participant:
    def __init__(self, *, fails: bool) -> None:
        self.fails = fails
        self.told: list[str] = []

    def _tell(self, what: str) -> None:
        self.told.append(what)
        if self.fails:
            raise RuntimeError(what)

    def before_fork(self) -> None:
        self._tell("before")

    def after_fork_in_parent(self) -> None:
        self._tell("parent")

    def after_fork_in_child(self) -> None:
        self._tell("child")


def test_who_fails_at_a_fork_does_not_keep_the_others_from_being_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    participants = [Participant(fails=True), Participant(fails=False), Participant(fails=True)]
    monkeypatch.setattr(fork, "_participants", participants)
    fork._before()
    fork._in_parent()
    fork._in_child()
    assert [["before", "parent", "child"]] * 3 == [one.told for one in participants]
    assert 6 == len(caplog.records)
