"""How many streams a client may open."""

import pytest

from xds_server.admission import MAX_IDLE_CLIENTS, Admission, StreamLimits, client_of
from xds_server.stream import StreamRefused

LIMITS = StreamLimits(at_once=50, per_s=10.0, burst=20)


def opened(admission: Admission, client: str, count: int, now: float) -> list[float]:
    return [round(admission.open(client, now), 6) for _ in range(count)]


def test_a_burst_goes_at_once_and_what_follows_waits_its_turn() -> None:
    admission = Admission(LIMITS)
    assert [0.0] * 20 + [0.1, 0.2, 0.3] == opened(admission, "a", 23, 100.0)


def test_who_would_wait_for_more_than_a_second_is_refused() -> None:
    admission = Admission(LIMITS)
    opened(admission, "a", 30, 100.0)
    with pytest.raises(StreamRefused, match="10 streams a second") as caught:
        admission.open("a", 100.0)
    assert "RESOURCE_EXHAUSTED" == caught.value.code
    assert 0.9 == pytest.approx(admission.open("a", 100.2))


def test_others_are_not_held_up() -> None:
    admission = Admission(LIMITS)
    opened(admission, "a", 30, 100.0)
    assert [0.0] * 20 == opened(admission, "b", 20, 100.0)


def test_streams_at_once_are_limited_until_some_end() -> None:
    admission = Admission(LIMITS)
    for second in range(5):
        opened(admission, "a", 10, 100.0 + second)
    with pytest.raises(StreamRefused, match="50 streams open"):
        admission.open("a", 200.0)
    admission.close("a")
    assert 0.0 == admission.open("a", 200.0)


def test_clients_that_are_gone_are_forgotten_but_not_their_haste() -> None:
    admission = Admission(LIMITS)
    opened(admission, "fast", 25, 0.0)
    for _ in range(25):
        admission.close("fast")
    for number in range(MAX_IDLE_CLIENTS):
        admission.open(f"{number}", 0.2)
        admission.close(f"{number}")
    with pytest.raises(StreamRefused):
        opened(admission, "fast", 10, 0.2)
    for number in range(3 * MAX_IDLE_CLIENTS):
        admission.open(f"later {number}", 100.0 + number)
        admission.close(f"later {number}")
    assert len(admission._clients) <= MAX_IDLE_CLIENTS + 1


@pytest.mark.parametrize(
    ("peer", "identity", "client"),
    [
        ("ipv4:127.0.0.1:4711", None, "ipv4:127.0.0.1"),
        ("ipv6:[::1]:4711", None, "ipv6:[::1]"),
        ("unix:", None, "unix:"),
        ("ipv4:10.0.0.1:1", "default/a", "ipv4:10.0.0.1 default/a"),
    ],
)
def test_a_client_is_its_address_and_what_it_has_proved(peer: str, identity: str | None, client: str) -> None:
    assert client == client_of(peer, identity)
