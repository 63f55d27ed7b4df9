"""Requests that name their hosts go where a real Envoy sends them: a slice of `make conformance`."""

from differential import hosts, named


def test_named_hosts_are_taken_as_envoy_takes_them(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = hosts.run(seed=5, clusters=100, requests=6, folder=tmp_path, kind=named.NamedGenerator)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    assert report.retried > 100
    assert report.without_host > 20
