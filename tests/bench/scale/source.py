"""A management server for the scale rows, in a process of its own: `python source.py GRPC_PORT HTTP_PORT [CLUSTERS]`.

It knows its resources as bytes, those of a storm too, and sends what it is asked for, so that what is measured is the client;
both variants of the protocol. `/bench.Source/Do` takes orders as JSON. It prints its port and ends with its standard input.
"""

import json
import sys
import threading
import time
from collections.abc import Collection, Iterator
from concurrent import futures
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc

sys.path.append(str(Path(__file__).parents[1]))

from meshlib.protos import message_class
from scale.resources import CDS, EDS, LDS, RDS, big, small, world

SERVICE = "envoy.service.discovery.v3"
FORMS = 7
"""Of each service's endpoints, which differ in a weight."""
TICK_S = 0.01
"""Changes of a storm are made so many at a time as belong to a tick. Clients cannot tell: what changes while a response is under
way goes into the next one. A thousand times a second this process would take a core away from who is measured."""
TYPES = (LDS, CDS, RDS, EDS)


class Stream:
    """What one client has subscribed to, and how it is answered.

    As `xds-server` and go-control-plane do it, there is one response of a type under way at a time: what changes before it
    is acknowledged goes into the next one.
    """

    def __init__(self, source: "Source", *, is_delta: bool) -> None:
        self._source = source
        self._is_delta = is_delta
        self.names: dict[str, frozenset[str]] = dict.fromkeys(TYPES, frozenset())
        self.answers: SimpleQueue[bytes | None] = SimpleQueue()
        self.responses = self.acknowledged = 0
        self.node = ""
        self._sent = dict.fromkeys(TYPES, 0)  # resources under way
        self._nonces = dict.fromkeys(TYPES, "")
        self._due: dict[str, set[str]] = {kind: set() for kind in TYPES}
        prefix = "Delta" if is_delta else ""
        self._request = message_class(f"{SERVICE}.{prefix}DiscoveryRequest")
        self._response = message_class(f"{SERVICE}.{prefix}DiscoveryResponse")

    def serve(self, requests: Iterator[bytes]) -> Iterator[bytes]:
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()
        while (answer := self.answers.get()) is not None:
            yield answer

    def _read(self, requests: Iterator[bytes]) -> None:
        try:
            for data in requests:
                self._take(self._request.FromString(data))
        except grpc.RpcError:
            pass  # The client is gone.
        finally:
            self._source.drop(self)
            self.answers.put(None)

    def _take(self, request: Any) -> None:
        kind = request.type_url
        self.node = self.node or request.node.id
        if request.error_detail.message:
            print(request.error_detail.message, file=sys.stderr, flush=True)
        before = self.names[kind]
        if self._is_delta:
            added = frozenset(request.resource_names_subscribe)
            now = (before | added) - frozenset(request.resource_names_unsubscribe)
        else:
            now = frozenset(request.resource_names)
            added = now - before
        with self._source.lock:
            self.names[kind] = now
            if self._nonces[kind] and request.response_nonce == self._nonces[kind]:
                self._nonces[kind] = ""
                self.acknowledged += self._sent[kind]
            self.change(kind, added)

    def change(self, kind: str, names: Collection[str]) -> None:
        """Have resources sent, as soon as the response before is acknowledged; the source's lock is held."""
        due = self._due[kind]
        due.update(names)
        if not due or self._nonces[kind]:
            return
        # Where leaving something out would mean that it is gone, everything goes again.
        sent = due if self._is_delta or kind in (RDS, EDS) else self.names[kind]
        self._due[kind] = set()
        self.responses += 1
        self._nonces[kind], self._sent[kind] = str(self.responses), len(sent)
        response = self._response(type_url=kind, nonce=self._nonces[kind])
        table = self._source.resources[kind]
        if self._is_delta:
            for name in sorted(sent & table.keys()):
                resource = response.resources.add(name=name, version=str(self._source.version))
                resource.resource.type_url, resource.resource.value = kind, table[name]
            response.removed_resources.extend(sent - table.keys())
        else:
            response.version_info = str(self._source.version)
            for name in sorted(sent & table.keys()):
                response.resources.add(type_url=kind, value=table[name])
        self.answers.put(response.SerializeToString())


class Source:
    """All resources, and who listens."""

    def __init__(self, grpc_port: int, http_port: int, clusters: int) -> None:
        self._http_port = http_port
        self.resources = world(grpc_port, http_port, clusters)
        self.lock = threading.Lock()
        self.version = 1
        self._streams: list[Stream] = []
        self._generation = 1
        self._forms = [
            (name, [small(name, grpc_port, 1 + form) for form in range(FORMS)])
            for name in (f"s{number}" for number in range(clusters))
        ]

    def stream(self, requests: Iterator[bytes], *, is_delta: bool) -> Iterator[bytes]:
        made = Stream(self, is_delta=is_delta)
        with self.lock:
            self._streams.append(made)
        return made.serve(requests)

    def drop(self, stream: Stream) -> None:
        with self.lock:
            self._streams.remove(stream)

    def _put(self, kind: str, name: str, body: bytes, node: str = "") -> None:
        """Have a new form of a resource; with a node that client alone is told."""
        with self.lock:
            self.resources[kind][name] = body
            self.version += 1
            for stream in self._streams:
                if name in stream.names[kind] and (not node or stream.node == node):
                    stream.change(kind, (name,))

    # Orders.

    def do(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """Carry an order out; returns what each stream is subscribed to."""
        match order.pop("do"):
            case "big":
                self._generation += 1
                self._put(EDS, "big", big(order["count"], self._http_port, self._generation))
            case "storm":
                threading.Thread(target=self._storm, kwargs=order, daemon=True).start()
        with self.lock:
            return [
                {
                    "node": stream.node,
                    "acknowledged": stream.acknowledged,
                    "responses": stream.responses,
                    "names": {kind.rpartition(".")[2]: len(names) for kind, names in stream.names.items()},
                }
                for stream in self._streams
            ]

    def _storm(self, rate: float, seconds: float, node: str) -> None:
        start, done = time.monotonic(), 0
        while done < int(rate * seconds):
            time.sleep(TICK_S)
            due = min(int(rate * seconds), int((time.monotonic() - start) * rate))
            for number in range(done, due):
                self._generation += 1
                name, forms = self._forms[number % len(self._forms)]
                self._put(EDS, name, forms[self._generation % FORMS], node)
            done = due


def main() -> None:
    source = Source(int(sys.argv[1]), int(sys.argv[2]), int((*sys.argv, 1000)[3]))
    discovery = f"{SERVICE}.AggregatedDiscoveryService"
    handlers = {
        discovery: {
            f"{variant}AggregatedResources": grpc.stream_stream_rpc_method_handler(
                lambda requests, context, is_delta=variant == "Delta": source.stream(requests, is_delta=is_delta)
            )
            for variant in ("Stream", "Delta")
        },
        "bench.Source": {
            "Do": grpc.unary_unary_rpc_method_handler(
                lambda request, context: json.dumps(source.do(json.loads(request))).encode()
            )
        },
    }
    server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items()]
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0).wait(5)


if __name__ == "__main__":
    main()
