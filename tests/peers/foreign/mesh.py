"""A mesh under test, over each form of stream."""

from contextlib import ExitStack
from typing import Any

import httpx

from foreign import control_plane as xds
from foreign.control_plane import ControlPlane
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

    def __init__(self, stack: ExitStack, server: ControlPlane, *features: str, **more: Any) -> None:
        """
        Args:
            more: Of the bootstrap.
        """
        bootstrap = {**xds.bootstrap(server.listen, NODE, *features), **more}
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

    def refusal(self, url: str) -> str:
        """Return why a request fails; empty: it does not."""
        try:
            self.get(url)
        except httpx.HTTPError as error:
            return str(error)
        return ""

    def answers(self, url: str, count: int = 6) -> set[str]:
        return {self.get(url) for _ in range(count)}
