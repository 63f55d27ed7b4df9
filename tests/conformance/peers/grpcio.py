"""The handle of a process with gRPC's own xDS client in it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.processes import Child


class GrpcioClient(Child):
    """gRPC C-core's `xds:///`, remote-controlled."""

    def __init__(self, node_id: str, server: str, folder: Path, *, bootstrap: Mapping[str, Any] | None = None) -> None:
        """
        Args:
            bootstrap: None: the shortest one for that server.
        """
        path = folder / f"{node_id}.json"
        creds = [{"type": "insecure"}]
        servers = [{"server_uri": server, "channel_creds": creds, "server_features": ["xds_v3"]}]
        path.write_text(json.dumps(bootstrap or {"xds_servers": servers, "node": {"id": node_id}}))
        program = Path(__file__).with_name("grpcio_program.py")
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP": str(path), "PYTHONUNBUFFERED": "1"}
        pipe = subprocess.PIPE
        super().__init__(
            node_id, [sys.executable, str(program)], folder, environment=environment, stdin=pipe, stdout=pipe
        )

    def _ask(self, op: str, **options: Any) -> dict[str, Any]:
        self.check_alive()
        self.stdin.write(json.dumps({"op": op, **options}) + "\n")
        self.stdin.flush()
        line = self.stdout.readline()
        assert line, f"{self.name} ended:\n{self.tail()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def call(
        self, target: str, method: str, metadata: Sequence[tuple[str, str]] = (), *, timeout_s: float = 30.0
    ) -> tuple[str, str]:
        """Make a call; returns the code's name, and the answer or the error's text."""
        answer = self._ask("call", target=target, method=method, metadata=list(metadata), timeout_s=timeout_s)
        return answer["code"], answer["text"]

    def play(self, calls: Sequence[tuple[str, str, str, float]]) -> list[tuple[str, list[str]]]:
        """Make calls beside each other: targets, and what `grpc_arities.play` takes; returns what that does."""
        return [(code, got) for code, got in self._ask("play", calls=list(calls))["ends"]]

    def open(self, targets: Sequence[str]) -> None:
        """Open channels and begin a call on each, without waiting for any."""
        self._ask("open", targets=list(targets))

    def many(self, count: int, target: str, method: str) -> dict[str, int]:
        """Make calls in a row and return how many each version answered.

        Raises:
            AssertionError: One failed.
        """
        tally = self._ask("many", count=count, target=target, method=method, metadata=[])
        assert [] == tally["failures"]
        versions: dict[str, int] = tally["versions"]
        return versions

    def start_load(self, target: str, method: str) -> None:
        """Begin calling without pause."""
        self._ask("load", target=target, method=method, metadata=[])

    def stop_load(self) -> tuple[dict[str, int], list[str]]:
        """End it; returns the calls that each version answered, and the failures."""
        tally = self._ask("stop")
        return tally["versions"], tally["failures"]
