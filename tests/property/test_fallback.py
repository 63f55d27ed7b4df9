"""Laws of fallback between servers, whatever happens to them in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from meshlib.xds.fallback import Fallback, Health

HEALTH = st.sampled_from((Health(), Health(is_up=True), Health(is_failing=True)))
STEPS = st.integers(1, 4).flatmap(
    lambda count: st.lists(
        st.tuples(st.lists(HEALTH, min_size=count, max_size=count), st.booleans(), st.booleans()), max_size=30
    )
)


@given(steps=STEPS, on_reachability_only=st.booleans())
def test_the_servers_in_use_are_as_few_as_can_be(
    steps: list[tuple[list[Health], bool, bool]], on_reachability_only: bool
) -> None:
    fallback = Fallback(on_reachability_only=on_reachability_only)
    for health, is_wanted, is_open in steps:
        before = fallback.in_use

        def ask(is_open: bool = is_open) -> bool:
            return is_open

        changed = fallback.step(health, is_wanted=is_wanted, has_open_question=ask)
        now = fallback.in_use
        assert changed == (now != before)
        if not is_wanted:
            assert 0 == now
            continue
        assert 1 <= now <= len(health)
        # A server that is up puts those after it out of use.
        assert not any(one.is_up for one in health[: now - 1])
        # Another one joins only for a reason, and only after those before it have failed.
        if now > max(1, before):
            assert is_open or on_reachability_only
            assert all(one.is_failing for one in health[max(1, before) - 1 : now - 1])
        # While something is unknown, a server that may yet answer is in use, if there is any further on.
        if is_open and health[now - 1].is_failing:
            assert now == len(health)
        assert not fallback.step(health, is_wanted=True, has_open_question=ask)


@given(steps=STEPS, on_reachability_only=st.booleans())
def test_in_the_end_the_first_server_alone_is_in_use_when_it_is_up(
    steps: list[tuple[list[Health], bool, bool]], on_reachability_only: bool
) -> None:
    fallback = Fallback(on_reachability_only=on_reachability_only)
    count = len(steps[0][0]) if steps else 1
    for health, is_wanted, is_open in steps:
        fallback.step(health, is_wanted=is_wanted, has_open_question=lambda is_open=is_open: is_open)
    end = [Health(is_up=True)] + [Health(is_failing=True)] * (count - 1)
    fallback.step(end, is_wanted=True, has_open_question=lambda: True)
    assert 1 == fallback.in_use
