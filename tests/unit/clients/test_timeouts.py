import pytest

from meshlib.clients.timeouts import AttemptTimeouts, Until
from meshlib.testing.clock import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def timeouts(clock, base=None, *, timeout_s=None, connect_timeout_s=5.0, after_body=False) -> AttemptTimeouts:
    return AttemptTimeouts(
        base or {}, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, clock=clock, after_body=after_body
    )


def test_without_limits_only_connecting_has_one(clock):
    found = timeouts(clock)
    assert (found.get("connect"), found.get("write"), found.get("read"), found.get("pool")) == (5.0, None, None, None)


def test_httpx_caps_each_step_and_the_attempt_caps_them_all(clock):
    found = timeouts(clock, {"read": 3.0, "write": 20.0, "connect": 1.0}, timeout_s=10.0)
    assert (found.get("read"), found.get("write"), found.get("connect"), found.get("pool")) == (3.0, 10.0, 1.0, 10.0)
    clock.advance(8.0)
    assert (found.get("read"), found.get("write")) == (2.0, 2.0)
    read = found.get("read")
    assert isinstance(read, Until)
    assert read.left() == pytest.approx(2.0)


def test_time_left_shrinks_while_a_step_goes_on(clock):
    until = timeouts(clock, timeout_s=10.0).get("read")
    assert isinstance(until, Until)
    clock.advance(9.0)
    assert until.left() == pytest.approx(1.0)
    clock.advance(2.0)
    assert until.left() < 0


def test_steps_show_how_far_the_attempt_came(clock):
    found = timeouts(clock)
    found.get("pool")
    assert (found.has_connected, found.has_sent) == (False, False)
    found.get("connect")
    assert (found.has_connected, found.has_sent) == (True, False)
    found.get("write")
    assert (found.has_connected, found.has_sent) == (True, True)
    found.begin_again()
    assert (found.has_connected, found.has_sent) == (False, False)


def test_streamed_request_has_an_end_that_does_not_wait_for_its_own(clock):
    found = AttemptTimeouts(
        {}, timeout_s=10.0, connect_timeout_s=5.0, clock=clock, after_body=True, whole_at=clock() + 4.0
    )
    clock.advance(1.0)
    assert (found.get("write"), found.sent_at) == (3.0, None)
    assert (found.get("read"), found.sent_at) == (3.0, clock())
    clock.advance(3.0)
    assert found.is_over


def test_time_of_a_streamed_request_begins_at_its_end(clock):
    found = timeouts(clock, timeout_s=1.0, after_body=True)
    clock.advance(30.0)
    assert (found.get("write"), found.is_over) == (None, False)
    read = found.get("read")
    assert isinstance(read, Until)
    assert read.left() == pytest.approx(1.0)
    clock.advance(1.0)
    assert found.is_over


def test_body_has_the_time_of_the_call(clock):
    found = timeouts(clock, {"read": 5.0}, timeout_s=1.0)
    found.begin_body(None)
    assert found.get("read") == 5.0
    found.begin_body(clock() + 2.0)
    assert found.get("read") == pytest.approx(2.0)


def test_step_that_begins_now_is_a_mere_number_while_there_is_time(clock):
    found = timeouts(clock, {"read": 3.0, "write": 20.0}, timeout_s=10.0)
    assert (found.step_s("read"), found.step_s("write"), found.has_sent) == (3.0, 10.0, True)
    assert not isinstance(found.step_s("read"), Until)
    clock.advance(9.0)
    assert (found.step_s("read"), found.step_s("write")) == (pytest.approx(1.0), pytest.approx(1.0))
    clock.advance(1.0)
    assert isinstance(found.step_s("read"), Until)  # which says that there is none


def test_step_asks_for_all_that_get_asks_for(clock):
    assert timeouts(clock, {"read": 3.0}).step_s("read") == 3.0
    assert timeouts(clock).step_s("write") is None
    assert isinstance(timeouts(clock, {"read": 0.0}, timeout_s=1.0).step_s("read"), Until)
    late = timeouts(clock, timeout_s=1.0, after_body=True)
    assert late.step_s("write") is None
    assert isinstance(late.step_s("read"), Until)
    idle = timeouts(clock, {"read": 3.0}, timeout_s=10.0)
    idle.begin_body(clock() + 10.0, 0.5)
    assert (idle.step_s("read"), idle.is_idle) == (0.5, True)


def test_attempt_begins_when_it_is_said_to(clock):
    found = AttemptTimeouts({}, timeout_s=10.0, connect_timeout_s=5.0, clock=clock, now=clock() - 4.0)
    assert found.left() == 6.0
