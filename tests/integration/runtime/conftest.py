"""A management server that says what it is told to, over real gRPC on loopback."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from peers.ports import free_port

from meshlib.protos import from_dict, message_class, to_any
from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS

DELTA = "envoy.service.discovery.v3.DeltaDiscovery"
METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
NAMES = {
    LDS: "envoy.config.listener.v3.Listener",
    RDS: "envoy.config.route.v3.RouteConfiguration",
    CDS: "envoy.config.cluster.v3.Cluster",
    EDS: "envoy.config.endpoint.v3.ClusterLoadAssignment",
    SDS: "envoy.extensions.transport_sockets.tls.v3.Secret",
}


class AdsServer:
    """Serves a table of resources: each request of a type is answered when its list or the table's version changed.

    Attributes:
        requests: Every request, in order: (number of the stream, message).
        metadata: Of every stream.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[int, Any]] = []
        self.metadata: list[dict[str, str]] = []
        self._resources: dict[str, dict[str, bytes]] = {type_url: {} for type_url in NAMES}
        self._version = dict.fromkeys(NAMES, 0)
        self._streams: dict[int, SimpleQueue[str | None]] = {}
        self._cut_after: int | None = None
        self._lock = threading.Condition()
        self._count = 0
        self.port = free_port()  # of its own: it goes away and comes back
        self.credentials: grpc.ServerCredentials | None = None
        self.more_handlers: tuple[grpc.GenericRpcHandler, ...] = ()
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        handler = grpc.method_handlers_generic_handler(
            METHOD.split("/")[1],
            {name: grpc.stream_stream_rpc_method_handler(method) for name, method in self._methods().items()},
        )
        self._server = grpc.server(
            ThreadPoolExecutor(16),
            options=(
                ("grpc.so_reuseport", 0),
                ("grpc.enable_http_proxy", 0),
                # Tests have clients whose keepalive is faster than a server would stand.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
            ),
        )
        self._server.add_generic_rpc_handlers((handler, *self.more_handlers))
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, self.credentials)
        self._server.start()

    def _methods(self) -> dict[str, Any]:
        return {"StreamAggregatedResources": self._stream}

    def stop(self) -> None:
        with self._lock:
            for queue in self._streams.values():
                queue.put(None)
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def put(self, type_url: str, *resources: dict[str, Any] | bytes, **named: bytes) -> None:
        """Add or replace resources of a type, and push them."""
        with self._lock:
            for resource in resources:
                assert isinstance(resource, dict)
                key = "cluster_name" if type_url == EDS else "name"
                message = from_dict(NAMES[type_url], resource)
                self._resources[type_url][resource[key]] = message.SerializeToString(deterministic=True)
            self._resources[type_url].update(named)
            self._push(type_url)

    def remove(self, type_url: str, *names: str) -> None:
        with self._lock:
            for name in names:
                del self._resources[type_url][name]
            self._push(type_url)

    def cut_after_responses(self, count: int) -> None:
        """End the first stream after this many responses, the second after twice as many, and so on."""
        self._cut_after = count

    def wait_for(self, look: Callable[[], bool], timeout_s: float = 40.0) -> None:
        """Wait until something holds of what was received."""
        with self._lock:
            assert self._lock.wait_for(look, timeout_s), [str(request) for _, request in self.requests]

    def of_type(self, type_url: str, stream: int | None = None) -> list[Any]:
        return [
            request for number, request in self.requests if request.type_url == type_url and stream in (None, number)
        ]

    def _push(self, type_url: str) -> None:
        self._version[type_url] += 1
        for queue in self._streams.values():
            queue.put(type_url)

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        queue: SimpleQueue[str | None] = SimpleQueue()
        with self._lock:
            self._count += 1
            number = self._count
            self._streams[number] = queue
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
        names: dict[str, frozenset[str]] = {}

        def read() -> None:
            try:
                for data in messages:
                    request = message_class("envoy.service.discovery.v3.DiscoveryRequest").FromString(data)
                    with self._lock:
                        self.requests.append((number, request))
                        self._lock.notify_all()
                    wanted = frozenset(request.resource_names)
                    if wanted != names.get(request.type_url):
                        names[request.type_url] = wanted
                        queue.put(request.type_url)
            except grpc.RpcError:
                pass
            queue.put(None)

        threading.Thread(target=read, daemon=True).start()
        sent = 0
        while (type_url := queue.get()) is not None:
            wanted = names.get(type_url, frozenset())
            if not wanted:
                continue
            sent += 1
            with self._lock:
                found = [(type_url, body) for name, body in self._resources[type_url].items() if name in wanted]
                version = str(self._version[type_url])
            response = message_class("envoy.service.discovery.v3.DiscoveryResponse")(
                type_url=type_url, version_info=version, nonce=f"{number}-{sent}"
            )
            for kind, body in found:
                response.resources.add(type_url=kind, value=body)
            yield response.SerializeToString()
            if self._cut_after is not None and sent == self._cut_after * number:
                break
        with self._lock:
            self._streams.pop(number, None)


class DeltaAdsServer(AdsServer):
    """The same over the incremental variant, which is the only one it knows.

    The version of a resource is made of its content, so it is the same after a restart.

    Attributes:
        responses: Every response, in order: (number of the stream, message).
    """

    def __init__(self) -> None:
        super().__init__()
        self.responses: list[tuple[int, Any]] = []

    def _methods(self) -> dict[str, Any]:
        return {"DeltaAggregatedResources": self._delta}

    def resources_sent(self, type_url: str, stream: int | None = None) -> list[str]:
        """Return the names of the resources sent, in order."""
        return [
            resource.name
            for number, response in self.responses
            if response.type_url == type_url and stream in (None, number)
            for resource in response.resources
        ]

    def _delta(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        queue: SimpleQueue[Any] = SimpleQueue()
        with self._lock:
            self._count += 1
            number = self._count
            self._streams[number] = queue

        def read() -> None:
            try:
                for data in messages:
                    request = message_class(f"{DELTA}Request").FromString(data)
                    with self._lock:
                        self.requests.append((number, request))
                        self._lock.notify_all()
                    queue.put(request)
            except grpc.RpcError:
                pass
            queue.put(None)

        threading.Thread(target=read, daemon=True).start()
        names: dict[str, set[str]] = {}
        known: dict[str, dict[str, str]] = {}
        sent = 0
        while (item := queue.get()) is not None:
            type_url = item if isinstance(item, str) else item.type_url
            if not isinstance(item, str):
                held = known.setdefault(type_url, {})
                held.update(item.initial_resource_versions)
                for name in item.resource_names_subscribe:
                    if name in names.setdefault(type_url, set()):
                        held.pop(name, None)
                    names[type_url].add(name)
                for name in item.resource_names_unsubscribe:
                    names[type_url].discard(name)
                    held.pop(name, None)
            response = self._news(type_url, names.get(type_url, set()), known.get(type_url, {}))
            if response is None:
                continue
            sent += 1
            response.nonce = f"{number}-{sent}"
            with self._lock:
                self.responses.append((number, response))
                self._lock.notify_all()
            yield response.SerializeToString()
            if self._cut_after is not None and sent == self._cut_after * number:
                break
        with self._lock:
            self._streams.pop(number, None)

    def _news(self, type_url: str, names: set[str], known: dict[str, str]) -> Any:
        response = message_class(f"{DELTA}Response")(type_url=type_url)
        with self._lock:
            for name in sorted(names):
                body = self._resources[type_url].get(name)
                version = "" if body is None else sha256(body).hexdigest()[:8]
                if known.get(name) == version:
                    continue
                known[name] = version
                if body is None:
                    response.removed_resources.append(name)
                else:
                    wrapper = response.resources.add(name=name, version=version)
                    wrapper.resource.type_url, wrapper.resource.value = type_url, body
        return response if response.resources or response.removed_resources else None


def listener(name: str, routes: str) -> dict[str, Any]:
    return {
        "name": name,
        "api_listener": {
            "api_listener": {
                "@type": HCM,
                "rds": {"config_source": {"ads": {}}, "route_config_name": routes},
                "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
            }
        },
    }


def route_config(name: str, cluster: str) -> dict[str, Any]:
    return {
        "name": name,
        "virtual_hosts": [
            {"name": "host", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
        ],
    }


def eds_cluster(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}}},
        "connect_timeout": "10s",
    }


def load_assignment(name: str, *ports: int) -> dict[str, Any]:
    return {
        "cluster_name": name,
        "endpoints": [
            {
                "locality": {"region": "here"},
                "load_balancing_weight": 1,
                "lb_endpoints": [
                    {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
                    for port in ports
                ],
            }
        ],
    }


def put_service(server: AdsServer, name: str, *ports: int) -> None:
    """Put all resources of a service whose cluster bears its name."""
    server.put(LDS, listener(name, name))
    server.put(RDS, route_config(name, name))
    server.put(CDS, eds_cluster(name))
    server.put(EDS, load_assignment(name, *ports))


@pytest.fixture
def ads() -> Iterator[AdsServer]:
    """A running server with the service `checkout` at port 1."""
    server = AdsServer()
    server.start()
    put_service(server, "checkout", 1)
    yield server
    server.stop()


@pytest.fixture
def delta_ads() -> Iterator[DeltaAdsServer]:
    """As `ads`, over the incremental variant."""
    server = DeltaAdsServer()
    server.start()
    put_service(server, "checkout", 1)
    yield server
    server.stop()


class Tools:
    """What tests import from here: pytest's importlib mode has no test packages."""

    listener = staticmethod(listener)
    route_config = staticmethod(route_config)
    eds_cluster = staticmethod(eds_cluster)
    load_assignment = staticmethod(load_assignment)
    put_service = staticmethod(put_service)
    to_any = staticmethod(to_any)


@pytest.fixture
def tools() -> type[Tools]:
    return Tools


class Upstream:
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else headers and body, written apart, arrive 40 ms apart

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Of two HTTP upstreams, `one` and `two`."""
    found = (Upstream("one"), Upstream("two"))
    yield found[0].port, found[1].port
    for upstream in found:
        upstream.close()


@pytest.fixture
def forking() -> Callable[..., Any]:
    """`forking.py` as a process: it ends, or is ended, with the block."""

    @contextmanager
    def run(*arguments: str) -> Iterator[subprocess.Popen[str]]:
        command = [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            str(Path(__file__).with_name("forking.py")),
            *arguments,
        ]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload]
        try:
            yield process
            process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return run
