"""Who shares a lease."""

import os

from meshlib.servers.crew import Crew


def test_the_last_to_leave_is_told_so() -> None:
    crew = Crew()
    first, second = crew.reserve(1), crew.reserve(2)
    crew.board(first)
    assert not crew.leave(first)
    crew.board(second)
    assert not crew.is_empty
    assert crew.leave(second)
    assert crew.is_empty


def test_one_who_is_about_to_come_counts() -> None:
    crew = Crew()
    old, _new = crew.reserve(1), crew.reserve(2)
    crew.board(old)
    assert not crew.leave(old)


def test_one_who_was_killed_does_not_count() -> None:
    crew = Crew()
    mine, other = crew.reserve(1), crew.reserve(2)
    crew.board(mine)
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    crew._berths[other] = child * 2 + 1
    assert not crew.is_renewed
    assert crew.leave(mine)


def test_the_lease_has_one_name_per_service() -> None:
    crew = Crew()
    assert crew.lease_id("users") == crew.lease_id("users")
    assert crew.lease_id("users").startswith("users-")
    assert crew.lease_id("users") != Crew().lease_id("users")


def test_who_renews_is_known_to_the_others() -> None:
    crew = Crew()
    mine, other = crew.reserve(1), crew.reserve(2)
    crew.board(mine)
    assert not crew.is_renewed
    crew.board(mine, renews=True)
    assert crew.is_renewed
    assert not crew.is_alone(mine)
    assert not crew.is_alone(other)
    crew.board(other)
    crew.leave(other)
    assert crew.is_alone(mine)
