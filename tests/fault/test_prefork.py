"""A pool of forked workers, as celery makes one, whose parent has used the mesh before: nobody hangs, crashes or goes without."""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

CONFIG = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [shop.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: grpc, protocol: GRPC}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1, ports: {http: %d, grpc: %d}}]
"""
WORKERS = 3
ROUNDS = 4
TASKS = 12
"""Of a round. A worker ends after five, so that later ones are forked by a parent whose threads are at work."""

# A program of its own: what hangs in it ends with it, and it has no threads but those of the mesh and of the pool.
PROGRAM = f"""\
import faulthandler, multiprocessing, os, sys
import httpx
from meshlib import Mesh

faulthandler.dump_traceback_later(150, exit=True)
mesh = Mesh.connect(sys.argv[1], node_id="pool")
client = httpx.Client(transport=mesh.httpx_transport(), timeout=15.0)
channel = mesh.channel("xds:///shop.example.com:81")
unary = channel.unary_unary("/test.Service/Unary")
own = None


def call(number):
    assert client.get(f"http://shop.example.com/{{number}}").text == f"/{{number}}"
    assert unary(b"%d" % number, timeout=15.0) == b"%d" % number


def work(number):
    # What the parent made goes on working, and so does what a worker makes for itself.
    global own
    call(number)
    if own is None:
        own = httpx.Client(transport=mesh.httpx_transport(), timeout=15.0)
    assert own.get("http://shop.example.com/own").text == "/own"
    with mesh.channel("xds:///shop.example.com:81") as fresh:
        assert fresh.unary_unary("/test.Service/Unary")(b"own", timeout=15.0) == b"own"
    return os.getpid()


mesh.wait_ready("shop.example.com:80", "shop.example.com:81", timeout_s=30)
call(0)
pids = set()
for round in range({ROUNDS}):
    with multiprocessing.get_context("fork").Pool({WORKERS}, maxtasksperchild=5) as pool:
        answers = pool.imap_unordered(work, range({TASKS}), chunksize=1)
        # The parent calls while workers come and go.
        for number in range({TASKS}):
            call(number)
        pids.update(answers)
        pool.close()
        pool.join()
    call(0)
assert os.getpid() not in pids
client.close()
channel.close()
mesh.close()
print("workers", len(pids))
"""


def _listen() -> tuple[grpc.Server, int]:
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Unary": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


HTTP = """\
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers and body, written apart, arrive 40 ms apart
    def do_GET(self):
        body = self.path.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
server.daemon_threads = True
print(server.server_port, flush=True)
server.serve_forever()
"""


def _start(*command: str, cwd: Path) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        [sys.executable, *command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.fixture
def xds(tmp_path: Path) -> Iterator[Any]:
    processes = []
    upstream, port = _listen()
    try:
        process, line = _start("-c", HTTP, cwd=tmp_path)
        processes.append(process)
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "shop.yaml").write_text(CONFIG % (int(line), port))
        listen = ("--listen", "127.0.0.1:0", "--secure-listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
        process, line = _start("-m", "xds_server", "serve", "config", "--state-dir", "state", *listen, cwd=tmp_path)
        processes.append(process)
        found = re.search(r"xds=(\S+)", line)
        assert found is not None, line
        yield found[1]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        upstream.stop(0).wait(5)


@pytest.mark.slow
def test_forked_workers_that_come_and_go_call_and_so_does_their_parent(xds: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PROGRAM, xds],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=160,
        check=False,
    )
    assert 0 == done.returncode, done.stderr[-6000:]
    found = re.fullmatch(r"workers (\d+)\n", done.stdout)
    assert found is not None, done.stdout
    # Of each round: those that begin with it; some were replaced in most rounds.
    assert int(found[1]) > ROUNDS * 2
    # What meshlib and grpcio warn of. gRPC's own "skipping fork() handlers" is none of it: it says that the parent was in the
    # middle of a call, which is chance.
    for warning in ("before a fork", "prior to fork", "after fork"):
        assert warning not in done.stderr, done.stderr[-6000:]
