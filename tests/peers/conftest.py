"""Tests against control planes and clients written in Go. `make peers` builds those and runs this folder; the gate does not."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from foreign.programs import VARIABLE

collect_ignore_glob = [] if os.environ.get(VARIABLE) else ["test_*.py"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left when the test ends."""
    with ExitStack() as stack:
        yield stack
