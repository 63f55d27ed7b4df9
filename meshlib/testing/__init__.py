"""Fakes for tests of services that use meshlib: a clock that is moved by hand, chance with a seed, a mesh whose
configuration is written in the test."""

from meshlib.testing.balancing import lb_endpoints, pick_many
from meshlib.testing.builders import any_path, assignment, cluster, merge, service, split, target
from meshlib.testing.clock import FakeClock, Timer
from meshlib.testing.filters import Filtered, arun_filters, run_filters
from meshlib.testing.rng import FixedRng, SeededRng
from meshlib.testing.source import FakeMesh, mesh_source

__all__ = [
    "FakeClock",
    "FakeMesh",
    "Filtered",
    "FixedRng",
    "SeededRng",
    "Timer",
    "any_path",
    "arun_filters",
    "assignment",
    "cluster",
    "lb_endpoints",
    "merge",
    "mesh_source",
    "pick_many",
    "run_filters",
    "service",
    "split",
    "target",
]
