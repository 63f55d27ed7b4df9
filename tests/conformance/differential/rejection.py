"""Which configurations are taken: random changes of valid ones, judged by Envoy and by meshlib's decoder.

What Envoy refuses meshlib refuses. What Envoy takes meshlib takes, or refuses with a reason that is written down: a field
that it does not support, which docs/reference/xds-features.md lists, or one of `LISTED`, which DIFFERENCES.md lists.
"""

import json
import random
import re

from google.protobuf.json_format import MessageToDict

from differential import subject
from differential.decision import Refusal
from differential.envoy_side import EnvoySide
from differential.generate import Generator, Json
from differential.mutate import mutate
from differential.run import MAX_SHOWN, Report
from differential.shrink import smaller_configurations
from meshlib.protos import from_dict, pool

ROUTES = "envoy.config.route.v3.RouteConfiguration"
MAX_TRIES = 200

# By a reason of meshlib's, or "Envoy: " and a part of one of Envoy's.
LISTED = (
    re.compile(r"is not supported"),
    # Management servers for gRPC name no virtual hosts.
    re.compile(r"^Envoy: .*VirtualHostValidationError\.Name: value length must be at least 1", re.DOTALL),
    re.compile(r"^Envoy: route: unknown cluster"),
    re.compile(r"^Envoy: .*max program size of 100 set for the error level"),
)


def run_rejection(side: EnvoySide, seed: int, cases: int) -> Report:
    """Compare who takes which of so many configurations."""
    report = Report(seed, "rejection")
    seen: set[str] = set()
    for number in range(cases):
        chance = random.Random(f"rejection/{seed}/{number}")
        message = from_dict(ROUTES, Generator(f"{seed}/{number}").configuration())
        changes = [mutate(message, chance) for _ in range(chance.choice((1, 1, 2)))]
        configuration = _json(message)
        report.cases += 1
        verdict = _compare(side, configuration)
        report.outcomes[verdict.partition(":")[0]] += 1
        if not verdict.startswith(("both", "listed")):
            _add(report, side, configuration, verdict, f"{seed}/{number}", changes, seen)
    return report


def _json(message: object) -> Json:
    made: Json = MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool())  # type: ignore[arg-type]
    made.setdefault("name", "differential")
    return {**made, "name": "differential"}


def _compare(side: EnvoySide, configuration: Json) -> str:
    envoy = side.install(configuration)
    meshlib = subject.refusal(configuration)
    if envoy is None and meshlib is None:
        return "both take it"
    if envoy is not None and meshlib is not None:
        return "both refuse it"
    told = meshlib.reason if meshlib is not None else f"Envoy: {envoy.reason if envoy else ''}"
    reasons = told.split("\n") if meshlib is not None else [told]
    if all(any(listed.search(reason) for listed in LISTED) for reason in reasons):
        return "listed"
    return f"refused by {'meshlib' if meshlib is not None else 'Envoy'}: {Refusal(told).kind}"


def _add(
    report: Report, side: EnvoySide, configuration: Json, verdict: str, case: str, changes: list[str], seen: set[str]
) -> None:
    report.disagreeing += 1
    kind = re.sub(r"[.\w]+\.(\w+):", r"\1:", verdict)
    if kind in seen or len(seen) >= MAX_SHOWN:
        return
    seen.add(kind)
    tries, progress = 0, True
    while progress and tries < MAX_TRIES:
        progress = False
        for candidate in smaller_configurations(configuration):
            tries += 1
            if _compare(side, candidate) == verdict:
                configuration, progress = candidate, True
                break
            if tries >= MAX_TRIES:
                break
    told = {"case": case, "changes": changes, "verdict": verdict, "configuration": configuration}
    report.disagreements.append(json.dumps(told))
