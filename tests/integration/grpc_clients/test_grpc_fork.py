"""gRPC's asyncio side in a forked child: `preload` in the parent, event loops in the workers.

In a process of its own: grpcio cannot use asyncio in a child whose parent has used it before.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from server_apart import ServerApart, find_helpers

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_sync import MeshChannel

UNARY = "/test.Service/Unary"


def test_aio_client_and_server_in_a_child() -> None:
    """The parent has made calls and keeps its channel; three children run event loops, and the parent goes on."""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, __file__], cwd=root, capture_output=True, text=True, timeout=100)
    assert 0 == done.returncode, done.stderr


def main() -> None:
    """What the test runs."""
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
    main()
