"""gRPC servers that follow a script which the call itself brings along, and remember what reached them."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import grpc
from peers.upstreams import LOOPBACK

__all__ = ["CASE", "SCRIPT", "GrpcStep", "ScriptedGrpcUpstreams", "Told"]

CASE, SCRIPT = "x-case", "x-script"
PREVIOUS, PUSHBACK = "grpc-previous-rpc-attempts", "grpc-retry-pushback-ms"
_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class GrpcStep:
    """How one attempt is answered.

    Attributes:
        code: Of the status; 0 is OK.
        delay_s: Before the answer.
        pushback: Value of `grpc-retry-pushback-ms` in the trailers; empty: none.
    """

    code: int = 0
    delay_s: float = 0.0
    pushback: str = ""

    def to_json(self) -> list[Any]:
        return [self.code, self.delay_s, self.pushback]


@dataclass(frozen=True, slots=True)
class Told:
    """What the servers heard of one attempt; `at` is monotonic seconds."""

    server: str
    previous: str
    at: float


class ScriptedGrpcUpstreams:
    """Several servers; the n-th attempt of a call meets the n-th step of its script, wherever it comes to."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, list[Told]] = {}
        self._attempts: Counter[str] = Counter()
        self._pool = ThreadPoolExecutor(16)
        self._servers = []
        self.ports: list[int] = []
        for number in range(count):
            server = grpc.server(self._pool, handlers=[_Handler(self, str(number))])
            self.ports.append(server.add_insecure_port(f"{LOOPBACK}:0"))
            server.start()
            self._servers.append(server)

    def take(self, case: str) -> list[Told]:
        """Return what was told of a call's attempts, in the order in which they came."""
        with self._lock:
            return self._seen.pop(case, [])

    def answer(self, server: str, context: grpc.ServicerContext) -> bytes:
        metadata = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        case = metadata.get(CASE, "")
        with self._lock:
            self._seen.setdefault(case, []).append(Told(server, metadata.get(PREVIOUS, ""), time.monotonic()))
            attempt = self._attempts[case]
            self._attempts[case] += 1
        script = json.loads(metadata.get(SCRIPT, "[]"))
        code, delay_s, pushback = script[attempt] if attempt < len(script) else (0, 0.0, "")
        if delay_s:
            time.sleep(delay_s)
        if pushback:
            context.set_trailing_metadata(((PUSHBACK, pushback),))
        if code:
            context.abort(_CODES[code], "as the script says")
        return json.dumps({"version": server}).encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.stop(None).wait()
        self._pool.shutdown()


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, upstreams: ScriptedGrpcUpstreams, name: str) -> None:
        self._upstreams = upstreams
        self._name = name

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._upstreams.answer(self._name, context))
