"""What the acts play on: the running world, its client processes, the board, and what several acts do with them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshlib.cli.demo.board import Board
from meshlib.cli.demo.processes import ClientProcess, DemoError, World
from meshlib.mesh import Mesh
from meshlib.model.secret import TlsCertificate

__all__ = ["CHECKOUT", "GRPC", "USERS", "Stage", "split_of"]

CHECKOUT = "http://checkout.example.com/orders"
USERS = "http://user-service/users/7"
GRPC = "xds:///my-service"


@dataclass
class Stage:
    """Attributes:
    calls: Calls of each client kind in the statistical acts.
    seconds: How long the loads of the fault acts run at least.
    """

    world: World
    board: Board
    gateway: ClientProcess
    calls: int
    seconds: float
    clients: dict[str, ClientProcess] = field(default_factory=dict)

    def client(self, account: str) -> ClientProcess:
        """Return the client process of an identity, started on first use."""
        if account not in self.clients:
            client = self.world.start_client(f"client-{account}", account, lambda event: None)
            client.wait_ready()
            self.clients[account] = client
        return self.clients[account]

    def rogue_material(self) -> tuple[Path, Path]:
        """Return certificate and key files of somebody else: valid, issued by the mesh's CA, for `stranger`."""
        with Mesh(self.world.bootstrap("rogue", "stranger"), state_dir="") as mesh:
            mesh.wait_ready("checkout", timeout_s=15)
            secret = mesh.view.secrets["default"].value
        if not isinstance(secret, TlsCertificate):
            raise DemoError("the server sent no certificate for `stranger`")
        return self.world.private_file("rogue.pem", secret.chain_pem), self.world.private_file(
            "rogue.key", secret.key_pem
        )

    @contextmanager
    def load(self, *loads: tuple[str, str, str]) -> Iterator[Callable[[], list[str]]]:
        """Keep calling while the block runs. Yields a function that returns the errors so far.

        Args:
            loads: (name, kind, url).
        """
        for name, kind, url in loads:
            self.gateway.load(name, kind=kind, url=url, concurrency=8)

        def errors() -> list[str]:
            return [error for name, _, _ in loads for error in self.board.facts(name).errors]

        try:
            yield errors
        finally:
            for name, _, _ in loads:
                self.gateway.stop(name)

    def check_no_failures(self, names: list[str]) -> None:
        facts = [self.board.facts(name) for name in names]
        failed = sum(fact.failed for fact in facts)
        calls = sum(fact.calls for fact in facts)
        errors = [error for fact in facts for error in fact.errors]
        self.board.check(
            "no call failed", failed == 0 and calls > 0, f"{failed} of {calls:,}" + (f"; {errors[0]}" if errors else "")
        )

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 15.0) -> float | None:
        """Return the seconds until a condition held, or None if it did not in time."""
        start = time.monotonic()
        while not condition():
            if time.monotonic() - start > timeout_s:
                self.board.note(f"waited {timeout_s:.0f} s in vain: {what}")
                return None
            time.sleep(0.02)
        return time.monotonic() - start


def split_of(explanation: dict[str, Any]) -> dict[str, float]:
    """Return the share of each subset in an explanation."""
    return {cluster["name"].split("|")[2]: cluster["share"] for cluster in explanation["clusters"]}
