"""The command; its exit code is 0 when the two agree about everything."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from differential.envoy_side import EnvoySide
from differential.generate import LAYERS
from differential.managers import random_managers
from differential.rejection import run_rejection
from differential.run import run

REJECTION = "rejection"
MANAGERS = 24


def main() -> int:
    parser = argparse.ArgumentParser(prog="differential", description="Compare meshlib's routing with Envoy's.")
    parser.add_argument("--layer", choices=(*LAYERS, REJECTION, "each"), default="all")
    parser.add_argument("--cases", type=int, default=10_000, help="of each layer")
    parser.add_argument("--requests", type=int, default=10, help="for each configuration")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    layers = (*LAYERS, REJECTION) if arguments.layer == "each" else (arguments.layer,)
    disagreeing = 0
    for layer in layers:
        managers = random_managers(seed, MANAGERS)
        with tempfile.TemporaryDirectory() as folder, EnvoySide(Path(folder), managers=managers) as side:
            if layer == REJECTION:
                report = run_rejection(side, seed, arguments.cases)
            else:
                report = run(side, seed, arguments.cases, arguments.requests, layer)
        for disagreement in report.disagreements:
            print(disagreement)
        print(report, flush=True)
        disagreeing += report.disagreeing
    return 1 if disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
