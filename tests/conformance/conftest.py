"""Fixtures of the conformance tests: the same resources for three clients, two of which we did not write.

They need a real Envoy: `make envoy` installs it, or `ENVOY_BIN` names one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from peers.world import World

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples" / "canary"
# The peers hold no certificates in most tests, so the example is served as it is but for the rule that demands them.
NEEDS_CERTIFICATES = "peer-authentication.yaml"


@pytest.fixture(scope="session")
def example() -> dict[str, str]:
    """The documents of the canary example, without the rule that demands mutual TLS."""
    return {path.name: path.read_text() for path in EXAMPLE.glob("*.yaml") if path.name != NEEDS_CERTIFICATES}


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Return a function that starts a world over documents; clients are started by the test."""
    with ExitStack() as stack:

        def make(documents: Mapping[str, str], *, seed: int = 1, has_ca: bool = False) -> World:
            return stack.enter_context(World(tmp_path, documents, seed=seed, has_ca=has_ca))

        yield make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder, so that `-m "not envoy"` leaves them out."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.envoy)
