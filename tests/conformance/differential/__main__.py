"""The command; its exit code is 0 when the two agree about everything."""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from differential.envoy_side import EnvoySide
from differential.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="differential", description="Compare meshlib's routing with Envoy's.")
    parser.add_argument("--configurations", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10, help="for each configuration")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    with tempfile.TemporaryDirectory() as folder, EnvoySide(Path(folder)) as side:
        report = run(side, seed, arguments.configurations, arguments.requests)
    for disagreement in report.disagreements:
        print(disagreement)
    print(report)
    return 1 if report.disagreeing else 0


if __name__ == "__main__":
    sys.exit(main())
