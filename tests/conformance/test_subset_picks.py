"""Criteria of routes choose the subset that a real Envoy does: a slice of `make conformance`."""

from differential import hosts, subsets


def test_criteria_lead_to_the_hosts_that_envoy_picks(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = hosts.run(seed=3, clusters=120, requests=6, folder=tmp_path, kind=subsets.SubsetGenerator)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    # A run that never gets somewhere says nothing about that place.
    assert report.retried > 100
    assert report.without_host > 50
    assert report.cases - report.without_host > 200
