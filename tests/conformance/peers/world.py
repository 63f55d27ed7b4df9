"""One management server and everyone who listens to it: Envoy, gRPC's own client and meshlib, with upstreams behind."""

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc
import httpx

import meshlib
from peers.envoy import Envoy, ads_bootstrap, reserve_port
from peers.grpcio import GrpcioClient
from peers.management import ManagementServer
from peers.processes import poll
from peers.upstreams import LOOPBACK, Answer, GrpcUpstream, HttpUpstream, answer_of

ENVOY, GRPCIO, MESHLIB = "envoy-1", "grpcio-1", "meshlib-1"
GRPC_TIMEOUT_S = 30.0


class World:
    """A mesh on loopback.

    Attributes:
        server: The management server.
        envoy: A real Envoy that listens to it.
        mesh: A mesh that listens to it.
        grpcio: gRPC's own client that listens to it.
    """

    def __init__(self, folder: Path, documents: Mapping[str, str], *, seed: int = 1, has_ca: bool = False) -> None:
        self.folder = folder
        self._documents = documents
        self._seed = seed
        self._has_ca = has_ca
        self._stack = contextlib.ExitStack()
        self._channels: dict[tuple[str, str], Any] = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.server = stack.enter_context(ManagementServer(self.folder, self._documents, has_ca=self._has_ca))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()
        self._stack.close()

    # Building it.

    def http(self, service: str, version: str, **fields: Any) -> HttpUpstream:
        """Start and register an HTTP instance."""
        upstream = self._stack.enter_context(HttpUpstream(version))
        self.register(service, version, upstream.port, protocol="http", **fields)
        return upstream

    def grpc(self, service: str, version: str, **fields: Any) -> GrpcUpstream:
        """Start and register a gRPC instance."""
        upstream = self._stack.enter_context(GrpcUpstream(version))
        self.register(service, version, upstream.port, protocol="grpc", **fields)
        return upstream

    def register(self, service: str, version: str, port: int, **fields: Any) -> None:
        labels = {"version": version}
        self.server.register(f"{service}-{version}-{port}", service=service, port=port, labels=labels, **fields)

    def start_envoy(self) -> None:
        held = self._stack.enter_context(reserve_port())
        listen = f"{LOOPBACK}:{held.getsockname()[1]}"
        bootstrap = ads_bootstrap(self.server.listen, node_id=ENVOY, listen=listen)
        self.envoy = self._stack.enter_context(Envoy("envoy", bootstrap, self.folder))
        self.envoy.listen = listen

    def start_mesh(self) -> None:
        self.mesh = self._stack.enter_context(
            meshlib.Mesh.connect(
                self.server.listen, node_id=MESHLIB, state_dir="", rng=random.Random(self._seed), first_use_timeout_s=40
            )
        )
        self.client = self._stack.enter_context(
            httpx.Client(transport=self.mesh.httpx_transport(), timeout=30, trust_env=False)
        )

    def start_grpcio(self) -> None:
        self.grpcio = self._stack.enter_context(GrpcioClient(GRPCIO, self.server.listen, self.folder))

    def start(self) -> None:
        """Start all three clients, and wait until Envoy listens; the others connect with their first call."""
        self.start_envoy()
        self.start_mesh()
        self.start_grpcio()
        self.envoy.wait_ready()

    # Asking each of them.

    def ask_envoy(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        content: bytes | None = None,
        *,
        authority: str = "",
    ) -> Answer:
        """Send a request through Envoy.

        Args:
            authority: The `Host` header, when it is not the URL's host.
        """
        target = httpx.URL(url)  # which leaves a port 80 out, for meshlib as well
        host, path = target.netloc.decode(), target.raw_path.decode()
        return self.envoy.request(method, path, authority=authority or host, headers=headers, content=content)

    def ask_meshlib(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        content: bytes | None = None,
        *,
        authority: str = "",
    ) -> Answer:
        """Send a request through meshlib's httpx transport.

        A failure that httpx reports as an exception has the status that Envoy would answer: 504 for the route's
        timeout, else 503.
        """
        start = time.monotonic()
        host = [("host", authority)] if authority else []
        try:
            answer = self.client.request(method, url, headers=[*host, *headers], content=content)
        except httpx.TransportError as error:
            flag = getattr(getattr(error, "mesh", None), "flag", "")
            status = 504 if isinstance(error, httpx.TimeoutException) else 503
            return Answer(
                status, body=f"{type(error).__name__}: {error}", elapsed_s=time.monotonic() - start, flag=flag
            )
        took = time.monotonic() - start
        return answer_of(answer.status_code, dict(answer.headers), answer.text, took, answer.extensions["mesh"].flag)

    def call_envoy(self, service: str, method: str, metadata: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
        """Make a gRPC call through Envoy; returns the code's name, and the answer or the error's text."""
        return self._call("envoy", service, method, metadata)

    def call_meshlib(self, service: str, method: str, metadata: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
        """Make a gRPC call through meshlib's channel."""
        return self._call("meshlib", service, method, metadata)

    def call_grpcio(self, service: str, method: str, metadata: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
        """Make a gRPC call with gRPC's own xDS client."""
        return self.grpcio.call(f"xds:///{service}", method, metadata)

    def _call(self, via: str, service: str, method: str, metadata: Sequence[tuple[str, str]]) -> tuple[str, str]:
        channel = self._channels.get((via, service))
        if channel is None:
            channel = self.envoy.channel(service) if via == "envoy" else self.mesh.channel(f"xds:///{service}")
            self._channels[via, service] = channel
        try:
            function: Any = channel.unary_unary(method)
            answer = function(b"", timeout=GRPC_TIMEOUT_S, metadata=tuple(metadata))
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
        return "OK", answer.decode()

    # What must hold of all of them.

    def check_accepted(self, *, after_s: float = 20.0) -> None:
        """Require that nobody refused anything, and that Envoy waits for nothing.

        Args:
            after_s: How long Envoy may go on warming.
        """
        self.server.wait_settled(ENVOY, GRPCIO, MESHLIB)
        assert {} == self.server.rejections()
        assert 0 == self.server.rejection_count()
        self.check_envoy(after_s=after_s)
        status = self.mesh.status()
        assert {} == status.problems
        assert {"ready"} == {target.state for target in status.targets}
        assert {"ACKED"} == {resource.state for resource in self.mesh.dump()}

    def check_envoy(self, *, after_s: float = 20.0) -> None:
        """Require that Envoy refused nothing and waits for nothing."""
        poll(lambda: not self.envoy.warming(), f"Envoy to stop warming {self.envoy.warming()}", timeout_s=after_s)
        assert [] == self.envoy.error_states()
        assert 0 == self.envoy.refused()


def version_of(answer: tuple[str, str]) -> str:
    """Return which version answered a gRPC call, or the code and text of its failure."""
    code, text = answer
    return str(json.loads(text)["version"]) if code == "OK" else f"{code}: {text}"


class Load:
    """Calls without pause on a thread, until the end of the `with` block.

    Attributes:
        versions: How many calls each version answered.
        failures: What the others said.
    """

    def __init__(self, call: Callable[[], tuple[str, str]]) -> None:
        """
        Args:
            call: Returns the version and "", or "" and what went wrong.
        """
        self.versions: Counter[str] = Counter()
        self.failures: list[str] = []
        self._call = call
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while not self._stopping.is_set():
            version, failure = self._call()
            if failure:
                self.failures.append(failure)
            else:
                self.versions[version] += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a call does not end"
