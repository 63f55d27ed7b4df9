"""Random gRPC services and calls, as gRPC's own client makes them: a slice of what `make conformance` does."""

from differential.command import new_seed
from differential.grpc_calls import run
from differential.grpc_cases import KINDS

SERVICES = 36


def test_meshlib_calls_as_grpc_does(tmp_path, record_property):
    """The seed is in the report, and `python -m differential.grpc_calls --seed` repeats it."""
    seed = new_seed()
    record_property("seed", seed)
    report = run(seed, SERVICES, tmp_path)
    record_property("report", str(report))
    assert 0 == report.disagreeing, "\n".join([str(report), *report.disagreements])
    # A run that never gets somewhere says nothing about that place.
    met = (*KINDS, "OK", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert [] == [name for name in met if not report.met[name]]
    assert [] == report.broken, report
