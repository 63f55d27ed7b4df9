"""Marks of stateful sessions lead where a real Envoy sends them: a slice of `make conformance`."""

from differential import hosts, sessions


def test_marks_lead_to_the_hosts_that_envoy_picks_and_come_back_alike(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = hosts.run(seed=3, clusters=120, requests=6, folder=tmp_path, kind=sessions.SessionGenerator)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    # A run that never gets somewhere says nothing about that place.
    assert report.marked > 100
    assert report.without_host > 50
    assert report.cases - report.marked - report.without_host > 100
