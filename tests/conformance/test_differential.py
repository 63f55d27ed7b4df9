"""Random routes and requests, decided alike by meshlib and a real Envoy: a slice of what `make conformance` does."""

import json

import pytest
from differential import subject
from differential.envoy_side import EnvoySide
from differential.run import run

CONFIGURATIONS, REQUESTS = 150, 10


@pytest.mark.timeout(120)
def test_meshlib_decides_as_envoy_does(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    with EnvoySide(tmp_path) as side:
        report = run(side, seed=1, configurations=CONFIGURATIONS, requests=REQUESTS)
    record_property("report", str(report))
    assert 0 == report.disagreeing, "\n".join([str(report), *report.disagreements])
    # A run that never gets somewhere says nothing about that place.
    met = ("forwarded", "route_not_found", "direct_response", "cluster_not_found", "fault_filter_abort")
    assert {} == {details: report.outcomes[details] for details in met if report.outcomes[details] < 20}
    assert report.refused


def test_a_fault_is_found_and_shrunk(tmp_path, monkeypatch):
    """A meshlib that forgets what a route adds to the request disagrees, and the report shows little more than that."""
    decide = subject.decide

    def forgetful(configuration, requests):
        smaller = json.loads(json.dumps(configuration))
        for host in smaller.get("virtual_hosts", ()):
            for route in host.get("routes", ()):
                route.pop("request_headers_to_add", None)
        return decide(smaller, requests)

    monkeypatch.setattr(subject, "decide", forgetful)
    with EnvoySide(tmp_path) as side:
        report = run(side, seed=1, configurations=30, requests=5)
    assert report.disagreeing
    told = json.loads(report.disagreements[0])
    (host,) = told["configuration"]["virtual_hosts"]
    (route,) = host["routes"]
    assert {"match", "route", "request_headers_to_add"} == set(route)
