"""Processes with grpc-go's own xDS client in them: one that calls, and a server that it governs."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.processes import Child, poll

from foreign.programs import program

ECHO = "/peers.Echo/Call"


def _environment(bootstrap: Path) -> dict[str, str]:
    return {**os.environ, "GRPC_XDS_BOOTSTRAP": str(bootstrap)}


class GoClient(Child):
    """grpc-go's `xds:///`, remote-controlled."""

    def __init__(self, name: str, bootstrap: Path, folder: Path) -> None:
        pipe = subprocess.PIPE
        super().__init__(
            name, [program("grpcclient")], folder, environment=_environment(bootstrap), stdin=pipe, stdout=pipe
        )

    def _ask(self, op: str, **options: Any) -> dict[str, Any]:
        self.check_alive()
        self.stdin.write(json.dumps({"op": op, **options}) + "\n")
        self.stdin.flush()
        line = self.stdout.readline()
        assert line, f"{self.name} ended:\n{self.tail()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def call(self, service: str, metadata: Sequence[tuple[str, str]] = (), *, method: str = ECHO) -> tuple[str, str]:
        """Make a call; returns the code's name as Go writes it, and the version that answered or the error's text."""
        answer = self._ask("call", target=f"xds:///{service}", method=method, metadata=list(metadata))
        code, text = answer["code"], answer["text"]
        return code, json.loads(text)["version"] if code == "OK" else text

    def open(self, targets: Sequence[str]) -> None:
        """Begin to resolve targets and to connect, without waiting for any."""
        assert "OK" == self._ask("open", targets=list(targets))["code"]

    def many(self, count: int, service: str, metadata: Sequence[tuple[str, str]] = ()) -> Mapping[str, int]:
        """Make calls in a row and return how many each version answered; none may fail."""
        tally = self._ask("many", count=count, target=f"xds:///{service}", method=ECHO, metadata=list(metadata))
        assert [] == tally["failures"]
        versions: dict[str, int] = tally["versions"]
        return versions


class GoServer(Child):
    """A gRPC server of grpc-go that serves when its listener says so.

    Attributes:
        port: Of 127.0.0.1, chosen by the test, for listeners are named by it.
    """

    def __init__(self, version: str, bootstrap: Path, port: int, folder: Path) -> None:
        self.port = port
        command = [program("grpcserver"), "-version", version, "-listen", f"127.0.0.1:{port}"]
        self._modes = (folder / f"{version}.modes").open("w+")
        super().__init__(
            version,
            command,
            folder,
            environment=_environment(bootstrap),
            stdin=subprocess.PIPE,
            stdout=self._modes.fileno(),
        )

    def modes(self) -> list[dict[str, str]]:
        """Return the changes of its mode so far: `mode` and `error`."""
        return [json.loads(line) for line in (Path(self._modes.name)).read_text().splitlines()]

    def wait_mode(self, mode: str) -> dict[str, str]:
        """Wait until this is its mode."""
        return poll(
            lambda: next((one for one in self.modes()[-1:] if one["mode"] == mode), {}),
            f"{self.name} to be {mode} {self.modes()}",
            timeout_s=40,
        )

    def stop(self) -> None:
        super().stop()
        self._modes.close()
