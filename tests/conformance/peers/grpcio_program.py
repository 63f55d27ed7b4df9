"""gRPC's own xDS client as a program: it reads its bootstrap once, so each node is a process.

One JSON command per line comes in, one JSON answer per line goes out.
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_arities import play

TIMEOUT_S = 30.0


class Program:
    def __init__(self) -> None:
        self.channels: dict[str, grpc.Channel] = {}
        self.stopping = threading.Event()
        self.load_thread: threading.Thread | None = None
        self.tally: dict[str, Any] = {}
        self.pending: list[Any] = []

    def call(self, target: str, method: str, metadata: list[list[str]], timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        if target not in self.channels:
            self.channels[target] = grpc.insecure_channel(target)
        function: Any = self.channels[target].unary_unary(method)
        try:
            answer = function(b"", timeout=timeout_s, metadata=[(name, value) for name, value in metadata])
        except grpc.RpcError as error:
            return {"code": error.code().name, "text": error.details() or ""}
        return {"code": "OK", "text": answer.decode()}

    def play(self, calls: list[tuple[str, str, str, float]]) -> dict[str, Any]:
        """Make calls beside each other."""
        for target, *_ in calls:
            self.channels.setdefault(target, grpc.insecure_channel(target))
        with ThreadPoolExecutor(len(calls)) as pool:
            ends = [pool.submit(play, self.channels[target], *call) for target, *call in calls]
            return {"ends": [end.result() for end in ends]}

    def open(self, targets: list[str]) -> dict[str, Any]:
        """Open channels and begin a call on each."""
        for target in targets:
            self.channels[target] = grpc.insecure_channel(target)
            function: Any = self.channels[target].unary_unary("/test.Echo/Call")
            self.pending.append(function.future(b"", timeout=60, wait_for_ready=True))
        return {}

    def many(self, count: int, **options: Any) -> dict[str, Any]:
        """Make calls one after the other and count the versions that answered."""
        tally: dict[str, Any] = {"versions": {}, "failures": []}
        for _ in range(count):
            self._count(tally, self.call(**options))
        return tally

    def load(self, **options: Any) -> dict[str, Any]:
        """Begin calling without pause."""
        self.stopping.clear()
        self.tally = {"versions": {}, "failures": []}

        def work() -> None:
            while not self.stopping.is_set():
                self._count(self.tally, self.call(**options))

        self.load_thread = threading.Thread(target=work, daemon=True)
        self.load_thread.start()
        return {}

    def stop(self) -> dict[str, Any]:
        self.stopping.set()
        assert self.load_thread is not None
        self.load_thread.join()
        return self.tally

    @staticmethod
    def _count(tally: dict[str, Any], answer: dict[str, Any]) -> None:
        if answer["code"] == "OK":
            version = json.loads(answer["text"])["version"]
            tally["versions"][version] = tally["versions"].get(version, 0) + 1
        else:
            tally["failures"].append(f"{answer['code']}: {answer['text']}")


def main() -> None:
    program = Program()
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(program, command.pop("op"))(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
