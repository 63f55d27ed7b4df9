"""Celery itself: a prefork pool of four children whose parent has used the mesh, with tasks that call over httpx and gRPC.

The broker is a folder, so nothing else has to run. Nobody hangs, each child gets updates and has a stream of its own,
and a warm shutdown lets tasks end.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshlib.xds.resources import CDS, EDS, LDS, RDS

celery = pytest.importorskip("celery")

CHILDREN = 4
PATIENCE_S = 90.0
ONE, TWO = ("one", "one"), ("two", "two")

CONFIG = """\
from pathlib import Path

folder = Path(__file__).parent
broker_url = "filesystem://"
broker_transport_options = {
    "data_folder_in": str(folder / "queue"),
    "data_folder_out": str(folder / "queue"),
    "control_folder": str(folder / "control"),
    "polling_interval": 0.02,
}
task_ignore_result = True
worker_prefetch_multiplier = 1
worker_hijack_root_logger = False
broker_connection_retry_on_startup = True
"""

TASKS = """\
import faulthandler, os, time
import httpx
from celery import Celery
from meshlib import Mesh

faulthandler.dump_traceback_later(110, exit=True)
mesh = Mesh.connect(os.environ["XDS"], node_id="celery", state_dir="")
client = httpx.Client(transport=mesh.httpx_transport(), timeout=15.0)
channel = mesh.channel("xds:///greeter")
say = channel.unary_unary("/test.Greeter/Say")

app = Celery("tasks")
app.config_from_object("celeryconfig")


def ask():
    return client.get("http://checkout/").text, say(b"", timeout=15.0).decode()


@app.task
def work(number, seconds):
    open(f"results/{number}.begun", "w").close()
    time.sleep(seconds)
    with open(f"results/{number}.part", "w") as file:
        print(os.getpid(), *ask(), file=file)
    os.rename(f"results/{number}.part", f"results/{number}")


print(*ask(), flush=True)  # the parent, before it forks
"""


class Greeter:
    """A gRPC server that answers with its name."""

    def __init__(self, name: str) -> None:
        handlers = {"Say": grpc.unary_unary_rpc_method_handler(lambda request, context: name.encode())}
        self._grpc = grpc.server(futures.ThreadPoolExecutor(8))
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Greeter", handlers),))
        self.port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()

    def stop(self) -> None:
        self._grpc.stop(0).wait(5)


@pytest.fixture
def serve(ads: Any, tools: Any, ports: tuple[int, int]) -> Iterator[Callable[[int], None]]:
    """Serve `checkout` over HTTP and `greeter` over gRPC, both at their first or second upstream."""
    greeters = (Greeter("one"), Greeter("two"))
    for name in ("checkout", "greeter"):
        ads.put(LDS, tools.listener(name, name))
        ads.put(RDS, tools.route_config(name, name))
        ads.put(CDS, tools.eds_cluster(name))

    def put(number: int) -> None:
        assignments = (
            tools.load_assignment("checkout", ports[number]),
            tools.load_assignment("greeter", greeters[number].port),
        )
        ads.put(EDS, *assignments)

    put(0)
    yield put
    for greeter in greeters:
        greeter.stop()


class Worker:
    """A celery worker, and who sends it tasks.

    Attributes:
        count: Of tasks sent.
    """

    def __init__(self, folder: Path, ads: Any, *options: str) -> None:
        for name in ("outbox", "queue", "results", "control"):
            (folder / name).mkdir()
        self._folder = folder
        self.count = 0
        (folder / "celeryconfig.py").write_text(CONFIG)
        (folder / "tasks.py").write_text(TASKS)
        self.log = folder / "log"
        command = ("-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-c", str(CHILDREN), "-l", "info")
        quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *quiet, *options],
                cwd=folder,
                env={**os.environ, "XDS": ads.address, "PYTHONWARNINGS": "ignore"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._app = celery.Celery("sender", set_as_current=False)
        folders = {"data_folder_in": "outbox", "data_folder_out": "outbox", "control_folder": "control"}
        options_of_broker = {name: str(folder / place) for name, place in folders.items()}
        self._app.conf.update(broker_url="filesystem://", broker_transport_options=options_of_broker)

    def send(self, seconds: float) -> Path:
        """Send a task; returns where its result will be."""
        self.count += 1
        self._app.send_task("tasks.work", (self.count, seconds))
        # The worker must not find a message that is still being written: it would not survive that.
        for message in (self._folder / "outbox").iterdir():
            message.rename(self._folder / "queue" / message.name)
        return self._folder / "results" / str(self.count)

    def get(self, result: Path) -> tuple[int, tuple[str, ...]]:
        """Return which process did a task, and what it was answered over HTTP and gRPC."""
        self.wait(result.exists)
        pid, *texts = result.read_text().split()
        return int(pid), tuple(texts)

    def run(self, count: int) -> list[tuple[int, tuple[str, ...]]]:
        """Have tasks done."""
        return [self.get(result) for result in [self.send(0.02) for _ in range(count)]]

    def wait(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < deadline, self.log.read_text()[-5000:]
            assert self.process.poll() is None, self.log.read_text()[-5000:]
            time.sleep(0.02)

    def wait_until_each_says(self, answers: tuple[str, str]) -> None:
        """Have tasks done until every child has answered so last."""
        latest: dict[int, tuple[str, ...]] = {}

        def all_say() -> bool:
            latest.update(self.run(CHILDREN))
            return len(latest) == CHILDREN and set(latest.values()) == {answers}

        self.wait(all_say)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


@pytest.fixture
def start(tmp_path: Path, ads: Any) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def begin(*options: str) -> Worker:
        workers.append(Worker(tmp_path, ads, *options))
        return workers[-1]

    yield begin
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait(10)


def open_streams(ads: Any) -> int:
    return len(ads._streams)


@pytest.mark.slow
def test_children_get_updates_over_streams_of_their_own_and_a_warm_shutdown_lets_tasks_end(
    serve: Callable[[int], None], start: Callable[..., Worker], ads: Any
) -> None:
    """1. All four answer. 2. An update reaches all. 3. A stream each, and the parent's. 4. SIGTERM during a task."""
    worker = start()
    worker.wait_until_each_says(ONE)
    serve(1)
    worker.wait_until_each_says(TWO)
    ads.wait_for(lambda: open_streams(ads) == CHILDREN + 1, 60)
    results = [worker.send(0.5) for _ in range(CHILDREN)]
    worker.wait(lambda: all(result.with_suffix(".begun").exists() for result in results))
    assert worker.stop() == 0, worker.log.read_text()[-5000:]
    done = [result.read_text().split() for result in results]  # what was begun has been ended
    assert {TWO} == {tuple(texts) for _, *texts in done}
    ads.wait_for(lambda: open_streams(ads) == 0, 60)
    log = worker.log.read_text()
    assert "Warm shutdown" in log
    assert "Traceback" not in log, log[-5000:]


@pytest.mark.skipif("MESHLIB_SOAK_S" not in os.environ, reason="belongs to `make soak`")
def test_children_that_are_replaced_while_others_work_call_too(
    serve: Callable[[int], None], start: Callable[..., Worker]
) -> None:
    """Each child does three tasks; the parent forks the next ones while its own stream and the others' go on."""
    worker = start("--max-tasks-per-child", "3")
    found = worker.run(8 * CHILDREN)
    assert {ONE} == {texts for _, texts in found}
    assert len({pid for pid, _ in found}) >= 2 * CHILDREN
    serve(1)
    latest: list[tuple[str, ...]] = []

    def has_new() -> bool:
        latest[:] = [texts for _, texts in worker.run(2 * CHILDREN)]
        return set(latest) == {TWO}

    worker.wait(has_new)
    assert worker.stop() == 0, worker.log.read_text()[-5000:]
    assert "Traceback" not in worker.log.read_text()
