"""Health checks make of a scripted service what a real Envoy makes of it: a slice of `make conformance`."""

from differential import checks


def test_checks_tell_what_envoy_does(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = checks.run(seed=1, clusters=12, steps=25, folder=tmp_path)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    # A run that never gets somewhere says nothing about that place.
    assert report.ejections > 15
    assert report.degraded > 3
    assert report.timeouts > 3
