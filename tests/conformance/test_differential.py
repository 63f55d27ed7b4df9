"""Random routes and requests, decided alike by meshlib and a real Envoy: a slice of what `make conformance` does."""

import json

import pytest
from differential import subject
from differential.command import new_seed
from differential.envoy_side import EnvoySide
from differential.generate import LAYERS
from differential.managers import random_managers
from differential.rejection import resources, routes, run_rejection
from differential.resource_side import ResourceSide
from differential.run import run

CASES = 200
MOST_CASES = 1000
MANAGERS = 8


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    managers = random_managers(new_seed(), MANAGERS)
    with EnvoySide(tmp_path_factory.mktemp("envoy"), managers=managers) as side:
        yield side


@pytest.fixture(scope="module")
def resource_side(tmp_path_factory):
    with ResourceSide(tmp_path_factory.mktemp("resources")) as side:
        yield side


@pytest.fixture
def seed(record_property):
    """It is in the report, and `python -m differential --seed` repeats it."""
    drawn = new_seed()
    record_property("seed", drawn)
    print(f"seed {drawn}")
    return drawn


@pytest.mark.timeout(600)
@pytest.mark.parametrize("layer", LAYERS)
def test_meshlib_decides_as_envoy_does(side, seed, layer, record_property):
    report = run(side, seed, MOST_CASES if layer == "all" else CASES, layer=layer)
    record_property("report", str(report))
    assert 0 == report.disagreeing, "\n".join([str(report), *report.disagreements])
    if layer != "all":
        return
    # A run that never gets somewhere says nothing about that place.
    met = ("forwarded", "route_not_found", "direct_response", "cluster_not_found", "fault_filter_abort")
    assert {} == {details: report.outcomes[details] for details in met if not report.outcomes[details]}
    assert report.refused


@pytest.mark.timeout(600)
def test_meshlib_refuses_what_envoy_refuses(side, seed, record_property):
    report = run_rejection(routes(side), seed, CASES)
    record_property("report", str(report))
    assert 0 == report.disagreeing, "\n".join([str(report), *report.disagreements])
    assert report.outcomes["both take it"] > CASES / 10
    assert report.outcomes["both refuse it"] > CASES / 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", range(4), ids=("clusters", "endpoints", "managers", "listeners"))
def test_meshlib_refuses_the_resources_that_envoy_refuses(resource_side, seed, kind, record_property):
    report = run_rejection(resources(resource_side)[kind], seed, CASES)
    record_property("report", str(report))
    assert 0 == report.disagreeing, "\n".join([str(report), *report.disagreements])
    assert report.outcomes["both take it"] > CASES / 10
    assert report.outcomes["both refuse it"] > CASES / 10


@pytest.mark.timeout(600)
def test_a_fault_is_found_and_shrunk(side, monkeypatch):
    """A meshlib that forgets what a route adds to the request disagrees, and the report shows little more than that."""
    decide = subject.decide

    def forgetful(configuration, requests, *managers):
        smaller = json.loads(json.dumps(configuration))
        for host in smaller.get("virtual_hosts", ()):
            for route in host.get("routes", ()):
                route.pop("request_headers_to_add", None)
        return decide(smaller, requests, *managers)

    monkeypatch.setattr(subject, "decide", forgetful)
    report = run(side, seed=1, cases=150, requests=5)
    assert report.disagreeing
    told = json.loads(report.disagreements[0])
    (host,) = told["configuration"]["virtual_hosts"]
    (route,) = host["routes"]
    assert {"match", "route", "request_headers_to_add"} == set(route)
