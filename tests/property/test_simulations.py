"""What the page on simulations says, in small: policies against hosts that misbehave, in simulated time."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench" / "simulator"


@pytest.fixture(scope="module")
def scenarios() -> ModuleType:
    """tests/bench is no package of the tests: what runs there is a program."""
    name = "simulator"
    spec = importlib.util.spec_from_file_location(name, BENCH / "__init__.py", submodule_search_locations=[str(BENCH)])
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module("simulator.scenarios")


def test_overload_collapses_without_limits_and_not_with_adaptive_concurrency(scenarios: ModuleType) -> None:
    """At three times the capacity goodput is to be at least 80 % of it."""
    hosts = 2
    capacity = hosts * scenarios.WORKERS / scenarios.SERVICE_S
    runs = {run.name: run for run in scenarios.overload(hosts=hosts, seconds=8.0)}
    assert runs["three retries, no limits"].goodput(3, 7) < 0.1 * capacity
    assert runs["retry budget, adaptive concurrency"].goodput(3, 7) > 0.8 * capacity


def test_a_slow_host_hurts_least_where_latency_counts(scenarios: ModuleType) -> None:
    runs = {run.name: run for run in scenarios.slow_host(seconds=6.0)}
    failed = {name: run.failed(2, 5) for name, run in runs.items()}
    assert failed["round robin"] > 0.05
    assert failed["least request"] == failed["peak EWMA"] == 0.0
    assert runs["peak EWMA"].percentile_ms(99, 2, 5) < runs["least request"].percentile_ms(99, 2, 5) / 2


def test_ejection_ends_what_a_failing_host_attracts(scenarios: ModuleType) -> None:
    runs = {run.name: run.failed(10, 14) for run in scenarios.failing_host(seconds=15.0, load=0.2)}
    assert runs["least request"] > runs["round robin"] > 0.08
    assert runs["least request, ejection"] < 0.02
    assert runs["least request, ejection, retries"] == 0.0


def test_probation_costs_a_host_that_still_fails_one_call_a_return(scenarios: ModuleType) -> None:
    runs = {run.name: run.failed(13, 20) for run in scenarios.failing_host(seconds=21.0, load=0.1)}
    assert 0 < runs["least request, ejection, probation"] < runs["least request, ejection"] / 3
