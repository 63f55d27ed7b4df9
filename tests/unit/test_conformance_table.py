"""The table at the end of `make conformance` is read out of what its parts print."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

WHOLE = Path(__file__).resolve().parents[1] / "conformance" / "differential" / "whole.py"


@pytest.fixture(scope="module")
def whole() -> ModuleType:
    spec = importlib.util.spec_from_file_location("whole", WHOLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["whole"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_rows(whole: ModuleType) -> None:
    output = """a disagreement: {"x": 1}
layer matching, seed 7: 10000 cases, 2 disagreements, 135 configurations refused by both; direct_response 5322
layer rejection of clusters, seed 8: 20 cases, 0 disagreements, 0 configurations refused by both; both take it 5
"""
    rows = whole.rows_of("routes", output, 3.0)
    assert [("matching", "7", 10000, 2), ("rejection of clusters", "8", 20, 0)] == [
        (row.layer, row.seed, row.cases, row.disagreements) for row in rows
    ]


def test_rows_of_one_layer_are_added_up(whole: ModuleType) -> None:
    line = "seed 5: 40 accepted and 158 refused by both, 2 refused by meshlib's own rules, 1 disagreements\n"
    (row,) = whole.rows_of("TLS", line + line.replace("seed 5", "seed 105"), 1.0)
    assert ("TLS", "5", 400, 2) == (row.layer, row.seed, row.cases, row.disagreements)
