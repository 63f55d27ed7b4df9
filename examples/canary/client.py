"""The example's client: httpx (sync, async) and gRPC (sync, aio) calls through the mesh, told what to do on stdin.

Each line of stdin is a JSON command, each line of stdout a JSON event; `meshctl demo` drives it so. By hand:

    echo '{"op": "call", "kind": "httpx-sync", "url": "http://checkout.example.com/"}' | python client.py

Commands: `load` (name, kind, url, count, concurrency, headers), `stop` (name), `call` (kind, url, method, headers),
`explain` (url), `quit`. Kinds: httpx-sync, httpx-async, grpc-sync, grpc-aio; a gRPC url is a target, `xds:///my-service`.
"""

import asyncio
import json
import queue
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import httpx

import meshlib
from meshlib.events import AttemptFinished, CertificateRotated, Event, HostEjected

METHOD = "/canary.MyService/Get"
TIMEOUT_S = 15.0
REPORT_S = 0.2
BUCKETS_MS = [*range(1, 50), *range(50, 200, 5), *range(200, 3000, 50)]


class Tally:
    """What one load has seen since the last report."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: Counter[tuple[str, str]] = Counter()
        self.delayed = 0
        self.early = 0
        self.errors: list[str] = []
        self.latency: dict[str, Counter[int]] = {}

    def answered(self, version: str, seconds: float, delayed: bool) -> None:
        with self.lock:
            self.rows[version, "n"] += 1
            if delayed:
                self.delayed += 1
                self.early += seconds < 1.0
            milliseconds = seconds * 1000
            bucket = next((b for b in BUCKETS_MS if milliseconds <= b), BUCKETS_MS[-1])
            self.latency.setdefault(version, Counter())[bucket] += 1

    def failed(self, error: str) -> None:
        with self.lock:
            self.rows["", "failed"] += 1
            if len(self.errors) < 5:
                self.errors.append(error[:500])

    def take(self) -> dict[str, Any]:
        with self.lock:
            result = {
                "versions": {version: n for (version, what), n in self.rows.items() if what == "n"},
                "failed": self.rows["", "failed"],
                "errors": self.errors,
                "delayed": self.delayed,
                "early": self.early,
                "latency": {version: dict(counts) for version, counts in self.latency.items()},
            }
            self.rows, self.errors, self.latency = Counter(), [], {}
            self.delayed = self.early = 0
            return result


class Load:
    """One stream of calls of one kind."""

    def __init__(self, name: str, count: int | None, tally: Tally) -> None:
        self.name = name
        self.tally = tally
        self.stopping = threading.Event()
        self._left = count
        self._lock = threading.Lock()

    def take_one(self) -> bool:
        """Whether another call is to be made."""
        if self.stopping.is_set():
            return False
        if self._left is None:
            return True
        with self._lock:
            self._left -= 1
            return self._left >= 0


def send(event: dict[str, Any], lock: threading.Lock = threading.Lock()) -> None:  # noqa: B008  # one lock for stdout
    with lock:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()


def mesh_flag(answer: Any) -> str:
    record = answer.extensions.get("mesh")
    return record.flag if record is not None else ""


class Client:
    def __init__(self, mesh: meshlib.Mesh) -> None:
        self.mesh = mesh
        self.loads: dict[str, Load] = {}
        self.threads: list[threading.Thread] = []
        self.counts: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        self.ejections: Counter[str] = Counter()
        self.expires_at = 0.0
        self.http = httpx.Client(transport=mesh.httpx_transport(), timeout=TIMEOUT_S)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="aio", daemon=True).start()
        self.ahttp = httpx.AsyncClient(transport=mesh.async_httpx_transport(), timeout=TIMEOUT_S)
        self.grpc: dict[str, Any] = {}
        self.agrpc: dict[str, Any] = {}
        mesh.add_hook(self.on_event)

    def on_event(self, event: Event) -> None:
        match event:
            case AttemptFinished() if event.will_retry:
                self.retries[event.cluster] += 1
            case HostEjected():
                self.ejections[event.cluster] += 1
            case CertificateRotated():
                self.counts["rotations"] += 1
                self.expires_at = event.expires_at

    # --- one call of each kind: (version, was delayed by the mesh)

    def httpx_sync(self, url: str, method: str, headers: dict[str, str]) -> tuple[str, bool]:
        answer = self.http.request(method, url, headers=headers)
        answer.raise_for_status()
        return answer.json()["version"], "DI" in mesh_flag(answer)

    async def httpx_async(self, url: str, method: str, headers: dict[str, str]) -> tuple[str, bool]:
        answer = await self.ahttp.request(method, url, headers=headers)
        answer.raise_for_status()
        return answer.json()["version"], "DI" in mesh_flag(answer)

    def grpc_sync(self, url: str, method: str, headers: dict[str, str]) -> tuple[str, bool]:
        if url not in self.grpc:
            self.grpc[url] = self.mesh.channel(url).unary_unary(METHOD)
        answer = self.grpc[url](b"{}", timeout=TIMEOUT_S, metadata=tuple(headers.items()))
        return json.loads(answer)["version"], False

    async def grpc_aio(self, url: str, method: str, headers: dict[str, str]) -> tuple[str, bool]:
        if url not in self.agrpc:
            self.agrpc[url] = self.mesh.aio_channel(url).unary_unary(METHOD)
        answer = await self.agrpc[url](b"{}", timeout=TIMEOUT_S, metadata=tuple(headers.items()))
        return json.loads(answer)["version"], False

    def on_loop(self, kind: str, *args: Any) -> Any:
        function = self.httpx_async if kind == "httpx-async" else self.grpc_aio
        return asyncio.run_coroutine_threadsafe(function(*args), self.loop).result()

    def once(self, kind: str) -> Callable[..., tuple[str, bool]]:
        match kind:
            case "httpx-sync":
                return self.httpx_sync
            case "grpc-sync":
                return self.grpc_sync
            case "httpx-async" | "grpc-aio":
                return lambda *args: self.on_loop(kind, *args)
            case _:
                raise ValueError(f"unknown kind {kind!r}")

    # --- commands

    def load(
        self,
        *,
        name: str,
        kind: str,
        url: str,
        count: int | None = None,
        concurrency: int = 4,
        method: str = "GET",
        headers: dict[str, str] | None = None,
    ) -> None:
        load = self.loads[name] = Load(name, count, Tally())
        arguments = (url, method, headers or {})
        if kind in ("httpx-sync", "grpc-sync"):
            function = self.once(kind)
            workers = [
                threading.Thread(target=self.work, args=(load, function, arguments), daemon=True)
                for _ in range(concurrency)
            ]
            for worker in workers:
                worker.start()

            def wait() -> None:
                for worker in workers:
                    worker.join()
        else:
            function = self.httpx_async if kind == "httpx-async" else self.grpc_aio
            future = asyncio.run_coroutine_threadsafe(
                self.work_async(load, function, arguments, concurrency), self.loop
            )
            wait = future.result

        def finish() -> None:
            try:
                wait()
            except Exception as error:  # a fault of this program: whoever drives it must not wait for the end
                send({"event": "error", "text": f"{type(error).__name__}: {error}"})
                raise
            self.report(load)
            del self.loads[name]
            send({"event": "done", "name": name})

        thread = threading.Thread(target=finish, daemon=True)
        self.threads.append(thread)
        thread.start()

    @staticmethod
    def work(load: Load, function: Any, arguments: Any) -> None:
        while load.take_one():
            start = time.monotonic()
            try:
                version, delayed = function(*arguments)
            except (httpx.HTTPError, grpc.RpcError) as error:
                load.tally.failed(f"{type(error).__name__}: {error}")
                time.sleep(0.01)
            else:
                load.tally.answered(version, time.monotonic() - start, delayed)

    @staticmethod
    async def work_async(load: Load, function: Any, arguments: Any, concurrency: int) -> None:
        async def worker() -> None:
            while load.take_one():
                start = time.monotonic()
                try:
                    version, delayed = await function(*arguments)
                except (httpx.HTTPError, grpc.RpcError) as error:
                    load.tally.failed(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(0.01)
                else:
                    load.tally.answered(version, time.monotonic() - start, delayed)

        await asyncio.gather(*(worker() for _ in range(concurrency)))

    def report(self, load: Load) -> None:
        send({"event": "counts", "name": load.name, **load.tally.take()})

    def report_forever(self) -> None:
        while True:
            time.sleep(REPORT_S)
            for load in list(self.loads.values()):
                self.report(load)
            send(
                {
                    "event": "mesh",
                    "retries": dict(self.retries),
                    "ejections": dict(self.ejections),
                    "expires_at": self.expires_at,
                    **self.counts,
                }
            )

    def call(self, *, kind: str, url: str, method: str = "GET", headers: dict[str, str] | None = None) -> None:
        """Make one call and tell what came of it: `status` is the HTTP status or the name of the gRPC code."""
        answer: dict[str, Any] = {"event": "answer", "kind": kind, "url": url, "method": method}
        try:
            version, _ = self.once(kind)(url, method, headers or {})
            answer |= {"status": "OK" if kind.startswith("grpc") else 200, "version": version}
        except httpx.HTTPStatusError as error:
            answer |= {"status": error.response.status_code, "text": error.response.text[:200]}
        except grpc.RpcError as error:
            answer |= {"status": error.code().name, "text": (error.details() or "")[:500]}
        except httpx.HTTPError as error:
            answer |= {"status": type(error).__name__, "text": str(error)[:500]}
        send(answer)

    def explain(self, *, url: str, method: str = "GET") -> None:
        send({"event": "explanation", "url": url, **self.mesh.explain(method, url).to_dict()})

    def close(self) -> None:
        for load in list(self.loads.values()):
            load.stopping.set()
        for thread in self.threads:
            thread.join(timeout=5)
        self.http.close()
        asyncio.run_coroutine_threadsafe(self.ahttp.aclose(), self.loop).result(timeout=5)
        self.loop.call_soon_threadsafe(self.loop.stop)


def main() -> None:
    commands: queue.Queue[dict[str, Any]] = queue.Queue()
    with meshlib.Mesh.from_env() as mesh:
        client = Client(mesh)
        threading.Thread(target=client.report_forever, daemon=True).start()

        def read() -> None:
            for line in sys.stdin:
                commands.put(json.loads(line))
            commands.put({"op": "quit"})

        threading.Thread(target=read, daemon=True).start()
        send({"event": "ready"})
        while True:
            command = commands.get()
            match command.pop("op"):
                case "load":
                    client.load(**command)
                case "stop":
                    if (load := client.loads.get(command["name"])) is not None:
                        load.stopping.set()
                case "call":
                    client.call(**command)
                case "explain":
                    client.explain(**command)
                case "quit":
                    client.close()
                    return
                case unknown:
                    send({"event": "error", "text": f"unknown op {unknown!r}"})


if __name__ == "__main__":
    main()
