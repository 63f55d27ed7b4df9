"""All that decides about requests, combined at random, as in a real Envoy: a slice of what `make conformance` does."""

from differential.combinations import run_combinations
from differential.command import new_seed


def test_meshlib_decides_as_envoy_does_where_everything_meets(tmp_path, record_property):
    """The report says which cases these are: `python -m differential --layer combinations --seed`."""
    seed = new_seed()
    report = run_combinations(seed, 40, tmp_path)
    print(report)
    record_property("report", str(report))
    assert 0 == report.disagreeing, "\n".join([str(report), *report.disagreements])
    # A run that never gets somewhere says nothing about that place.
    places = ("exact", "by chance", "copies", "several hosts", "2 attempts", "200", "UH", "URX")
    assert [] == [name for name in places if not report.met[name]]
