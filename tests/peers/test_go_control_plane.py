"""A mesh against the real go-control-plane, over every form of stream."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from foreign import control_plane as xds
from foreign.control_plane import ControlPlane
from peers.upstreams import GrpcUpstream, HttpUpstream

from meshlib import Mesh

FORMS = {
    "sotw": (),
    "delta": ("meshlib.delta",),
    "sotw separate": ("meshlib.separate_streams",),
    "delta separate": ("meshlib.delta", "meshlib.separate_streams"),
}
NODE = {"id": "meshlib-1", "cluster": "peers", "locality": {"region": "here"}}


class Client:
    """A mesh and what tests ask with it."""

    def __init__(self, stack: ExitStack, server: ControlPlane, *features: str) -> None:
        bootstrap = xds.bootstrap(server.listen, NODE, *features)
        self.mesh = stack.enter_context(Mesh(bootstrap, state_dir="", first_use_timeout_s=10))
        self.http = stack.enter_context(
            httpx.Client(transport=self.mesh.httpx_transport(), trust_env=False, timeout=20)
        )

    def get(self, url: str) -> str:
        """Return the version that answered a request."""
        answer = self.http.get(url)
        answer.raise_for_status()
        return str(answer.json()["version"])

    def call(self, service: str) -> str:
        """Return the version that answered a gRPC call."""
        channel = self.mesh.channel(f"xds:///{service}")
        function = channel.unary_unary("/peers.Echo/Call")
        return str(httpx.Response(200, content=function(b"", timeout=20)).json()["version"])

    def answers(self, url: str, count: int = 6) -> set[str]:
        return {self.get(url) for _ in range(count)}


@pytest.fixture(params=["snapshot", "linear"])
def server(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> ControlPlane:
    return stack.enter_context(ControlPlane(tmp_path, "-cache", request.param))


@pytest.fixture(params=FORMS)
def connect(request: pytest.FixtureRequest, stack: ExitStack) -> Callable[[ControlPlane], Client]:
    return lambda server: Client(stack, server, *FORMS[request.param])


Connect = Callable[[ControlPlane], Client]


@pytest.fixture
def upstreams(stack: ExitStack) -> dict[str, int]:
    """Ports of two HTTP servers and a gRPC server, by the version that they answer with."""
    http = {version: stack.enter_context(HttpUpstream(version)).port for version in ("v1", "v2")}
    return {**http, "grpc": stack.enter_context(GrpcUpstream("grpc")).port}


def test_services_are_found_and_called(server: ControlPlane, connect: Connect, upstreams: dict[str, int]) -> None:
    server.put(*xds.service("checkout", upstreams["v1"]), *xds.service("billing", upstreams["grpc"]))
    client = connect(server)
    assert "v1" == client.get("http://checkout/orders")
    assert "grpc" == client.call("billing")
    server.wait_acknowledged()
    assert [] == server.refusals()
    assert {"ACKED"} == {resource.state for resource in client.mesh.dump()}
