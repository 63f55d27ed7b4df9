"""Outlier detection, health checks, health by EDS and panic together: a slice of `make conformance`."""

from differential import ejections


def test_hosts_become_what_they_become_in_envoy(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = ejections.run(seed=4, clusters=8, steps=40, folder=tmp_path)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    # A run that never gets somewhere says nothing about that place.
    assert report.ejections > 15
    assert report.unejected > 0
    assert report.kept > 5
    assert report.out > 30
