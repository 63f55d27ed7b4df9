"""`meshctl demo`: a canary across real services, with no proxy, in seven acts that are each asserted."""

import signal
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from meshlib.cli.demo.acts import ACTS
from meshlib.cli.demo.board import Board
from meshlib.cli.demo.processes import DemoError, World
from meshlib.cli.demo.stage import Stage
from meshlib.errors import MeshError

__all__ = ["run_demo"]

NEEDED = ("yaml", "starlette", "uvicorn", "watchfiles", "jwt", "fastapi", "django", "gunicorn")
INSTANCES = (
    # name, script, version, service account; two replicas of checkout v1, so that one can be killed
    ("checkout-v1-a", "checkout", "v1", "checkout"),
    ("checkout-v1-b", "checkout", "v1", "checkout"),
    ("checkout-v2", "checkout", "v2", "checkout"),
    ("my-service-v1", "my_service", "v1", "my-service"),
    ("my-service-v2", "my_service", "v2", "my-service"),
    ("user-service-v1", "user_service", "v1", "user-service"),
    ("user-service-v2", "user_service", "v2", "user-service"),
)


def run_demo(*, fast: bool, plain: bool) -> int:
    """Stage the demo and return the exit code: 0 only if every assertion held.

    Args:
        fast: The same acts with fewer calls, under a minute.
        plain: Plain lines even in a terminal.
    """
    is_terminal = sys.stdout.isatty() and not plain
    console = Console(
        force_terminal=is_terminal, highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else 120
    )
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        console.print(f"meshctl demo needs {', '.join(missing)}: pip install 'meshlib-xds[demo]'", style="red")
        return 2
    board = Board(console)
    start = time.monotonic()
    # Whoever ends the demo ends its processes too: SIGTERM unwinds like Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="meshlib-demo-") as folder, World(Path(folder)) as world:
        try:
            stage = _set(world, board, fast=fast)
            console.print(
                f"staged in {time.monotonic() - start:.1f} s: xds-server, 7 instances of 3 services, a client; no proxy"
            )
            board.show(lambda: _play(stage, board))
        except MeshError as error:
            console.print(f"\nthe demo could not go on: {error}", style="bold red")
            return 1
        except KeyboardInterrupt:
            console.print("\ninterrupted")
            return 130
        if not console.is_terminal:
            console.print(board.table())
    failed = [check for check in board.checks if not check.held]
    seconds = time.monotonic() - start
    if failed:
        console.print(
            f"\n{len(failed)} of {len(board.checks)} assertions did not hold ({seconds:.0f} s):", style="bold red"
        )
        for check in failed:
            console.print(f"  ✗  {check.claim}  [{check.seen}]", markup=False)
        return 1
    console.print(
        f"\nall {len(board.checks)} assertions of the {len(ACTS)} acts held ({seconds:.0f} s)", style="bold green"
    )
    return 0


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _set(world: World, board: Board, *, fast: bool) -> Stage:
    """Start everything and wait until it is there."""
    world.issue_tokens()
    world.start_server()
    for instance in INSTANCES:
        world.start_service(*instance)
    gateway = world.start_client("client-gateway", "gateway", board.on_event)
    world.await_registrations(len(INSTANCES))
    gateway.wait_ready()
    return Stage(world, board, gateway, calls=200 if fast else 1000, seconds=2.0 if fast else 8.0)


def _play(stage: Stage, board: Board) -> None:
    for act in ACTS:
        before = len(board.checks)
        board.begin_act((act.__doc__ or "").strip())
        try:
            act(stage)
        except MeshError as error:
            board.check("the act could be played to its end", False, str(error))
        board.end_act(all(check.held for check in board.checks[before:]))
        if any(not check.held for check in board.checks[before:]) and _is_over(stage):
            raise DemoError("a process that the next acts need has ended")


def _is_over(stage: Stage) -> bool:
    return any(process.poll() is not None for process in stage.world.processes.values())
