from meshlib.clients.pacing import Pacer


def let_through(pacer: Pacer, now: float, *parts: bytes) -> float:
    """Return when the last of the parts is through."""
    for part in parts:
        for piece in pacer.slices(part):
            now += pacer.wait_s(piece, now)
    return now


def test_first_slice_comes_at_once_and_the_others_in_their_time():
    pacer = Pacer(1600, 0.0)
    assert [len(piece) for piece in pacer.slices(b"x" * 250)] == [100, 100, 50]
    assert let_through(Pacer(1600, 0.0), 0.0, b"x" * 100) == 0.0
    assert round(let_through(Pacer(1600, 0.0), 0.0, b"x" * 1600), 6) == 15 / 16
    assert round(let_through(Pacer(1600, 0.0), 0.0, *[b"x"] * 1600), 2) == 1.0


def test_a_pause_of_the_server_is_made_up_for_by_a_second_at_most():
    pacer = Pacer(1600, 0.0)
    assert let_through(pacer, 100.0, b"x" * 1600) == 100.0
    assert round(let_through(pacer, 100.0, b"x" * 1600), 2) == 100.94


def test_no_rate_is_too_low_for_a_byte():
    assert Pacer(1, 0.0).slices(b"ab") == [b"a", b"b"]
