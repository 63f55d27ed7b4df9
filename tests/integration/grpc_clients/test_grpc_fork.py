"""gRPC in forked children: event loops in the workers of a `preload`, and forks while other threads of the parent call.

In processes of their own: grpcio cannot use asyncio in a child whose parent has used it before, and forks want few threads.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from server_apart import ServerApart, find_helpers

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_dial import SyncDialler
from meshlib.clients.grpc_sync import MeshChannel

UNARY = "/test.Service/Unary"
FORKS = 20


def test_aio_client_and_server_in_a_child() -> None:
    """The parent has made calls and keeps its channel; three children run event loops, and the parent goes on."""
    _run("aio")


def test_children_of_a_parent_whose_other_threads_call() -> None:
    """gRPC skips its handlers when a fork finds another thread in it: one child in six then got no call through."""
    assert "skipping fork() handlers" not in _run("busy").stderr


def _run(what: str) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, __file__, what], cwd=root, capture_output=True, text=True, timeout=100)
    assert 0 == done.returncode, done.stderr
    return done


def busy() -> None:
    """Fork while a thread makes one call after the other, which all must come through."""
    find_helpers()
    from conftest import Mesh  # type: ignore[import-not-found]  # beside this file

    SyncDialler.fork_patience_s = 20.0  # on a busy machine a call may take longer than a fork waits
    server = ServerApart()
    mesh, answer = Mesh(), b"%d x" % server.port
    mesh.serve(server.address)
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        is_over = threading.Event()
        failed: list[BaseException] = []

        def call() -> None:
            while not is_over.is_set() and not failed:
                try:
                    assert answer == unary(b"x", timeout=20)
                except BaseException as error:
                    failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            for _ in range(FORKS):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        code = 0 if unary(b"x", timeout=20) == answer else 2
                    finally:
                        os._exit(code)
                assert 0 == _exit_code(pid)
        finally:
            is_over.set()
            caller.join()
        assert [] == failed
    server.stop()


def main() -> None:
    """Fork, and use asyncio in the children."""
    find_helpers()
    from conftest import Mesh  # type: ignore[import-not-found]  # beside this file

    server = ServerApart()
    mesh, port = Mesh(), server.port
    mesh.serve(server.address)
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        expected = [b"%d a" % port, b"%d b!" % port]
        for _ in range(3):
            assert b"%d x" % port == unary(b"x", timeout=20)
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = 0 if asyncio.run(_serve_and_call(mesh)) == expected else 2
                finally:
                    os._exit(code)
            assert b"%d x" % port == unary(b"x", timeout=20)
            assert 0 == _exit_code(pid)
    server.stop()


async def _serve_and_call(mesh: Any) -> list[bytes]:
    """Call the parent's server and one of our own, which calls the parent's."""
    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:

        async def unary(request: bytes, context: Any) -> bytes:
            response: bytes = await channel.unary_unary(UNARY)(request + b"!", timeout=20)
            return response

        server = grpc.aio.server()
        handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as own:
            found = [await channel.unary_unary(UNARY)(b"a", timeout=20), await own.unary_unary(UNARY)(b"b", timeout=20)]
        await server.stop(0)
        return found


def _exit_code(pid: int) -> int:
    give_up = time.monotonic() + 40
    while time.monotonic() < give_up:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


if __name__ == "__main__":
    {"aio": main, "busy": busy}[sys.argv[1]]()
