"""Calls to random services, by gRPC's own xDS client and by meshlib: the same server, the same status, as many attempts.

    python -m differential.grpc_calls --cases 1000 --seed 7 [--kind retries]

Nothing is left to chance but backoff, so outcomes are compared one by one. What differs is tried again alone before it
counts. Sources: gRFCs A27, A28, A29, A31, A32, A33, A37, A42, A44, A56.
"""

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from peers.grpcio import GrpcioClient
from peers.management import ManagementServer

import meshlib
from differential.command import arguments_of, compare
from differential.grpc_cases import KINDS, GrpcCall, GrpcCase, GrpcCaseMaker
from differential.grpc_upstreams import CASE, SCRIPT, ScriptedGrpcUpstreams

BATCH, SERVERS, MAX_SHOWN = 40, 6, 3
BASE_S, JITTER, CLOCK_S = 0.01, 0.2, 0.001
LATE = "Deadline Exceeded"
"""How the clients themselves say so."""


@dataclass(frozen=True, slots=True)
class GrpcEnd:
    """How a call ended.

    Attributes:
        server: That answered; empty: none did.
        told: Servers of the attempts.
        previous: What each was told of those before. C-core takes the header off meshlib's own attempts.
        waits_s: Between attempts: for the bounds of backoff, not compared.
    """

    code: str
    server: str
    told: tuple[str, ...]
    previous: tuple[str, ...] = field(default=(), compare=False)
    text: str = field(default="", compare=False)
    waits_s: tuple[float, ...] = field(default=(), compare=False)


@dataclass(slots=True)
class GrpcReport:
    """Attributes:
    met: How often each kind of case and end was met.
    broken: Waits before retries that are none of backoff's.
    """

    seed: int
    cases: int = 0
    again: int = 0
    disagreeing: int = 0
    met: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        met = ", ".join(f"{name} {count}" for name, count in self.met.most_common())
        return (
            f"seed {self.seed}: {self.cases} calls, {self.disagreeing} disagreements, {self.again} tried again; {met}"
        )


class _Sides:
    """Both clients at one management server."""

    def __init__(self, server: ManagementServer, upstreams: ScriptedGrpcUpstreams, folder: Path) -> None:
        self._upstreams = upstreams
        self._grpcio = GrpcioClient("grpcio", server.listen, folder)
        # What meshlib adds to gRPC's rules is on the list of differences, and is switched off here.
        self._mesh = meshlib.Mesh.connect(
            server.listen,
            node_id="meshlib",
            state_dir="",
            guard_unsafe=False,
            retry_budget=None,
            one_retry_layer=False,
            first_use_timeout_s=15,
        )
        self._mesh.start()
        self._channels: dict[str, grpc.Channel] = {}

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._mesh.close()
        self._grpcio.stop()

    def by_grpcio(self, case: GrpcCase, call: GrpcCall, mark: str) -> GrpcEnd:
        metadata = _metadata(call, mark)
        target = f"xds:///{case.service}"
        code, text = self._grpcio.call(target, call.method, metadata, timeout_s=call.timeout_s)
        return self._end(mark, code, text)

    def by_meshlib(self, case: GrpcCase, call: GrpcCall, mark: str) -> GrpcEnd:
        channel = self._channels.get(case.service)
        if channel is None:
            channel = self._channels[case.service] = self._mesh.channel(f"xds:///{case.service}")
        function: Any = channel.unary_unary(call.method)
        try:
            answer = function(b"", timeout=call.timeout_s, metadata=tuple(_metadata(call, mark)))
        except grpc.RpcError as error:
            return self._end(mark, error.code().name, error.details() or "")
        return self._end(mark, "OK", answer.decode())

    def _end(self, mark: str, code: str, text: str) -> GrpcEnd:
        told = self._upstreams.take(mark)
        server = str(json.loads(text)["version"]) if code == "OK" else ""
        waits = tuple(later.at - one.at for one, later in itertools.pairwise(told))
        previous = tuple(one.previous for one in told)
        # Where time is up a server may have heard of it, or not yet.
        servers = () if text == LATE or text.startswith(f"{LATE} (") else tuple(one.server for one in told)
        return GrpcEnd(code, server, servers, previous, text, waits)


def _metadata(call: GrpcCall, mark: str) -> list[tuple[str, str]]:
    script = json.dumps([step.to_json() for step in call.script])
    return [*call.metadata, (CASE, mark), (SCRIPT, script)]


def run(seed: int, count: int, folder: Path, kinds: Sequence[str] = KINDS) -> GrpcReport:
    """Compare so many services, each with some calls."""
    report = GrpcReport(seed)
    for start in range(0, count, BATCH):
        place = folder / str(start)
        place.mkdir()
        with ScriptedGrpcUpstreams(SERVERS) as upstreams:
            maker = GrpcCaseMaker(f"{seed}/{start}", upstreams.ports)
            cases = [
                maker.make(number, kinds[number % len(kinds)]) for number in range(start, min(start + BATCH, count))
            ]
            resources = [resource for case in cases for resource in case.resources]
            documents = {"services.json.yaml": json.dumps({"resources": resources})}
            with ManagementServer(place, documents) as server:
                sides = _Sides(server, upstreams, place)
                try:
                    _run_batch(report, cases, sides)
                finally:
                    sides.close()
    return report


def is_early(call: GrpcCall, end: GrpcEnd) -> str:
    """Return what is wrong with the waits before retries; empty: nothing. They may always be longer, not shorter.

    The base is 10 ms in all cases, with a jitter of a fifth (A44, A6); a server that pushes back says how long.
    """
    for step, waited_s in zip(call.script, end.waits_s, strict=False):
        least_s = int(step.pushback) / 1000 if step.pushback.isdigit() else BASE_S * (1 - JITTER)
        if waited_s < least_s - CLOCK_S:
            return f"waited {waited_s * 1000:.1f} ms of at least {least_s * 1000:g}"
    return ""


def _run_batch(report: GrpcReport, cases: Sequence[GrpcCase], sides: _Sides) -> None:
    asked = [(case, call) for case in cases for call in case.calls]
    ends = [sides.by_grpcio(case, call, f"g{number}") for number, (case, call) in enumerate(asked)]

    def ask(numbered: tuple[int, tuple[GrpcCase, GrpcCall]]) -> GrpcEnd:
        number, (case, call) = numbered
        return sides.by_meshlib(case, call, f"m{number}")

    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(ask, enumerate(asked)))
    for number, ((case, call), one, other) in enumerate(zip(asked, ends, others, strict=True)):
        report.cases += 1
        report.met[case.kind] += 1
        report.met[one.code] += 1
        if len(one.told) > 1:
            report.met[f"{len(one.told)} attempts"] += 1
        for attempt in range(2):
            if one == other:
                break
            report.again += 1
            one = sides.by_grpcio(case, call, f"g{number}/{attempt}")
            other = sides.by_meshlib(case, call, f"m{number}/{attempt}")
        for end in (one, other):
            if early := is_early(call, end):
                report.broken.append(f"{early}: {end}")
        if one != other:
            report.disagreeing += 1
            if len(report.disagreements) < MAX_SHOWN:
                told = {"kind": case.kind, "call": str(call), "grpc": str(one), "meshlib": str(other)}
                report.disagreements.append(json.dumps({**told, "resources": case.resources}))


def main() -> int:
    parser = arguments_of("differential.grpc_calls", "gRPC calls with gRPC's own client")
    parser.add_argument("--cases", type=int, default=240, help="services; each has several calls")
    parser.add_argument("--kind", choices=KINDS, default=None)

    def run_kinds(given: argparse.Namespace, seed: int, folder: Path) -> GrpcReport:
        return run(seed, given.cases, folder, (given.kind,) if given.kind else KINDS)

    return compare(parser, run_kinds, more=lambda report: report.broken)


if __name__ == "__main__":
    sys.exit(main())
