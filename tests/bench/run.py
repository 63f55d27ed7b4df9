"""What the mesh costs: `make bench`, or `python tests/bench/run.py --smoke` for a quick look that proves nothing.

Client and servers are processes of their own. For each pair the plain and the meshed client take turns, round by round,
the order changing each time, so that whatever else the machine does hits both; what counts is the median over the
rounds and the ratio of the two in the same round. CPU is that of the client's process with all its threads. The mesh
gets its configuration from a real `xds-server`, and its standard metrics are on; so does the Envoy which the plain client
goes through in some pairs, whose own CPU is not counted.

The scale rows (`--only scale`) have processes of their own for each side; see scale/rows.py.

Writes JSON and Markdown to tests/bench/results/, named after the date and `--label`.
"""

import argparse
import datetime
import gc
import json
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from pair import Pair, Runner  # beside this file, like what follows
from pairs import PAIRS
from scale import rows as scale
from world import World, world

HERE = Path(__file__).parent
PACKAGES = ("meshlib-xds", "httpx", "httpcore", "h11", "grpcio", "protobuf")


def measure(run: Runner, calls: int) -> tuple[float, float]:
    """Return CPU and wall-clock time per call, in microseconds."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    run(calls)
    return (time.process_time() - cpu) / calls * 1e6, (time.perf_counter() - wall) / calls * 1e6


def compare(pair: Pair, world: World, *, rounds: int, calls: int) -> dict[str, Any]:
    """Measure one pair, after a round that does not count."""
    with ExitStack() as stack:
        runners = pair.open(world, stack)
        found: list[list[tuple[float, float]]] = [[], []]
        for number in range(rounds + 1):
            order = (0, 1) if number % 2 else (1, 0)
            for side in order:
                result = measure(runners[side], calls)
                if number:
                    found[side].append(result)
    plain, meshed = found
    result: dict[str, Any] = {"name": pair.name, "calls_per_round": calls, "rounds": rounds}
    for index, kind in enumerate(("cpu", "wall")):
        ratios = sorted(ours[index] / theirs[index] for theirs, ours in zip(plain, meshed, strict=True))
        result[kind] = {
            "plain_us": round(statistics.median(entry[index] for entry in plain), 1),
            "meshed_us": round(statistics.median(entry[index] for entry in meshed), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[len(ratios) * 3 // 4], 3)],
        }
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| pair | CPU plain | CPU meshed | ratio (quartiles) | time plain | time meshed | ratio (quartiles) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for entry in results:
        cells = [entry["name"]]
        for kind in ("cpu", "wall"):
            found = entry[kind]
            low, high = found["ratio_quartiles"]
            cells += [f"{found['plain_us']} µs", f"{found['meshed_us']} µs"]
            cells += [f"**{found['ratio']:.3f}** ({low:.3f}-{high:.3f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def compare_all(only: str, *, rounds: int, is_quick: bool) -> list[dict[str, Any]]:
    """Measure the pairs whose name contains a text."""
    results: list[dict[str, Any]] = []
    chosen = [pair for pair in PAIRS if only in pair.name]
    if not chosen:
        return results
    with world(with_envoy=any(pair.needs == "envoy" for pair in chosen)) as found:
        for pair in chosen:
            if pair.needs != "envoy" or found.envoy:
                calls = min(100, pair.calls) if is_quick else pair.calls
                results.append(compare(pair, found, rounds=rounds, calls=calls))
                print(table(results[-1:]).splitlines()[-1], flush=True)
    return results


def measure_scale(only: str, *, is_quick: bool) -> list[dict[str, Any]]:
    """Measure the scale rows whose name contains a text."""
    results: list[dict[str, Any]] = []
    chosen = [row for row in scale.ROWS if only in row.name]
    if not chosen:
        return results
    with scale.field() as field:
        for row in chosen:
            results.append({"name": row.name, "numbers": row.measure(field, is_quick)})
            print(scale.table(results[-1:]), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the mesh costs.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="pairs whose name contains this")
    parser.add_argument("--label", default="bench", help="part of the results' file name; no name of a machine")
    parser.add_argument("--smoke", action="store_true", help="a few calls, to see that it works; writes nothing")
    options = parser.parse_args()
    rounds = 3 if options.smoke else options.rounds
    results = compare_all(options.only, rounds=rounds, is_quick=options.smoke)
    at_scale = measure_scale(options.only, is_quick=options.smoke)
    if options.smoke:
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    report = {
        "date": today,
        "command": " ".join(["python", "tests/bench/run.py", *sys.argv[1:]]),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
        "results": results,
        "scale": at_scale,
    }
    path = HERE / "results" / f"{today}-{options.label}"
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    packages = ", ".join(f"{name} {found}" for name, found in report["packages"].items())
    path.with_suffix(".md").write_text(
        f"# {today}: {options.label}\n\n"
        f"`{report['command']}`, {report['python']}, {report['system']}; {packages}.\n\n"
        + (
            f"Per call; medians over the rounds; a ratio is meshed / plain in the same round.\n\n{table(results)}\n\n"
            if results
            else ""
        )
        + scale.table(at_scale)
    )


if __name__ == "__main__":
    main()
