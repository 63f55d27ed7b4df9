"""Ring hash and Maglev send each request to the host that a real Envoy chooses: a slice of `make conformance`."""

from differential import hosts


def test_meshlib_picks_the_hosts_that_envoy_does(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = hosts.run(seed=1, clusters=60, requests=10, folder=tmp_path)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    # A run that never gets somewhere says nothing about that place.
    assert report.retried > 100
    assert report.without_host > 20
