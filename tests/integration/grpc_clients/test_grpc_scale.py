"""A thousand endpoints in bounded memory and threads; what is not used is closed."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_sync import MeshChannel

UNARY = "/test.Service/Unary"
ENDPOINTS = 1000

SERVER = """
import sys
from concurrent import futures
import grpc

def unary(request, context):
    return request

server = grpc.server(futures.ThreadPoolExecutor(4))
handlers = {"Unary": grpc.unary_unary_rpc_method_handler(unary)}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
port = server.add_insecure_port("127.0.0.1:0")
for number in range(1, int(sys.argv[1])):
    assert server.add_insecure_port(f"127.0.{number // 250 + 1}.{number % 250 + 1}:{port}") == port
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(0).wait(5)
"""


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    """A server in a process of its own, at many addresses."""
    command = [sys.executable, "-c", SERVER, str(ENDPOINTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        others = [f"127.0.{number // 250 + 1}.{number % 250 + 1}:{port}" for number in range(1, ENDPOINTS)]
        yield [f"127.0.0.1:{port}", *others]
        process.communicate()


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _sockets() -> int:
    return sum(1 for one in Path("/proc/self/fd").iterdir() if one.is_symlink() and "socket" in str(one.readlink()))


def test_a_thousand_endpoints(mesh: Any, addresses: list[str], eventually: Any) -> None:
    """Every endpoint is called once; then all but one leave the configuration.

    grpcio alone takes 30 kB and no thread for such a channel.
    """
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        mesh.serve(addresses[0])
        unary(b"x", timeout=20)
        memory, threads, sockets = _resident_mb(), _threads(), _sockets()
        mesh.serve(*addresses)
        for _ in range(ENDPOINTS):
            unary(b"x", timeout=20)
        assert {"channels": ENDPOINTS, "active": 0} == channels_of(mesh.source).sync.statistics()
        assert _resident_mb() - memory < 100
        assert _threads() - threads < 20
        mesh.serve(addresses[0])
        unary(b"x", timeout=20)
        assert {"channels": 1, "active": 0} == channels_of(mesh.source).sync.statistics()
        eventually(lambda: _sockets() - sockets < 20)
