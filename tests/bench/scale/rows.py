"""The scale rows: what many services, many endpoints and many updates cost.

Each measured side is a process of its own against the same management server (`source.py`) and the same servers
(`servers.py`). What is kept are the medians over the rounds, and what they come to: ratios of two sides, or counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world import process

from scale.envoy import envoy_memory
from scale.resources import CLUSTERS

HERE = Path(__file__).parent
Numbers = dict[str, Any]


_COMPILED = tempfile.TemporaryDirectory(prefix="meshlib-bench-")
# Packages are installed with their modules compiled. Where a process may not write them it compiles each on import, which
# takes twice the time, and memory too.
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
    "PYTHONPYCACHEPREFIX": _COMPILED.name,
}


@dataclass(frozen=True)
class Field:
    """Where the other processes are. Attributes: `xds` as `host:port`, and ports of the servers."""

    xds: str
    grpc_port: int
    http_port: int


@dataclass(frozen=True)
class Row:
    """Attributes:
    measure: Given the field and whether only a quick look is wanted, returns numbers by name.
    """

    name: str
    measure: Callable[[Field, bool], Mapping[str, Any]]


@contextmanager
def field() -> Iterator[Field]:
    """Run the servers and the management server."""
    with ExitStack() as stack:
        _, line = stack.enter_context(process(sys.executable, str(HERE / "servers.py")))
        ports = json.loads(line)
        command = (sys.executable, str(HERE / "source.py"), str(ports["grpc"]), str(ports["http"]))
        _, line = stack.enter_context(process(*command))
        client("load")
        yield Field(f"127.0.0.1:{int(line)}", ports["grpc"], ports["http"])


def client(row: str, **arguments: Any) -> Any:
    """Run one client and return what it found.

    Raises:
        subprocess.CalledProcessError: It failed; it has said why.
    """
    command = (sys.executable, str(HERE / "client.py"), row, json.dumps(arguments))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300, env=_ENVIRONMENT)
    return json.loads(done.stdout)


def _medians(found: list[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in found), 2) for name in found[0]}


def _cold(field: Field, is_quick: bool, *, services: list[str], paths: list[str], together: bool) -> Numbers:
    rounds = 1 if is_quick else 3
    found: dict[str, list[Numbers]] = {"mesh": [], "grpcio": []}
    for _ in range(rounds):
        for side, results in found.items():
            results.append(
                client("cold", client=side, xds=field.xds, services=services, calls=paths, together=together)
            )
    numbers: Numbers = {}
    medians: dict[str, dict[str, dict[str, float]]] = {}
    for side, results in found.items():
        medians[side] = {kind: _medians([one[kind] for one in results]) for kind in ("import", "ready", "all")}
        numbers[side] = {**medians[side], "held": results[0]["held"]}
    for kind in ("ready", "all"):
        for unit in ("wall_ms", "cpu_ms", "rss_mb"):
            theirs = medians["grpcio"][kind][unit]
            if theirs:
                numbers[f"mesh / grpcio, {kind}, {unit}"] = round(medians["mesh"][kind][unit] / theirs, 3)
    return numbers


def _all_used(field: Field, is_quick: bool) -> Numbers:
    paths = [f"/s{number}/Get" for number in range(CLUSTERS)]
    return _cold(field, is_quick, services=["all"], paths=paths, together=True)


def _few_used(field: Field, is_quick: bool) -> Numbers:
    services = [f"s{number * 7}" for number in range(5)]
    return _cold(field, is_quick, services=services, paths=["/any/Get"] * 5, together=False)


def _chosen(field: Field, is_quick: bool) -> Numbers:
    found: Numbers = client("on_demand", xds=field.xds, services=[f"s{number * 7}" for number in range(5)])
    return found


def _big(field: Field, is_quick: bool) -> Numbers:
    found = client("big", xds=field.xds, count=10_000, rounds=2 if is_quick else 9)
    kept = {name: value for name, value in found.items() if name != "count"}
    return {
        **{f"{name}, median ms": round(statistics.median(values), 2) for name, values in kept.items()},
        **{f"{name}, worst ms": max(values) for name, values in kept.items()},
    }


def _storm(field: Field, is_quick: bool, *, protocol: str, features: list[str]) -> Numbers:
    """Calls while updates come, against calls without, and against calls while a process beside gets the same updates.

    The second says what is the mesh's: with the first the management server, and whoever else the updates keep busy, take
    their share of the machine from the calls.
    """
    seconds, rounds = (1.0, 1) if is_quick else (2.0, 6)
    common = {"xds": field.xds, "features": features}
    command = (sys.executable, str(HERE / "client.py"), "hold", json.dumps(common))
    with process(*command):
        rows = client("storm", rate=1000, seconds=seconds, rounds=rounds, protocol=protocol, **common)["rows"]
    ratios = {
        f"{part} {one} / {other}": round(
            statistics.median(row[f"{part}_{one}"] / row[f"{part}_{other}"] for row in rows), 3
        )
        for part in ("p50", "p99")
        for one, other in (("busy", "quiet"), ("beside", "quiet"), ("busy", "beside"))
    }
    return {**ratios, **_medians(rows)}


def _memory(field: Field, is_quick: bool) -> Numbers:
    services = 10 if is_quick else 100
    common = {"xds": field.xds, "grpc_port": field.grpc_port, "http_port": field.http_port, "services": services}
    plain, meshed = (client("memory", is_meshed=is_meshed, **common)["rss_mb"] for is_meshed in (False, True))
    return {
        "services": services,
        "plain, MB": round(plain, 1),
        "meshed, MB": round(meshed, 1),
        "more, MB": round(meshed - plain, 1),
        **envoy_memory(services, field.grpc_port, field.http_port),
    }


def _storms() -> Iterator[Row]:
    for protocol in ("httpx", "grpc"):
        for variant, features in (("state of the world", []), ("incremental", ["meshlib.delta"])):

            def measure(field: Field, is_quick: bool, p: str = protocol, f: list[str] = features) -> Numbers:
                return _storm(field, is_quick, protocol=p, features=f)

            yield Row(f"scale: 1,000 updates a second, {protocol}, {variant}", measure)


ROWS = (
    Row("scale: cold start, 1,000 clusters, all used", _all_used),
    Row("scale: cold start, 1,000 services, 5 used", _few_used),
    Row("scale: 1,000 clusters, 5 named by requests", _chosen),
    Row("scale: update of 10,000 endpoints", _big),
    *_storms(),
    Row("scale: memory of 100 services x 10 endpoints", _memory),
)


def table(results: list[Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = []
    for entry in results:
        lines += [f"## {entry['name']}", "", "| | |", "| --- | ---: |"]
        for name, value in entry["numbers"].items():
            if not isinstance(value, dict):
                lines.append(f"| {name} | {value} |")
                continue
            for part, inner in value.items():
                text = ", ".join(f"{unit} {v}" for unit, v in inner.items()) if isinstance(inner, dict) else inner
                lines.append(f"| {name}, {part} | {text} |")
        lines.append("")
    return "\n".join(lines)
