"""The run: configurations are made, decided twice, and compared."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import ParseError

from differential import subject
from differential.decision import Refusal, difference
from differential.envoy_side import EnvoySide
from differential.generate import Generator, Json, Request
from differential.shrink import shrink

MAX_SHOWN = 3


@dataclass(slots=True)
class Report:
    """
    Attributes:
        outcomes: How often each kind of decision was met: a run that never reaches one proves nothing about it.
        disagreements: Shrunk, as JSON texts; at most `MAX_SHOWN`.
    """

    seed: int
    layer: str = "all"
    cases: int = 0
    refused: int = 0
    disagreeing: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        met = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        return (
            f"layer {self.layer}, seed {self.seed}: {self.cases} cases, {self.disagreeing} disagreements, "
            f"{self.refused} configurations refused by both; {met}"
        )


def run(side: EnvoySide, seed: int, cases: int, requests: int = 10, layer: str = "all") -> Report:
    """Compare the decisions about random requests under random configurations.

    Args:
        side: Envoy's.
        seed: Decides everything.
        cases: So many requests, at least, under configurations that both take.
        requests: For each configuration.
        layer: One of `generate.LAYERS`.
    """
    report = Report(seed, layer)
    number = -1
    while report.cases < cases:
        number += 1
        generator = Generator(f"{seed}/{number}", layer, len(side.managers))
        configuration = generator.configuration()
        asked = [generator.request() for _ in range(requests)]
        envoy = side.decide(configuration, asked)
        meshlib = subject.decide(configuration, asked, side.managers, envoy)
        if isinstance(envoy, Refusal) and isinstance(meshlib, Refusal):
            report.refused += 1
            continue
        report.cases += len(asked)
        if isinstance(envoy, Refusal) or isinstance(meshlib, Refusal):
            _add(report, side, configuration, asked[0], number)
            continue
        for request, one, other in zip(asked, envoy, meshlib, strict=True):
            report.outcomes[one.details.split("{")[0] or "forwarded"] += 1
            if difference(one, other):
                _add(report, side, configuration, request, number)
    return report


def compare(side: EnvoySide, configuration: Json, request: Request) -> dict[str, Any]:
    """Return how the two differ about one request; empty: they agree, or the configuration is no such one any more."""
    envoy = side.decide(configuration, [request])
    try:
        meshlib = subject.decide(configuration, [request], side.managers, envoy)
    except ParseError as error:  # a part that had to be there was left out while shrinking
        meshlib = Refusal(str(error))
    if isinstance(envoy, Refusal):
        return {} if isinstance(meshlib, Refusal) else {f"refused by Envoy: {envoy.kind}": envoy.reason}
    if isinstance(meshlib, Refusal):
        return {f"refused by meshlib: {meshlib.kind}": meshlib.reason}
    return difference(envoy[0], meshlib[0])


def _add(report: Report, side: EnvoySide, configuration: Json, request: Request, number: int) -> None:
    report.disagreeing += 1
    if len(report.disagreements) >= MAX_SHOWN:
        return
    smaller = (configuration, request)
    kinds = set(compare(side, *smaller))
    smaller = shrink(configuration, request, lambda *candidate: bool(kinds & set(compare(side, *candidate))))
    told = {
        "case": f"{report.seed}/{number}",
        "envoy, meshlib": compare(side, *smaller),
        "configuration": smaller[0],
        "request": smaller[1].to_json(),
        "manager": side.managers[request.manager],
    }
    report.disagreements.append(json.dumps(told))
