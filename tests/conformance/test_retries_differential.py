"""Retries, timeouts and hedging over scripted upstreams, as a real Envoy: a slice of what `make conformance` does."""

from differential.command import new_seed
from differential.retries import run


def test_meshlib_retries_as_envoy_does(tmp_path, record_property):
    """The report says which cases these are: `python -m differential.retries --seed`."""
    seed = new_seed()
    report = run(seed, 180, tmp_path, has_grpc=False)  # those are for `make conformance`
    print(report)
    record_property("report", str(report))
    assert 0 == report.disagreeing, "\n".join([str(report), *report.disagreements])
    # A run that never gets somewhere says nothing about that place.
    assert [] == [name for name in ("1 attempts", "2 attempts", "503", "URX") if not report.met[name]]
