"""Play all scenarios, print what they come to, and draw them for docs/explanation: `make simulate`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from . import scenarios
from .scenarios import CAPACITY, OVERLOAD, Run

TARGET = Path(__file__).resolve().parents[3] / "docs" / "explanation" / "simulations"
COLOURS = ("#9aa0a6", "#d9730d", "#2b7de9", "#8e44ad", "#1a9850")


def _lines(name: str, title: str, unit: str, runs: Sequence[Run], value: Callable[[Run, float, float], float]) -> None:
    """Draw one line a run: a value over time, in steps of half a second."""
    step_s = 0.5
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    for run, colour in zip(runs, COLOURS, strict=False):
        end = run.answers[-1].at
        times = [step_s * n for n in range(int(end / step_s))]
        axes.plot(times, [value(run, at, at + step_s) for at in times], label=run.name, color=colour, linewidth=1.4)
    axes.set(title=title, xlabel="seconds", ylabel=unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    _save(figure, name)


def _bars(name: str, title: str, runs: Sequence[Run], start: float, end: float) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 2.6))
    for place, (percentile, colour) in enumerate(((50, "#9aa0a6"), (99, "#2b7de9"))):
        values = [run.percentile_ms(percentile, start, end) for run in runs]
        places = [n + 0.36 * place for n in range(len(runs))]
        axes.bar(places, values, 0.34, label=f"p{percentile}", color=colour)
    axes.set(title=title, ylabel="ms")
    axes.set_xticks([n + 0.18 for n in range(len(runs))])
    axes.set_xticklabels([f"{run.name}\n{100 * run.failed(start, end):.1f} % failed" for run in runs], fontsize=8)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, frameon=False)
    _save(figure, name)


def _save(figure: "plt.Figure", name: str) -> None:
    figure.tight_layout()
    TARGET.mkdir(exist_ok=True)
    # Neither a date nor names by chance: the same run gives the same file.
    figure.savefig(TARGET / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def _show(title: str, runs: Sequence[Run], start: float, end: float) -> None:
    print(title)
    for run in runs:
        print(
            f"  {run.name:36} good/s {run.goodput(start, end):8.0f}   failed {100 * run.failed(start, end):6.2f} %   "
            f"p50 {run.percentile_ms(50, start, end):7.1f} ms   p99 {run.percentile_ms(99, start, end):7.1f} ms   "
            f"of the first host {100 * run.served[0] / max(1, sum(run.served)):5.1f} %"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    matplotlib.rcParams["svg.hashsalt"] = "meshlib"
    matplotlib.rcParams["svg.fonttype"] = "none"

    slow = scenarios.slow_host(seed=seed)
    _show("one host of ten is ten times as slow", slow, 5, 19)
    _bars("slow", "One host of ten is ten times as slow", slow, 5, 19)
    failing = scenarios.failing_host(seed=seed)
    _show("one host fails at once from 10 to 20 s", failing, 10, 20)
    _lines(
        "failing",
        "One host answers 503 at once from 10 to 20 s",
        "failed calls, %",
        failing,
        lambda r, a, b: 100 * r.failed(a, b),
    )
    recovering = scenarios.recovering_host(seed=seed)
    _show("one host comes back cold at 8 s", recovering, 8, 16)
    _lines(
        "recovering",
        "One host comes back cold at 8 s",
        "p99, ms",
        recovering,
        lambda r, a, b: r.percentile_ms(99, a, b),
    )
    overload = scenarios.overload(seed=seed)
    _show(f"{OVERLOAD:g} times the capacity of {CAPACITY:g}/s", overload, 5, 19)
    _lines(
        "overload",
        f"{OVERLOAD:g} times as many calls as can be served",
        "good answers per second",
        overload,
        Run.goodput,
    )


if __name__ == "__main__":
    main()
