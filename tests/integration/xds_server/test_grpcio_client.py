"""grpcio's own xDS client calls a gRPC server through the resources that the management server sends."""

import asyncio
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from xds_server.addresses import Address
from xds_server.app import App, Config

# GRPC_XDS_BOOTSTRAP is read once per process, so the client is one of its own: it reads a line, makes that many calls.
CLIENT = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary("/test.Echo/Call")
for line in sys.stdin:
    answers = [call(b"hi", timeout=40, wait_for_ready=True).decode() for _ in range(int(line))]
    print(" ".join(answers), flush=True)
"""

RULES = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo}}
spec:
  host: echo
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo}}
spec:
  hosts: [echo]
  http: [{{route: [{{destination: {{host: echo, subset: {subset}}}}}]}}]
"""


@pytest.fixture
def backends():
    """Start two gRPC servers that answer with their version."""
    servers = []

    def start(version: str) -> int:
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(lambda request, context: version.encode())
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Call": handler}),))
        servers.append(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return port

    yield {version: start(version) for version in ("v1", "v2")}
    for server in servers:
        server.stop(None).wait()


async def test_calls_follow_the_route_and_its_change(backends, tmp_path: Path):
    rules = tmp_path / "echo.yaml"
    rules.write_text(RULES.format(subset="v1"))
    anywhere = Address("127.0.0.1", 0)
    app = App(Config(paths=(str(rules),), listen=anywhere, admin=anywhere))
    await app.start()
    try:
        async with httpx.AsyncClient(trust_env=False) as http:
            for version, port in backends.items():
                body = {
                    "service": "echo",
                    "address": "127.0.0.1",
                    "port": port,
                    "protocol": "grpc",
                    "labels": {"version": version},
                    "ttl_s": 60,
                }
                answer = await http.put(f"http://{app.admin}/v1/registrations/echo-{version}", json=body)
                assert 200 == answer.status_code, answer.text
        bootstrap = {
            "xds_servers": [
                {"server_uri": str(app.listen), "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
            ],
            "node": {"id": "grpcio-1"},
        }
        (tmp_path / "bootstrap.json").write_text(json.dumps(bootstrap))
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP": str(tmp_path / "bootstrap.json")}
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CLIENT,
            "xds:///echo",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

        async def calls(count: int) -> list[str]:
            client.stdin.write(f"{count}\n".encode())
            return (await asyncio.wait_for(client.stdout.readline(), 60)).decode().split()

        try:
            assert ["v1"] * 5 == await calls(5)
            rules.write_text(RULES.format(subset="v2"))
            while await calls(1) != ["v2"]:
                pass
            assert ["v2"] * 5 == await calls(5)
        finally:
            client.stdin.close()
            await asyncio.wait_for(client.wait(), 60)
        assert {} == app.statistics.rejections
    finally:
        await app.stop(drain_s=0.0)
