"""Random combinations of all that has a say in where a request goes and what becomes of it, in one Envoy and in meshlib.

    python -m differential --layer combinations --cases 1000 --seed 7

A case has a virtual host, up to four clusters and a few requests: priorities, health, panic, overprovisioning, weights of
localities, subsets, policies, retries with their predicates and limits, copies, internal redirects, splits, clusters by
header, mutations of headers, aggregates and stateful sessions, as chance would have it. Upstreams follow a script.

Compared is, for each request: the status, the flags, the answer, the host of each attempt, what each attempt was told and
which copies came. Hosts are compared one by one where a hash chooses them; else Envoy's have to be among those that meshlib may
choose (`combination_chances`). What differs is tried again alone, as a busy machine may be late.
"""

import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
from google.protobuf.json_format import ParseError

from differential.combination_cases import COPY_HOSTS, HOSTS, Ask, Case, CombinationGenerator
from differential.combination_chances import Chances
from differential.combination_sides import BY_HEADER, End, EnvoySide, MeshlibSide, Told, met_of
from differential.decision import Pairs
from differential.generate import Json
from differential.scripted import ScriptedUpstream
from differential.sessions import is_same_mark
from differential.shrink import shrink_json

__all__ = ["run_combinations"]

BATCH = 50
THREADS = 8
MAX_SHOWN = 3
TRIES_ALONE = 2
LAST_COPIES_S = 0.2
"""Until copies, which nobody waits for, have arrived."""
SHRINKING_S = 60.0
"""For each disagreement that is shown; most are small by then."""
_LEFT_TO_CHANCE = ("status", "flags", "attempts")
_MARKS = ("set-cookie", "x-session")
_RUNS = itertools.count()
_REDIRECT = "x-envoy-original-url"


@dataclass(slots=True)
class Report:
    """
    Attributes:
        again: Cases that were tried again alone.
        met: How often each thing was met: a run that never reaches one proves nothing about it.
        disagreements: Made small, as JSON texts; at most `MAX_SHOWN`.
    """

    seed: int
    cases: int = 0
    disagreeing: int = 0
    again: int = 0
    met: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        met = ", ".join(f"{name} {count}" for name, count in self.met.most_common())
        return (
            f"layer combinations, seed {self.seed}: {self.cases} cases, {self.disagreeing} disagreements, "
            f"{self.again} tried again; {met}"
        )


Ends = list[tuple[End, End]]
"""Of the requests of a case: Envoy's, meshlib's."""


def run_combinations(seed: int, count: int, folder: Path) -> Report:
    """Compare random cases."""
    report = Report(seed)
    with ScriptedUpstream((*HOSTS, *COPY_HOSTS), known_by=BY_HEADER, copies=COPY_HOSTS) as up:
        for start in range(0, count, BATCH):
            numbers = range(start, min(start + BATCH, count))
            cases = [CombinationGenerator(f"{seed}/{number}", number, up.port).make() for number in numbers]
            for case, ends in zip(cases, _ends(cases, up, folder), strict=True):
                report.cases += 1
                _count(report.met, case, ends)
                if difference(case, ends):
                    _add(report, case, up, folder)
    return report


def _ends(cases: Sequence[Case], up: ScriptedUpstream, folder: Path) -> list[Ends]:
    run = next(_RUNS)  # attempts that Envoy has given up may reach a busy upstream when their case is tried again
    with (
        tempfile.TemporaryDirectory(dir=folder) as place,
        closing(EnvoySide(cases, up, Path(place))) as envoy,
        closing(MeshlibSide(cases)) as meshlib,
    ):

        def both(case: Case) -> list[tuple[str, tuple[int, Pairs, str], str, End]]:
            found = []
            for number, ask in enumerate(case.asks):
                marks = [f"{run}-{case.number}-{number}-{side}" for side in ("e", "m")]
                for mark in marks:
                    up.expect(mark, ask.script)
                found.append((marks[0], envoy.ask(case, ask, marks[0]), marks[1], meshlib.ask(case, ask, marks[1])))
            return found

        with ThreadPoolExecutor(min(THREADS, len(cases))) as pool:
            asked = list(pool.map(both, cases))
        answers = {mark: answer for found in asked for mark, answer, _, _ in found}
        ends = envoy.ends(answers)
        if any(case.has_copies for case in cases):
            time.sleep(LAST_COPIES_S)
        result = []
        for found in asked:
            pairs = []
            for mark, _, other, end in found:
                seen = [met_of(up, one) for one in (mark, other)]
                there = replace(ends[mark], told=seen[0][0], copies=seen[0][1])
                pairs.append((there, replace(end, told=seen[1][0], copies=seen[1][1])))
            result.append(pairs)
    return result


def difference(case: Case, ends: Ends) -> Json:
    """Return how the two differ about the requests of a case, by their numbers; empty: they agree."""
    found: Json = {}
    chances = None if case.is_exact else Chances(case)
    for number, (ask, (envoy, meshlib)) in enumerate(zip(case.asks, ends, strict=True)):
        told = _unlike(case, ask, envoy, meshlib)
        is_decided = told and told.keys().isdisjoint(_LEFT_TO_CHANCE)
        if chances is not None and not is_decided and not envoy.is_kept_back:
            # They may have taken different ways, and then nothing else can be compared.
            doubt = chances.doubt(ask, envoy)
            told = {"ways": (envoy.hosts, doubt), **told} if doubt else {}
        if told:
            found[str(number)] = told
    return found


def _unlike(case: Case, ask: Ask, envoy: End, meshlib: End) -> dict[str, tuple[object, object]]:
    pairs: dict[str, tuple[object, object]] = {
        "status": (envoy.status, meshlib.status),
        "flags": (sorted(envoy.flags), sorted(meshlib.flags)),
        "told": (_told(case, envoy.told), _told(case, meshlib.told)),
    }
    # Copies of a request that a limit keeps back, or that fails before its body has come: see DIFFERENCES.md.
    if not envoy.is_kept_back and (ask.method != "POST" or envoy.told):
        pairs["copies"] = (envoy.copies, meshlib.copies)
    if case.is_exact:
        pairs["hosts"] = (envoy.hosts, meshlib.hosts)
    else:
        pairs["attempts"] = (len(envoy.hosts), len(meshlib.hosts))
    if meshlib.is_answered:
        pairs["body"] = (envoy.body, meshlib.body)
        one, other = envoy.headers, meshlib.headers
        pairs["headers"] = (_without_marks(one), _without_marks(other))
        for name in _MARKS:
            marks = [next((value for key, value in headers if key == name), "") for headers in (one, other)]
            if envoy.hosts == meshlib.hosts and not envoy.is_kept_back and not is_same_mark(*marks):
                pairs[name] = (marks[0], marks[1])
    return {name: (one, other) for name, (one, other) in pairs.items() if one != other}


def _told(case: Case, told: tuple[Told, ...]) -> tuple[Told, ...]:
    """Return what both sides tell alike: their own marks differ, and the hosts where they are a matter of chance."""
    return told if case.is_exact else tuple(replace(one, host="") for one in told)


def _without_marks(headers: Pairs) -> Pairs:
    return tuple(item for item in headers if item[0] not in _MARKS)


def _count(met: Counter[str], case: Case, ends: Ends) -> None:
    met["exact" if case.is_exact else "by chance"] += 1
    for envoy, _ in ends:
        met["requests"] += 1
        met[f"{envoy.status}"] += 1
        met[f"{len(envoy.hosts)} attempts"] += 1
        met["copies"] += len(envoy.copies)
        met["redirected"] += any(name == _REDIRECT for told in envoy.told for name, _ in told.headers)
        met["several hosts"] += len(set(envoy.hosts)) > 1
        met["with a session"] += any(name in _MARKS for name, _ in envoy.headers)
        for flag in envoy.flags:
            met[flag] += 1


def _alone(case: Case, up: ScriptedUpstream, folder: Path) -> Json:
    """Return how the two differ about a case that runs alone; empty: they agree, or it is no case any more."""
    try:
        (ends,) = _ends([case], up, folder)
        return difference(case, ends)
    except (AssertionError, KeyError, TypeError, ValueError, ParseError, httpx.TransportError):
        # A part that had to be there was left out: one of the two refuses it, or Envoy's process ends.
        return {}


def _add(report: Report, case: Case, up: ScriptedUpstream, folder: Path) -> None:
    report.again += 1
    found: Json = {}
    for _ in range(TRIES_ALONE):
        if not (found := _alone(case, up, folder)):
            return
    report.disagreeing += 1
    if len(report.disagreements) >= MAX_SHOWN:
        return
    kinds = _kinds(found)
    one = replace(case, asks=(case.asks[int(next(iter(found)))],))
    if kinds & _kinds(_alone(one, up, folder)):
        case, kinds = one, _kinds(_alone(one, up, folder))
    until = time.monotonic() + SHRINKING_S

    def persists(told: Json) -> bool:
        return time.monotonic() < until and bool(kinds & _kinds(_alone_of(told, up, folder)))

    small = shrink_json(case.to_json(), persists, _KEPT)
    told = {"seed": f"{report.seed}/{case.number}", "envoy, meshlib": _alone_of(small, up, folder), "case": small}
    report.disagreements.append(json.dumps(told, default=str))


_KEPT = frozenset(
    {"number", "exact", "method", "path", "name", "type", "hash_key", "@type", "typed_extension_protocol_options"}
)


def _alone_of(told: Json, up: ScriptedUpstream, folder: Path) -> Json:
    try:
        case = Case.from_json(told)
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return _alone(case, up, folder)


def _kinds(found: Json) -> set[str]:
    return {kind for told in found.values() for kind in told}
