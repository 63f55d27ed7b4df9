"""One process that is measured: `python client.py ROW '{"xds": "host:port", ...}'` prints what it found, as JSON.

A process for each, so that memory and first times are its own. CPU is that of the process with all its threads.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx

sys.path.append(str(Path(__file__).parents[1]))

from scale.resources import ADDRESSES, CDS, HEADER, address

XDS_CONFIG = "grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config"
SETTLED_S = 1.2
"""After this long an update is in use, whatever else there was to do (`meshlib.runtime.pace`: a second)."""
MEASURED, BESIDE = "mesh", "beside"
"""Names of nodes."""
Result = dict[str, Any]


def resident_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


class Meter:
    """Time, CPU and memory since it was made."""

    def __init__(self) -> None:
        self._rss, self._cpu, self._wall = resident_kb(), time.process_time(), time.perf_counter()

    def read(self) -> Result:
        return {
            "wall_ms": round((time.perf_counter() - self._wall) * 1e3, 1),
            "cpu_ms": round((time.process_time() - self._cpu) * 1e3, 1),
            "rss_mb": round((resident_kb() - self._rss) / 1024, 1),
        }


def order(xds: str, **what: Any) -> list[Result]:
    """Have the management server do something; returns what each stream to it is subscribed to."""
    with grpc.insecure_channel(xds) as channel:
        method: Any = channel.unary_unary("/bench.Source/Do")
        found: list[Result] = json.loads(method(json.dumps(what).encode(), timeout=10))
        return found


def held(xds: str) -> Result:
    """Return what this client holds, as the management server knows it: how many resources, over how many streams."""
    streams = order(xds, do="look")
    names = {kind: sum(stream["names"][kind] for stream in streams) for kind in streams[0]["names"]}
    return {"streams": len(streams), "resources": sum(names.values()), **names}


def bootstrap(xds: str, node: str, *features: str) -> dict[str, Any]:
    server = {"server_uri": xds, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3", *features]}
    return {"xds_servers": [server], "node": {"id": node}}


def open_mesh(stack: ExitStack, xds: str, *features: str, node: str = MEASURED) -> Any:
    """Return a running mesh, with its copy on disk as applications have it."""
    import meshlib

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    return stack.enter_context(meshlib.Mesh(bootstrap(xds, node, *features), state_dir=folder))


def _import_mesh() -> None:
    """Import what the first use of a mesh over gRPC imports."""
    import meshlib.clients.grpc_sync
    import meshlib.mesh
    import meshlib.runtime.control
    import meshlib.runtime.engine  # noqa: F401


def load() -> Result:
    """Import what the others do, so that theirs find it compiled."""
    import opentelemetry.metrics
    import opentelemetry.trace  # noqa: F401

    import meshlib.clients.httpx_filters
    import meshlib.clients.httpx_sync
    import meshlib.mesh  # noqa: F401
    from meshlib.xds.decode import decode_resource

    decode_resource(CDS, b"")
    "localhost".encode("idna")
    _import_mesh()
    return {}


def _channels(client: str, xds: str, stack: ExitStack) -> Callable[[str], grpc.Channel]:
    if client == "grpcio":
        options = [(XDS_CONFIG, json.dumps(bootstrap(xds, "grpcio")))]
        return lambda name: stack.enter_context(grpc.insecure_channel(f"xds:///{name}", options=options))
    mesh = open_mesh(stack, xds, *(["meshlib.delta"] if client == "mesh, delta" else ()))
    return lambda name: stack.enter_context(mesh.channel(f"xds:///{name}"))


def cold(client: str, xds: str, services: list[str], calls: list[str], together: bool) -> Result:
    """From nothing to the first answer, then an answer from each service.

    Args:
        services: Targets to open.
        calls: Paths to call once each; with `together` all of them on the first target, else one on each.
    """
    imports = Meter()
    if client != "grpcio":
        _import_mesh()
    imported = imports.read()
    with ExitStack() as stack:
        meter = Meter()
        channel_of = _channels(client, xds, stack)
        channels = [channel_of(name) for name in services]
        channels *= len(calls) if together else 1
        first, *others = zip(channels, calls, strict=True)

        def call(channel: grpc.Channel, path: str) -> None:
            method: Any = channel.unary_unary(path)
            assert method(b"1", timeout=60, wait_for_ready=True)

        call(*first)
        ready = meter.read()
        for one in others:
            call(*one)
        everything = meter.read()
        return {"import": imported, "ready": ready, "all": everything, "held": held(xds)}


def on_demand(xds: str, services: list[str]) -> Result:
    """Clusters which a header of the request names: those are asked for and no others."""
    _import_mesh()
    with ExitStack() as stack:
        meter = Meter()
        channel = stack.enter_context(open_mesh(stack, xds).channel("xds:///chosen"))
        for name in services:
            assert channel.unary_unary("/any/Get")(b"1", timeout=60, metadata=((HEADER, name),))
        everything = meter.read()
        return {"all": everything, "held": held(xds)}


class Spinner(threading.Thread):
    """Looks at the clock without end: what is between two looks is how long it was kept from running.

    Attributes:
        longest_s: By the clock.
        longest_held_s: CPU that the rest of the process used in between: what others that run on this machine do to the
            clock is not in it.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest_s = self.longest_held_s = 0.0
        self._is_over = False

    def run(self) -> None:
        clock, process, own = time.perf_counter, time.process_time, time.thread_time
        last, used = clock(), process() - own()
        while not self._is_over:
            now, uses = clock(), process() - own()
            if now - last > self.longest_s:
                self.longest_s = now - last
            if uses - used > self.longest_held_s:
                self.longest_held_s = uses - used
            last, used = now, uses

    def stop(self) -> tuple[float, float]:
        self._is_over = True
        self.join()
        return self.longest_s * 1e3, self.longest_held_s * 1e3


def percentile(found: list[float], part: float) -> float:
    return sorted(found)[min(len(found) - 1, int(len(found) * part))]


def big(xds: str, count: int, rounds: int) -> Result:
    """Endpoints of one service in use are replaced by so many, again and again.

    Returns:
        Milliseconds: `pause` of a thread that spins, and `call` the slowest of a thread that calls, each also as long
        without the update; `total` from the order to its being in use.
    """
    found: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    with ExitStack() as stack:
        mesh = open_mesh(stack, xds)
        mesh.wait_ready("big", timeout_s=30)
        client = stack.enter_context(httpx.Client(transport=mesh.httpx_transport()))

        def weight() -> int:
            state = mesh.view.clusters["big"].states[target]
            found: int = state.endpoint.weight
            return found

        target = next(iter(mesh.view.clusters["big"].states))

        def update() -> float:
            before, start = weight(), time.perf_counter()
            order(xds, do="big", count=count)
            while weight() == before:
                time.sleep(0.0005)
            return (time.perf_counter() - start) * 1e3

        def calls(until: Callable[[], bool]) -> list[float]:
            times = []
            while not until():
                start = time.perf_counter()
                # Of all these endpoints only one can be called, and it is not what this is about.
                assert client.get("http://h0/x").status_code == 200
                times.append((time.perf_counter() - start) * 1e3)
            return times

        update()
        for _ in range(rounds):
            spinner = Spinner()
            spinner.start()
            total = update()
            pause, held = spinner.stop()
            quiet = Spinner()
            quiet.start()
            time.sleep(total / 1e3)
            quiet_pause, quiet_held = quiet.stop()
            note(total=total, pause=pause, held=held, quiet_pause=quiet_pause, quiet_held=quiet_held)
            worker = threading.Thread(target=lambda: note(total_calling=update()))
            worker.start()
            busy = calls(lambda worker=worker: not worker.is_alive())  # type: ignore[misc]
            end = time.monotonic() + total / 1e3
            idle = calls(lambda end=end: time.monotonic() > end)  # type: ignore[misc]
            note(call=max(busy), quiet_call=max(idle))
    return {"count": count, **{name: [round(value, 2) for value in values] for name, values in found.items()}}


def hold(xds: str, features: list[str]) -> Result:
    """Hold what `storm` holds, under another name, until standard input ends; says so with a line."""
    with ExitStack() as stack:
        open_mesh(stack, xds, *features, node=BESIDE).wait_ready("all", timeout_s=30)
        print("ready", flush=True)
        sys.stdin.read()
    return {}


def _counts(xds: str) -> dict[str, Result]:
    return {stream["node"]: stream for stream in order(xds, do="look")}


def storm(xds: str, rate: float, seconds: float, rounds: int, protocol: str, features: list[str]) -> Result:
    """Calls in turns: without updates, with updates to a process beside this one (`hold`), and with updates to this one.

    Args:
        rate: Updates a second; each is about one endpoint of one of the clusters of `all`.
        protocol: `grpc` or `httpx`.

    Returns:
        Rows with times in microseconds; `others` is the CPU that the other threads of this process used during a call, so
        the most that they can have kept it from running: what others on this machine do is not in it.
    """
    with ExitStack() as stack:
        mesh = open_mesh(stack, xds, *features)
        mesh.wait_ready("all", timeout_s=30)
        if protocol == "grpc":
            method: Any = stack.enter_context(mesh.channel("xds:///all")).unary_unary("/s0/Get")

            def call() -> None:
                assert method(b"1", timeout=10)
        else:
            client = stack.enter_context(httpx.Client(transport=mesh.httpx_transport()))

            def call() -> None:
                assert client.get("http://h0/x").status_code == 200

        def times() -> tuple[list[float], list[float], float]:
            clock, process, own = time.perf_counter, time.process_time, time.thread_time
            found, beside, end, cpu = [], [], time.monotonic() + seconds, process()
            while time.monotonic() < end:
                others, start = process() - own(), clock()
                call()
                found.append((clock() - start) * 1e6)
                beside.append((process() - own() - others) * 1e6)
            return found, beside, process() - cpu

        def phase(name: str, node: str) -> Result:
            before, number = _counts(xds), mesh.view.number
            if node:
                order(xds, do="storm", rate=rate, seconds=seconds, node=node)
            found, others, cpu = times()
            after, applied = _counts(xds), mesh.view.number - number
            time.sleep(SETTLED_S)
            result: Result = {
                f"p50_{name}": round(percentile(found, 0.5), 1),
                f"p99_{name}": round(percentile(found, 0.99), 1),
                f"calls_{name}": len(found),
                f"cpu_{name}": round(cpu, 2),
                f"others_p90_{name}": round(percentile(others, 0.9), 1),
                f"others_p99_{name}": round(percentile(others, 0.99), 1),
            }
            if node:
                for key, per_s in (("acknowledged", "updates"), ("responses", "responses")):
                    result[f"{per_s}_{name} per s"] = (after[node][key] - before[node][key]) / seconds
            if name == "busy":
                result["views per s"] = applied / seconds
            return result

        times()
        phases = (
            [("quiet", ""), ("beside", BESIDE), ("busy", MEASURED)]
            if BESIDE in _counts(xds)
            else [("quiet", ""), ("busy", MEASURED)]
        )
        rows: list[Result] = []
        for number in range(rounds):
            found: Result = {}
            for name, node in phases[number % len(phases) :] + phases[: number % len(phases)]:
                found |= phase(name, node)
            rows.append(found)
        return {"rows": rows}


def memory(xds: str, is_meshed: bool, grpc_port: int, http_port: int, services: int) -> Result:
    """Half of the services are called over HTTP, half over gRPC, until each of their ten endpoints has been."""
    from opentelemetry import metrics, trace  # noqa: F401  # an application that measures itself has these anyway

    before = resident_kb()
    half = services // 2
    with ExitStack() as stack:
        if is_meshed:
            mesh = open_mesh(stack, xds)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            client = stack.enter_context(httpx.Client(transport=mesh.httpx_transport()))
            for number in range(half):
                for _ in range(10):
                    assert client.get(f"http://h{number}/x").status_code == 200
                channel = stack.enter_context(mesh.channel(f"xds:///s{half + number}"))
                for _ in range(10):
                    assert channel.unary_unary("/any/Get")(b"1", timeout=10)
        else:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            client = stack.enter_context(httpx.Client(limits=limits))
            for number in range(half):
                for index in range(10):
                    assert client.get(f"http://{address(number * 10 + index)}:{http_port}/x").status_code == 200
                for index in range(10):
                    host = address((half + number) * 10 + index)
                    channel = stack.enter_context(grpc.insecure_channel(f"{host}:{grpc_port}"))
                    assert channel.unary_unary("/any/Get")(b"1", timeout=10)
        assert services * 10 <= ADDRESSES
        return {"before_mb": before / 1024, "rss_mb": resident_kb() / 1024}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
