"""gRPC's asyncio side in a forked child: `preload` in the parent, event loops in the workers.

In a process of its own: grpcio cannot use asyncio in a child whose parent has used it before. The server that is called
has another one: one fork in a hundred under a running gRPC server makes a child that hangs in gRPC.
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

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_sync import MeshChannel

UNARY = "/test.Service/Unary"


def test_aio_client_and_server_in_a_child() -> None:
    """The parent has made calls and keeps its channel; three children run event loops, and the parent goes on."""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, __file__], cwd=root, capture_output=True, text=True, timeout=100)
    assert 0 == done.returncode, done.stderr


def find_helpers() -> None:
    """Have what is beside this file, and what pytest's `pythonpath` has."""
    here = Path(__file__).parent
    sys.path[:0] = [str(here), str(here.parents[1] / "conformance")]


def main() -> None:
    """What the test runs."""
    find_helpers()
    from conftest import Mesh  # type: ignore[import-not-found]  # beside this file

    server = subprocess.Popen(
        [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None and server.stdout is not None
    mesh, port = Mesh(), int(server.stdout.readline())
    mesh.serve(f"127.0.0.1:{port}")
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
    server.stdin.close()
    server.wait(20)


def serve() -> None:
    """The server, until nobody holds its input."""
    find_helpers()
    from conftest import Server

    one = Server()
    print(one.port, flush=True)
    sys.stdin.read()
    one.stop()


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
    serve() if sys.argv[1:] == ["serve"] else main()
