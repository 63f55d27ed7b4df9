"""A server in a process of its own, for tests that fork.

One fork in a hundred under a running gRPC server makes a child that hangs or aborts in gRPC, which has then "skipped fork()
handlers": a process that forks may have gRPC clients, and no server.
"""

import json
import subprocess
import sys
from pathlib import Path

import grpc

__all__ = ["ServerApart", "find_helpers"]


class ServerApart:
    """The server of `conftest.Server`, as a process."""

    def __init__(self, pem: tuple[bytes, bytes, bytes] | None = None) -> None:
        """Start it.

        Args:
            pem: Key, chain and the root of callers, for mutual TLS; None: plaintext.
        """
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([part.decode() for part in pem or ()]) + "\n")
        self._process.stdin.flush()
        self.port = int(self._process.stdout.readline())
        self.address = f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._process.communicate(timeout=60)


def find_helpers() -> None:
    """Have what is beside this file, and what pytest's `pythonpath` has."""
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parents[1] / "conformance")]


def main() -> None:
    """Serve until nobody holds the input."""
    find_helpers()
    from conftest import Server  # type: ignore[import-not-found]  # beside this file

    pem = [part.encode() for part in json.loads(sys.stdin.readline())]
    one = Server(grpc.ssl_server_credentials([(pem[0], pem[1])], pem[2], True) if pem else None)
    print(one.port, flush=True)
    sys.stdin.read()
    one.stop()


if __name__ == "__main__":
    main()
