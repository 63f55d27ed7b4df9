"""How long a lease is held for those who follow."""

from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from meshlib.integrations.gunicorn import MeshWorker
from meshlib.servers.announce import Announcement
from meshlib.servers.crew import Crew


class Registration:
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def release(self) -> None:
        self.asked.append("release")

    def hold(self, ttl_s: float) -> None:
        self.asked.append(ttl_s)

    def withdraw(self) -> None:
        self.asked.append("withdraw")


@pytest.mark.parametrize(
    ("timeout", "environment", "expected"),
    [(30, {}, 45.0), (120, {"MESHLIB_START_TIMEOUT_S": "5"}, 125.0), (0, {}, 45.0)],
)
def test_a_lease_is_held_for_as_long_as_gunicorn_lets_a_worker_load(
    monkeypatch: pytest.MonkeyPatch, timeout: int, environment: dict[str, str], expected: float
) -> None:
    """Workers that loaded for longer than 15 s, as on a busy machine, found their instance gone from the mesh."""
    for name, value in {"MESHLIB_SERVICE": "site", **environment}.items():
        monkeypatch.setenv(name, value)
    crew = Crew()
    monkeypatch.setattr(MeshWorker, "_crew", crew)
    config = Config()
    config.set("timeout", timeout)
    old, new = (MeshWorker(age, 1, [], None, 15, config, None) for age in (0, 1))
    registration: Any = Registration()
    for worker in (old, new):
        worker.tmp.close()
    crew.board(old._berth, renews=True)
    mesh: Any = SimpleNamespace(has_inbound=False)
    old._announcement = Announcement(mesh, "127.0.0.1:1", None, registration)
    assert not old._leave()
    assert ["release", expected] == registration.asked
