"""One call against a snapshot, driven by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.call import Call
from meshlib.events import Event
from meshlib.model.request import Headers, RequestHead
from meshlib.model.snapshot import Snapshot
from meshlib.ports import Rng
from meshlib.testing import FakeClock, FakeMesh, FixedRng, mesh_source


class Driver:
    """A mesh, a clock at 1000 s, and calls to the first target of the mesh."""

    def __init__(self, snapshot: Snapshot, rng: Rng | None = None) -> None:
        self.clock = FakeClock()
        self.mesh: FakeMesh = mesh_source(snapshot, clock=self.clock, rng=rng or FixedRng(0.0))
        self.target = self.mesh.wait_target(next(iter(snapshot.targets)))

    @property
    def events(self) -> list[Event]:
        return self.mesh.events

    def call(
        self, method: str = "GET", headers: dict[str, str] | None = None, *, grpc: bool = False, **options: Any
    ) -> Call:
        head = RequestHead(
            "POST" if grpc else method,
            self.target.name,
            "/pkg.Service/Method" if grpc else "/x?y=1",
            Headers.of(headers),
            is_grpc=grpc,
        )
        return Call(self.target, head, rng=self.mesh.rng, now=self.clock(), hook=self.mesh.emit, **options)


@pytest.fixture
def driver() -> Callable[..., Driver]:
    """`driver(snapshot)`: see `Driver`. Chance draws the least of everything unless another `Rng` is given."""
    return Driver
