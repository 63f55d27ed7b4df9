"""Tests against control planes and clients written in Go. `make peers` builds those and runs this folder; the gate does not."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from foreign.control_plane import ControlPlane
from foreign.mesh import FORMS, Client
from foreign.programs import VARIABLE
from peers.upstreams import GrpcUpstream, HttpUpstream

collect_ignore_glob = [] if os.environ.get(VARIABLE) else ["test_*.py"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(params=["snapshot", "linear"])
def server(request: pytest.FixtureRequest, tmp_path: Path, stack: ExitStack) -> ControlPlane:
    return stack.enter_context(ControlPlane(tmp_path, "-cache", request.param))


@pytest.fixture(params=FORMS)
def connect(request: pytest.FixtureRequest, stack: ExitStack) -> Callable[..., Client]:
    return lambda server, *features, **more: Client(stack, server, *FORMS[request.param], *features, **more)


@pytest.fixture
def upstreams(stack: ExitStack) -> dict[str, int]:
    """Ports of two HTTP servers and a gRPC server, by the version that they answer with."""
    http = {version: stack.enter_context(HttpUpstream(version)).port for version in ("v1", "v2")}
    return {**http, "grpc": stack.enter_context(GrpcUpstream("grpc")).port}
