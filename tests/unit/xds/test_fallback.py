"""Which servers are in use, given how each is (gRFC A71)."""

from meshlib.xds.fallback import Fallback, Health

UP, NEW, FAILING = Health(is_up=True), Health(), Health(is_failing=True)


def step(fallback: Fallback, *health: Health, known: bool = False, wanted: bool = True) -> int:
    fallback.step(health, is_wanted=wanted, has_open_question=lambda: not known)
    return fallback.in_use


def test_only_the_first_server_is_asked_at_the_start() -> None:
    assert 1 == step(Fallback(), NEW, NEW)


def test_nothing_wanted_needs_no_server() -> None:
    fallback = Fallback()
    assert 0 == step(fallback, NEW, wanted=False)
    step(fallback, NEW)
    assert 0 == step(fallback, FAILING, wanted=False)


def test_a_server_that_fails_brings_the_next_one_in_while_something_is_unknown() -> None:
    fallback = Fallback()
    assert 2 == step(fallback, FAILING, NEW, NEW)
    assert 2 == step(fallback, FAILING, NEW, NEW)
    assert 3 == step(fallback, FAILING, FAILING, NEW)
    assert 3 == step(fallback, FAILING, FAILING, FAILING)


def test_servers_known_to_fail_are_passed_over_at_once() -> None:
    assert 3 == step(Fallback(), FAILING, FAILING, NEW)


def test_a_server_that_dies_while_everything_is_known_stays_the_only_one() -> None:
    fallback = Fallback()
    assert 1 == step(fallback, FAILING, UP, known=True)
    assert 2 == step(fallback, FAILING, NEW, known=False)


def test_reachability_alone_can_be_reason_enough() -> None:
    fallback = Fallback(on_reachability_only=True)
    assert 2 == step(fallback, FAILING, NEW, known=True)


def test_the_first_server_that_answers_again_puts_the_later_ones_out_of_use() -> None:
    fallback = Fallback()
    step(fallback, FAILING, FAILING, NEW)
    assert 3 == step(fallback, FAILING, FAILING, UP)
    assert 2 == step(fallback, FAILING, UP, UP)
    assert 1 == step(fallback, UP, UP, UP)


def test_whether_something_is_unknown_is_asked_only_when_it_matters() -> None:
    def ask() -> bool:
        raise AssertionError("asked")

    Fallback().step((UP, NEW), is_wanted=True, has_open_question=ask)
    Fallback().step((FAILING,), is_wanted=True, has_open_question=ask)
