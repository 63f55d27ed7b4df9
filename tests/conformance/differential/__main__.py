"""The command; its exit code is 0 when the two agree about everything."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from differential import combinations
from differential.command import arguments_of, new_seed
from differential.envoy_side import EnvoySide
from differential.generate import LAYERS
from differential.managers import random_managers
from differential.rejection import resources, routes, run_rejection
from differential.resource_side import ResourceSide
from differential.run import Report, run

REJECTION, RESOURCES, COMBINATIONS = "rejection", "resources", "combinations"
KINDS = ("clusters", "endpoints", "managers", "listeners")
MANAGERS = 24


def main() -> int:
    parser = arguments_of("differential", "meshlib's routing with Envoy's")
    parser.add_argument("--layer", choices=(*LAYERS, REJECTION, RESOURCES, COMBINATIONS, "each"), default="all")
    parser.add_argument("--cases", type=int, default=10_000, help="of each layer")
    parser.add_argument("--requests", type=int, default=10, help="for each configuration")
    parser.add_argument("--kind", choices=KINDS, default=None, help="of resources; default: all")
    arguments = parser.parse_args()
    seed = new_seed() if arguments.seed is None else arguments.seed
    layers = (*LAYERS, REJECTION, RESOURCES) if arguments.layer == "each" else (arguments.layer,)
    disagreeing = 0
    for layer in layers:
        for report in _reports(layer, seed, arguments.cases, arguments.requests, arguments.kind):
            for disagreement in report.disagreements:
                print(disagreement)
            print(report, flush=True)
            disagreeing += report.disagreeing
    return 1 if disagreeing else 0


def _reports(
    layer: str, seed: int, cases: int, requests: int, wanted: str | None
) -> Iterator[Report | combinations.Report]:
    with tempfile.TemporaryDirectory() as folder:
        if layer == COMBINATIONS:
            yield combinations.run_combinations(seed, cases, Path(folder))
            return
        if layer == RESOURCES:
            with ResourceSide(Path(folder)) as side:
                for kind in resources(side):
                    if wanted is None or kind.layer.endswith(wanted):
                        yield run_rejection(kind, seed, cases)
            return
        managers = random_managers(seed, MANAGERS)
        with EnvoySide(Path(folder), managers=managers) as routing:
            if layer == REJECTION:
                yield run_rejection(routes(routing), seed, cases)
            else:
                yield run(routing, seed, cases, requests, layer)


if __name__ == "__main__":
    sys.exit(main())
