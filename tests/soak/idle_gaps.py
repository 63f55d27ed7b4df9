"""Requests with pauses about as long as servers keep idle connections: no caller may notice.

`PYTHONPATH=tests/conformance python tests/soak/idle_gaps.py --requests 10000` (that is `make idle-gaps`) starts uvicorn, hypercorn, granian and gunicorn
(with workers of threads and of uvicorn), each with 5 s for idle connections, and lets many clients call them through the
mesh, each with pauses of its own around those 5 s. A third of them keep connections for as long as the server lets them, so
that the two really do meet: then a request finds its connection dying under it, and goes again on a fresh one.
"""

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from peers.ports import free_port

from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.testing import mesh_source, service

KEEP_S = 5.0
APPLICATION = """
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        return await send({"type": "lifespan.shutdown.complete"})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

def wsgi(environ, start_response):
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]
"""


@dataclass(frozen=True)
class Server:
    """How to start one. `{port}` and `{fd}` are filled in."""

    name: str
    arguments: Sequence[str]


SERVERS = (
    Server("uvicorn", ("-m", "uvicorn", "application:asgi", "--port", "{port}", "--timeout-keep-alive", "5", "--log-level", "error")),
    Server("hypercorn", ("-m", "hypercorn", "application:asgi", "--bind", "127.0.0.1:{port}", "--keep-alive", "5", "--log-level", "error")),
    Server(
        "granian",
        ("-m", "granian", "application:asgi", "--interface", "asgi", "--port", "{port}", "--http", "1", "--log-level", "error"),
    ),
    Server(
        "gunicorn threads",
        ("-m", "gunicorn", "application:wsgi", "-b", "127.0.0.1:{port}", "-k", "gthread", "--threads", "8", "--keep-alive", "5", "--log-level", "error"),
    ),
    # Deprecated by uvicorn in favour of a package with the same code, and what most deployments still run.
    Server(
        "gunicorn uvicorn",
        ("-W", "ignore::DeprecationWarning", "-m", "gunicorn", "application:asgi", "-b", "127.0.0.1:{port}", "-k", "uvicorn.workers.UvicornWorker", "--keep-alive", "5", "--log-level", "error"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """Attributes:
    requests: Made, per server.
    connections: Made anew, over all servers.
    errors: What callers saw.
    """

    requests: Counter[str]
    connections: int
    errors: list[str]


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[dict[str, str]]:
    """Start servers; gives the address of each."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "application.py").write_text(APPLICATION)
        found: dict[str, str] = {}
        for server in servers:
            port = free_port()
            command = [sys.executable, *(part.format(port=port) for part in server.arguments)]
            environment = {**os.environ, "PYTHONPATH": str(folder)}
            child = stack.enter_context(
                subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
                )
            )
            stack.callback(_stop, child)
            found[server.name] = f"127.0.0.1:{port}"
        for name, address in found.items():
            _wait(name, address)
        yield found


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _wait(name: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"{name} does not listen at {address}")


async def call(addresses: dict[str, str], *, lanes: int, rounds: int, seed: int) -> Report:
    """Let `lanes` clients per server make `rounds` requests each after their first."""
    requests: Counter[str] = Counter()
    connections = 0
    errors: list[str] = []

    def connected(name: str, info: object) -> None:
        nonlocal connections
        connections += name == "connection.connect_tcp.complete"

    async def trace(name: str, info: object) -> None:
        connected(name, info)

    async def lane(name: str, address: str, number: int) -> None:
        rng = random.Random(seed * 100_003 + number)
        mesh = mesh_source(service("checkout", address), rng=rng)
        # A third never gives a connection up by itself; POST, which is never sent twice in doubt, does it in time.
        keeps = number % 3 == 0
        method = "GET" if keeps or number % 3 == 1 else "POST"
        limits = httpx.Limits(max_connections=10, keepalive_expiry=None) if keeps else None
        transport = AsyncMeshTransport(mesh) if limits is None else AsyncMeshTransport(mesh, limits=limits)
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            await asyncio.sleep(rng.random())
            for turn in range(rounds + 1):
                if turn:
                    # Most of them within a few milliseconds of the server's own time.
                    await asyncio.sleep(KEEP_S + rng.choice([0.0, rng.gauss(0, 0.004), rng.uniform(-0.3, 0.3)]))
                requests[name] += 1
                try:
                    response = await client.request(method, "http://checkout/", extensions={"trace": trace})
                    if response.status_code != 200 or response.content != b"ok":
                        errors.append(f"{name}, {method}: {response.status_code}")
                except httpx.HTTPError as error:
                    errors.append(f"{name}, {method}, keeps={keeps}: {error!r}")

    async with asyncio.TaskGroup() as group:
        for name, address in addresses.items():
            for number in range(lanes):
                group.create_task(lane(name, address, number))
    return Report(requests, connections, errors)


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests with pauses as long as servers keep connections.")
    parser.add_argument("--requests", type=int, default=10_000, help="over all servers")
    parser.add_argument("--rounds", type=int, default=19, help="pauses of each client")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    lanes = max(1, round(options.requests / len(SERVERS) / (options.rounds + 1)))
    print(f"seed {options.seed}: {lanes} clients for each of {len(SERVERS)} servers, {options.rounds} pauses each")
    with running(SERVERS) as addresses:
        report = asyncio.run(call(addresses, lanes=lanes, rounds=options.rounds, seed=options.seed))
    print(dict(report.requests), f"{report.connections} connections, {len(report.errors)} errors")
    for error in report.errors[:20]:
        print(error)
    sys.exit(bool(report.errors))


if __name__ == "__main__":
    main()
