"""Requests keep to their zone as far as those of a real Envoy do: a slice of `make conformance`."""

from differential import zones


def test_zones_get_the_shares_that_envoy_gives_them(tmp_path, record_property):
    """The seed is fixed, so that a failure is one of the change at hand; `make conformance` draws new ones."""
    report = zones.run(seed=7, worlds=3, clusters=8, requests=250, folder=tmp_path)
    record_property("report", str(report))
    assert [] == report.disagreements, f"{report}: {report.disagreements[0]}"
    assert report.split > 5, "a run that never divides a cluster says nothing"
