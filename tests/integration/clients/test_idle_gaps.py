"""A slice of `make idle-gaps`: pauses as long as real servers keep idle connections, and no caller notices."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def idle_gaps(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("idle_gaps", Path(__file__).parents[2] / "soak" / "idle_gaps.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "idle_gaps", module)  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
async def test_pauses_as_long_as_servers_keep_connections(idle_gaps: Any) -> None:
    with idle_gaps.running(idle_gaps.SERVERS) as addresses:
        report = await idle_gaps.call(addresses, lanes=9, rounds=1, seed=1)
    assert not report.errors
    assert dict.fromkeys(addresses, 18) == dict(report.requests)
    # Two thirds give their connection up in time; of the others most find it closed.
    assert report.connections > 9 * len(addresses) * (1 + 2 / 3) - 1
