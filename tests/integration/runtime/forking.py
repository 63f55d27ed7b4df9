"""A process that has a mesh and forks; the servers are in the test's. Run as `forking.py updates|reports ADDRESS`.

No gRPC server runs in a process that forks: one fork in a hundred would make a child that hangs or aborts in gRPC.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from meshlib import Mesh

sys.path.insert(0, str(Path(__file__).parents[2] / "conformance"))
from peers.endpoints import ports


def eventually(look: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def fork(work: Callable[[], None]) -> int:
    """Fork; returns the process in which `work` is done, and which has ended with 0 if that went well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def updates(mesh: Mesh) -> int:
    """The child says what it knows at once; both hear of what comes then."""

    def hear() -> None:
        print("known" if mesh.target("checkout") is not None else "empty", flush=True)
        eventually(lambda: ports(mesh) == [8])

    child = fork(hear)
    eventually(lambda: ports(mesh) == [8])
    return child


def reports(mesh: Mesh) -> int:
    """Both hear how loaded the endpoints are; the child ends when it is sent a line, and the parent with the next."""

    def is_reported() -> bool:
        states = mesh.view.clusters["checkout"].states  # type: ignore[union-attr]
        return all(state.reported is not None for state in states.values())

    def hear() -> None:
        eventually(is_reported)
        sys.stdin.readline()

    eventually(is_reported)
    return fork(hear)


def main() -> None:
    what, address = sys.argv[1:]
    with Mesh.connect(address, node_id="orders-1", state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=60)
        child = updates(mesh) if what == "updates" else reports(mesh)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print("over", flush=True)
        if what == "reports":
            sys.stdin.readline()
    sys.exit(code)


if __name__ == "__main__":
    main()
