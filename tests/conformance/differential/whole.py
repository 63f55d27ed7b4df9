"""All that is compared, one after the other, and a table at the end.

    python -m differential.whole [--share 0.1]

Its exit code is 0 when nothing disagrees that is not on the list.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

PARTS: tuple[tuple[str, str, dict[str, int], tuple[str, ...]], ...] = (
    ("routes", "differential", {"--cases": 10_000}, ("--layer", "each")),
    ("hosts", "differential.hosts", {"--clusters": 1000}, ("--requests", "10")),
    ("subsets", "differential.hosts", {"--clusters": 1000}, ("--requests", "10", "--subsets")),
    ("sessions", "differential.hosts", {"--clusters": 1000}, ("--requests", "10", "--sessions")),
    ("named hosts", "differential.hosts", {"--clusters": 1000}, ("--requests", "10", "--named")),
    ("zones", "differential.zones", {"--worlds": 8}, ("--clusters", "12", "--requests", "500")),
    ("health checks", "differential.checks", {"--clusters": 30}, ("--steps", "40")),
    ("outliers, checks, panic, EDS", "differential.ejections", {"--steps": 120}, ("--clusters", "12")),
    ("limits", "differential.limits", {"--managers": 100}, ("--requests", "20")),
    ("retries", "differential.retries", {"--cases": 1000}, ()),
    ("combinations", "differential", {"--cases": 1000}, ("--layer", "combinations")),
    ("TLS", "differential.tls", {"--cases": 1000}, ()),
    ("gRPC calls", "differential.grpc_calls", {"--cases": 480}, ()),
)
"""Name, module, what is counted and how often, further arguments."""

_LINE = re.compile(r"^(?:layer (?P<layer>[^,]+), )?seed (?P<seed>\d+): (?P<rest>.*)$")
_COUNT = re.compile(r"(\d+) (cases|calls|events|clusters|requests|accepted|refused)")
_DISAGREEMENTS = re.compile(r"(\d+) disagreements")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `seconds` are those of the whole part."""

    layer: str
    seed: str
    cases: int
    disagreements: int
    seconds: float

    def __str__(self) -> str:
        return f"| {self.layer:<26} | {self.seed:>10} | {self.cases:>6} | {self.disagreements:>13} | {self.seconds:>7.0f} |"


HEAD = f"| {'layer':<26} | {'seed':>10} | {'cases':>6} | {'disagreements':>13} | {'seconds':>7} |"
RULE = f"| {'-' * 26} | {'-' * 9}: | {'-' * 5}: | {'-' * 12}: | {'-' * 6}: |"


def rows_of(name: str, output: str, seconds: float) -> list[Row]:
    """Read the lines with which a part sums itself up; those of one layer are one row."""
    found: dict[str, Row] = {}
    for row in _rows(name, output, seconds):
        before = found.get(row.layer)
        if before is not None:
            row = replace(
                before, cases=before.cases + row.cases, disagreements=before.disagreements + row.disagreements
            )
        found[row.layer] = row
    return list(found.values())


def _rows(name: str, output: str, seconds: float) -> Iterator[Row]:
    for line in output.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        rest = found["rest"]
        counts = _COUNT.findall(rest)
        cases = sum(int(count) for count, kind in counts if kind in ("accepted", "refused")) or int(counts[0][0])
        (disagreements,) = _DISAGREEMENTS.findall(rest)
        yield Row(found["layer"] or name, found["seed"], cases, int(disagreements), seconds)


def run(share: float) -> tuple[list[Row], bool]:
    """Run all parts; returns the table, and whether all of them agreed."""
    table: list[Row] = []
    is_good = True
    for name, module, counts, more in PARTS:
        counted = [text for option, count in counts.items() for text in (option, str(max(1, round(count * share))))]
        began = time.monotonic()
        command = [sys.executable, "-m", module, *counted, *more]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            output = []
            for line in process.stdout:
                print(line, end="", flush=True)
                output.append(line)
        rows = rows_of(name, "".join(output), time.monotonic() - began)
        table += rows
        is_good = is_good and process.returncode == 0 and bool(rows)
    return table, is_good


def main() -> int:
    parser = argparse.ArgumentParser(prog="differential.whole", description="Compare everything, and sum it up.")
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers of cases")
    arguments = parser.parse_args()
    table, is_good = run(arguments.share)
    print("", HEAD, RULE, *table, sep="\n")
    print("all agree" if is_good else "there are disagreements: see above")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
