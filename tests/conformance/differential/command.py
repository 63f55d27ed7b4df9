"""How a comparison is run by hand: a seed of its own unless one is given, a folder, what disagrees, and the exit code."""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

__all__ = ["arguments_of", "compare", "new_seed"]

SHOWN = 5
"""Disagreements printed; further ones seldom say more."""


class Comparison(Protocol):
    """What came of it; `str` sums it up in a line that has the seed, for `whole` to read."""

    @property
    def disagreements(self) -> Sequence[str]: ...


R = TypeVar("R", bound=Comparison)


def arguments_of(name: str, what: str) -> argparse.ArgumentParser:
    """Return a parser that knows `--seed`.

    Args:
        name: Of the module.
        what: Is compared with the peer's.
    """
    parser = argparse.ArgumentParser(prog=name, description=f"Compare {what}.")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    return parser


def new_seed() -> int:
    return random.SystemRandom().randrange(2**32)


def compare(
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, int, Path], R],
    *,
    more: Callable[[R], Sequence[str]] = lambda report: (),
) -> int:
    """Run a comparison as the command line says; returns the exit code: 0 when nothing disagrees.

    Args:
        run: Takes the arguments, the seed and an empty folder.
        more: What else is wrong.
    """
    arguments = parser.parse_args()
    seed = new_seed() if arguments.seed is None else arguments.seed
    with tempfile.TemporaryDirectory() as folder:
        report = run(arguments, seed, Path(folder))
    wrong = (*report.disagreements[:SHOWN], *more(report))
    for text in wrong:
        print(text)
    print(report, flush=True)
    return 1 if wrong else 0
