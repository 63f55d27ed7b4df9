import gc
import logging

import pytest

import meshlib
from meshlib.runtime.tidying import TidyingUp

BOOTSTRAP = {"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}]}


class Room:
    """Something that grows old."""

    def __init__(self) -> None:
        self.tidied = 0

    def tidy(self) -> None:
        self.tidied += 1


class Mess(Room):
    """Something that fails."""

    def tidy(self) -> None:
        super().tidy()
        raise ValueError("a mess")


def test_everyone_is_tidied_though_one_fails(caplog):
    tidying_up, rooms = TidyingUp(), (Room(), Mess(), Room())
    for room in rooms:
        tidying_up.add(room.tidy)
    with caplog.at_level(logging.ERROR):
        tidying_up.run()
    assert [1, 1, 1] == [room.tidied for room in rooms]
    assert "a mess" in caplog.text


def test_nobody_is_held():
    tidying_up, room = TidyingUp(), Room()
    tidying_up.add(room.tidy)
    tidying_up.run()
    del room
    gc.collect()
    tidying_up.run()
    assert 0 == len(tidying_up)


def test_a_mesh_tidies_up_with_its_other_periodic_work_and_knows_its_transports():
    mesh, room = meshlib.Mesh(BOOTSTRAP, state_dir=""), Room()
    transports = (mesh.httpx_transport(), mesh.async_httpx_transport())
    mesh._tidying_up.add(room.tidy)
    mesh.tick(mesh.clock())
    assert 1 == room.tidied
    assert 1 + len(transports) == len(mesh._tidying_up)


def test_a_mesh_that_is_closed_meanwhile_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Its end had a traceback in the log, when the control thread was just about to tidy up."""

    class Closing:
        is_closed = False
        calls = 0

        def tidy(self) -> None:
            self.is_closed = True
            self.calls += 1
            raise RuntimeError("the mesh is closed")

    closing, tidying = Closing(), TidyingUp()
    tidying.add(closing.tidy)
    tidying.run(lambda: closing.is_closed)
    tidying.run(lambda: closing.is_closed)
    assert (1, []) == (closing.calls, caplog.messages)
