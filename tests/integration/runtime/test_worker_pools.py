"""Pools of four workers whose parent has used the mesh: nobody hangs, each gets updates, and each has a stream of its own."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshlib.xds.resources import EDS

WORKERS = 4
PATIENCE_S = 90.0

APP = """\
import faulthandler, json, os
import httpx
from meshlib import Mesh

faulthandler.dump_traceback_later(110, exit=True)
mesh = Mesh.connect(os.environ["XDS"], node_id="pool", state_dir="")
client = httpx.Client(transport=mesh.httpx_transport(), timeout=15.0)
waiting = {}


def ask():
    return {"pid": os.getpid(), "text": client.get("http://checkout/").text}


def wsgi(environ, start_response):
    body = json.dumps(ask()).encode()
    start_response("200 OK", [("content-type", "text/plain"), ("content-length", str(len(body)))])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    # Made in the worker: an asyncio client belongs to a loop.
    own = waiting.setdefault("client", httpx.AsyncClient(transport=mesh.async_httpx_transport(), timeout=15.0))
    answer = await own.get("http://checkout/")
    body = json.dumps({"pid": os.getpid(), "text": answer.text}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


ask()  # the parent, before it forks
"""

PROCESSES = """\
import multiprocessing, sys, time
from app import ask, mesh


def work(answers, updated, over):
    answers.put(ask())
    updated.wait(90)
    found = ask()
    while found["text"] != "two":
        time.sleep(0.02)
        found = ask()
    answers.put(found)
    over.wait(90)  # still there, so that the streams can be counted


if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    answers, updated, over = context.Queue(), context.Event(), context.Event()
    workers = [context.Process(target=work, args=(answers, updated, over)) for _ in range(4)]
    for worker in workers:
        worker.start()
    print(*(answers.get(timeout=90)["text"] for _ in workers), flush=True)
    sys.stdin.readline()
    updated.set()
    texts = [answers.get(timeout=90)["text"] for _ in workers]
    while ask()["text"] != "two":
        time.sleep(0.02)  # the parent's stream begins anew with its first use after the fork
    print(*texts, flush=True)
    sys.stdin.readline()
    over.set()
    for worker in workers:
        worker.join(60)
    mesh.close()
    print(*(worker.exitcode for worker in workers), flush=True)
"""

TASKS = """\
import multiprocessing, os, time
from app import ask, mesh


def work(number):
    return ask()


def round(pool):
    # Workers are replaced while tasks go on, by forks of a thread of the pool, as celery's supervisor does.
    found = pool.map(work, range(24), chunksize=1)
    print(len({one["pid"] for one in found}) > 4, *sorted({one["text"] for one in found}), flush=True)


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(4, maxtasksperchild=3) as pool:
        round(pool)
        os.read(0, 1)  # not by sys.stdin: its lock would be held in workers that are forked meanwhile
        # Without a pause the parent would fork all the time, and each fork ends its stream for a moment.
        while ask()["text"] != "two":
            time.sleep(0.05)
        while {one["text"] for one in pool.map(work, range(4), chunksize=1)} != {"two"}:
            time.sleep(0.2)
        round(pool)
        pool.close()
        pool.join()
    mesh.close()
"""


@pytest.fixture
def start(ads: Any, tools: Any, ports: tuple[int, int], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a program beside the module `app`, with the service `checkout` at upstream `one`."""
    ads.put(EDS, tools.load_assignment("checkout", ports[0]))
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "processes.py").write_text(PROCESSES)
    (tmp_path / "tasks.py").write_text(TASKS)
    running: list[subprocess.Popen[str]] = []

    def begin(*command: str, log: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "XDS": ads.address, "PYTHONWARNINGS": "ignore"}
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        running.append(process)
        return process

    yield begin
    for process in running:
        process.terminate()
        try:
            process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def eventually(look: Callable[[], Any], log: Path) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.02)
    return found


def open_streams(ads: Any) -> int:
    return len(ads._streams)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "app"), [("gthread", "wsgi"), ("uvicorn.workers.UvicornWorker", "asgi")])
def test_gunicorn_with_a_preloaded_application(
    kind: str, app: str, ads: Any, tools: Any, ports: tuple[int, int], start: Callable[..., Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ("--preload", "-w", str(WORKERS), "-k", kind, "-b", "127.0.0.1:0", "--graceful-timeout", "1")
    start("-m", "gunicorn", *options, f"app:{app}", log=log)
    url = eventually(lambda: re.search(r"Listening at: (http://\S+)", log.read_text()), log)[1]
    latest: dict[int, str] = {}

    def all_say(text: str) -> bool:
        # A connection each, so that the workers take turns.
        answer = json.loads(httpx.get(url, timeout=20, trust_env=False).text)
        latest[answer["pid"]] = answer["text"]
        return len(latest) == WORKERS and set(latest.values()) == {text}

    eventually(lambda: all_say("one"), log)
    ads.put(EDS, tools.load_assignment("checkout", ports[1]))
    eventually(lambda: all_say("two"), log)
    eventually(lambda: open_streams(ads) == WORKERS + 1, log)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(
    method: str, ads: Any, tools: Any, ports: tuple[int, int], start: Callable[..., Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    program = start("processes.py", method, log=log)
    assert program.stdout.readline().split() == ["one"] * WORKERS, log.read_text()[-5000:]
    ads.put(EDS, tools.load_assignment("checkout", ports[1]))
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline().split() == ["two"] * WORKERS, log.read_text()[-5000:]
    eventually(lambda: open_streams(ads) == WORKERS + 1, log)
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline().split() == ["0"] * WORKERS, log.read_text()[-5000:]


@pytest.mark.slow
def test_a_pool_that_replaces_its_workers_as_celery_does(
    ads: Any, tools: Any, ports: tuple[int, int], start: Callable[..., Any], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    program = start("tasks.py", log=log)
    assert program.stdout.readline().split() == ["True", "one"], log.read_text()[-5000:]
    ads.put(EDS, tools.load_assignment("checkout", ports[1]))
    program.stdin.write("\n")
    program.stdin.flush()
    assert program.stdout.readline().split() == ["True", "two"], log.read_text()[-5000:]
    assert program.wait(60) == 0, log.read_text()[-5000:]
