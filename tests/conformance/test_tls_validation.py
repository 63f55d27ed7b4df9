"""Certificates are accepted and refused as by a real Envoy: a slice of `make conformance`."""

from differential import tls


def test_meshlib_lets_in_whom_envoy_does(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = tls.run(seed=2200, cases=100, folder=tmp_path)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    # A run that never gets somewhere says nothing about that place.
    assert report.accepted > 25
    assert report.refused > 100
    assert report.stricter < 15
