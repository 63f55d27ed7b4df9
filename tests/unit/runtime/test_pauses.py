import pytest

from meshlib.runtime import pauses
from meshlib.runtime.pace import PATIENCE_S, Pace
from meshlib.runtime.pauses import COMPANY, GENTLE_REST_S, GENTLE_SLICE_S, REST_S, SLICE_S, TurnTaking


class Machine:
    """A clock, and what the threads of the process have run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.own_s = self.others_s = 0.0
        self.busy = 0.0  # the part of the time for which other threads run
        self.rests: list[float] = []
        monkeypatch.setattr(pauses.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(pauses.time, "process_time", lambda: self.own_s + self.others_s)
        monkeypatch.setattr(pauses.time, "thread_time", lambda: self.own_s)
        monkeypatch.setattr(pauses.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.pass_(seconds)

    def compute(self, seconds: float) -> None:
        self.own_s += seconds
        self.pass_(seconds)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.others_s += seconds * self.busy


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def pace() -> Pace:
    """Of updates that follow each other closely."""
    pace = Pace()
    pace.is_pressed = True
    return pace


@pytest.mark.parametrize(
    ("is_pressed", "busy", "slice_s", "rest_s"),
    [
        (False, 1.0, SLICE_S, REST_S),
        (True, 1.0, GENTLE_SLICE_S, GENTLE_REST_S),
        (True, COMPANY / 2, SLICE_S, REST_S),
    ],
)
def test_a_rest_after_each_slice(
    machine: Machine, is_pressed: bool, busy: float, slice_s: float, rest_s: float
) -> None:
    machine.busy = busy
    pace = Pace()
    pace.is_pressed = is_pressed
    pause = TurnTaking(pace)
    machine.compute(1.0)
    pause()
    assert [rest_s] == machine.rests
    pause()  # at once again: the slice is not over
    assert [rest_s] == machine.rests
    machine.compute(slice_s)
    pause()
    assert 2 == len(machine.rests)


def test_who_comes_and_who_leaves_is_noticed_within_two_slices(machine: Machine, pace: Pace) -> None:
    pause = TurnTaking(pace)
    for busy in (0.0, 0.1, 0.0, 0.1):
        machine.busy = busy
        for _ in range(2):
            machine.compute(SLICE_S)
            pause()
        assert pytest.approx(GENTLE_REST_S if busy else REST_S, rel=0.05) == machine.rests[-1]


def test_rests_get_shorter_and_end(machine: Machine, pace: Pace) -> None:
    machine.busy = 1.0
    pause = TurnTaking(pace)
    for _ in range(10_000):
        machine.compute(GENTLE_SLICE_S)
        pause()
    assert machine.rests == sorted(machine.rests, reverse=True)
    assert (GENTLE_REST_S, REST_S) == (machine.rests[0], machine.rests[-1])
    gentle = [rest for rest in machine.rests if rest > REST_S]
    assert sum(gentle) < PATIENCE_S
    assert len(gentle) > PATIENCE_S / GENTLE_REST_S


def test_in_a_hurry_rests_are_short_at_once(machine: Machine, pace: Pace) -> None:
    machine.busy = 1.0
    pause = TurnTaking(pace)
    machine.compute(1.0)
    pause()
    pace.hurry()
    machine.compute(SLICE_S)
    pause()
    assert [GENTLE_REST_S, REST_S] == machine.rests
