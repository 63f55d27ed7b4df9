import pytest

from meshlib.runtime import pauses
from meshlib.runtime.pace import Pace
from meshlib.runtime.pauses import GENTLE_REST_S, REST_S, TurnTaking


@pytest.mark.parametrize(("is_pressed", "rest_s"), [(False, REST_S), (True, GENTLE_REST_S)])
def test_a_rest_after_each_slice(monkeypatch: pytest.MonkeyPatch, is_pressed: bool, rest_s: float) -> None:
    now, rests = [100.0], []

    def sleep(seconds: float) -> None:
        rests.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(pauses.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(pauses.time, "sleep", sleep)
    pace = Pace()
    pace.is_pressed = is_pressed
    pause = TurnTaking(pace)
    pause()
    assert [rest_s] == rests
    pause()  # at once again: the slice is not over
    assert [rest_s] == rests
    now[0] += pauses.GENTLE_SLICE_S if is_pressed else pauses.SLICE_S
    pause()
    assert [rest_s] * 2 == rests
