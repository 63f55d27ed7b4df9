"""A control plane and a management server in memory, on a clock moved by hand, over both variants of the protocol."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import pytest

from meshlib.events import Event
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Snapshot, TargetConfig
from meshlib.protos import from_dict, message_class
from meshlib.runtime.ads import StreamEvents
from meshlib.runtime.control import ControlPlane
from meshlib.testing import FakeClock, SeededRng
from meshlib.xds.bootstrap import ServerConfig
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.resources import CDS, EDS, LDS, RDS, RESOURCE_WRAPPER

PREFIX = "envoy.service.discovery.v3"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
TYPES = (LDS, RDS, CDS, EDS)


@dataclass(eq=False)
class Stream:
    """The server's side of a stream, and what the client holds of it.

    Attributes:
        requests: Every message taken, in order.
        sent: Number of responses.
    """

    server: "Server"
    events: StreamEvents
    is_delta: bool
    requests: list[Any] = field(default_factory=list)
    sent: int = 0
    is_open: bool = True
    may_send: bool = True
    inbox: list[bytes] = field(default_factory=list)
    nonce: dict[str, str] = field(default_factory=dict)
    names: dict[str, set[str]] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)

    def send(self, data: bytes) -> None:
        self.inbox.append(data)

    def close(self) -> None:
        self.is_open = False

    def end(self, reason: str = "UNAVAILABLE: went away") -> None:
        if self.is_open:
            self.is_open = False
            self.events.ended(reason)

    def of_type(self, type_url: str) -> list[Any]:
        return [request for request in self.requests if request.type_url == type_url]

    # The server's work.

    def take(self) -> bool:
        """Take one request off the wire."""
        if not (self.is_open and self.inbox) or self.server.mood == "black hole":
            return False
        message = message_class(f"{PREFIX}.{'Delta' if self.is_delta else ''}DiscoveryRequest").FromString(
            self.inbox.pop(0)
        )
        self.requests.append(message)
        self.events.sent()
        (self._take_delta if self.is_delta else self._take_sotw)(message)
        return True

    def _take_sotw(self, request: Any) -> None:
        kind, names = request.type_url, set(request.resource_names)
        if request.response_nonce != self.nonce.get(kind, ""):
            return
        if names != self.names.get(kind):
            self.known.pop(kind, None)
        self.names[kind] = names

    def _take_delta(self, request: Any) -> None:
        kind = request.type_url
        known, names = self.known.setdefault(kind, {}), self.names.setdefault(kind, set())
        known.update(request.initial_resource_versions)
        for name in request.resource_names_subscribe:
            if name in names:
                known.pop(name, None)
            names.add(name)
        for name in request.resource_names_unsubscribe:
            names.discard(name)
            known.pop(name, None)

    def give(self) -> bool:
        """Send one response, if there is one to send and the client reads."""
        if not (self.is_open and self.may_send) or self.server.mood != "well":
            return False
        for kind in TYPES:
            response = self._delta(kind) if self.is_delta else self._sotw(kind)
            if response is not None:
                self.sent += 1
                response.type_url, response.nonce = kind, f"{len(self.server.streams)}-{self.sent}"
                self.nonce[kind] = response.nonce
                self.may_send = False
                self.events.received(response.SerializeToString(), self._read)
                if self.server.cut_after == self.sent:
                    self.end()
                return True
        return False

    def _read(self) -> None:
        self.may_send = True

    def _sotw(self, kind: str) -> Any:
        names, version = self.names.get(kind), self.server.versions[kind]
        if not names or self.known.get(kind) == version:
            return None
        self.known[kind] = version
        response = message_class(f"{PREFIX}.DiscoveryResponse")(version_info=str(version))
        for name, body in self.server.tables[kind].items():
            if name in names and kind == EDS and self.server.ttl_s:
                wrapper = self.server.wrap(name, body)
                response.resources.add(type_url=RESOURCE_WRAPPER, value=wrapper.SerializeToString())
            elif name in names:
                response.resources.add(type_url=kind, value=body)
        return response

    def _delta(self, kind: str) -> Any:
        response = message_class(f"{PREFIX}.DeltaDiscoveryResponse")()
        known = self.known.get(kind, {})
        for name in sorted(self.names.get(kind, ())):
            body = self.server.tables[kind].get(name)
            version = "" if body is None else sha256(body).hexdigest()[:8]
            if known.get(name) == version:
                continue
            known[name] = version
            if body is None:
                response.removed_resources.append(name)
            else:
                wrapper = (
                    self.server.wrap(name, body) if kind == EDS else message_class(f"{PREFIX}.Resource")(name=name)
                )
                wrapper.version, wrapper.resource.type_url, wrapper.resource.value = version, kind, body
                response.resources.append(wrapper)
        return response if response.resources or response.removed_resources else None


class Server:
    """Attributes:
    mood: `well`; `down`: refuses streams; `mute`: takes requests and says nothing; `black hole`: takes nothing.
    cut_after: End each stream after so many responses; 0: never.
    ttl_s: Of endpoints; 0: they do not expire.
    """

    def __init__(self) -> None:
        self.mood = "well"
        self.cut_after = 0
        self.ttl_s = 0
        self.tables: dict[str, dict[str, bytes]] = {kind: {} for kind in TYPES}
        self.versions = dict.fromkeys(TYPES, 1)
        self.streams: list[Stream] = []
        self.opened = 0

    @property
    def stream(self) -> Stream:
        """The newest."""
        return self.streams[-1]

    def open(self, server: ServerConfig, events: StreamEvents) -> Stream:
        self.opened += 1
        stream = Stream(self, events, server.is_delta)
        self.streams = [*self.streams[-2:], stream]
        if self.mood == "down":
            stream.end("UNAVAILABLE: refused")
        return stream

    def put(self, kind: str, **resources: Any) -> None:
        for name, resource in resources.items():
            body = resource if isinstance(resource, bytes) else encode(kind, resource)
            self.tables[kind][name] = body
        self.versions[kind] += 1

    def remove(self, kind: str, name: str) -> None:
        del self.tables[kind][name]
        self.versions[kind] += 1

    def put_service(self, name: str, *ports: int, cluster: str = "") -> None:
        self.put(LDS, **{name: listener(name)})
        self.put(RDS, **{name: routes(name, cluster or name)})
        self.put(CDS, **{cluster or name: eds_cluster(cluster or name)})
        self.put(EDS, **{cluster or name: endpoints(cluster or name, *ports)})

    def wrap(self, name: str, body: bytes | None) -> Any:
        """Return endpoints with their time to live; without a body a heartbeat."""
        wrapper = message_class(f"{PREFIX}.Resource")(name=name, version=str(self.versions[EDS]))
        if self.ttl_s:
            wrapper.ttl.seconds = self.ttl_s
        if body is not None:
            wrapper.resource.type_url, wrapper.resource.value = EDS, body
        return wrapper

    def beat(self) -> None:
        """Send heartbeats for all endpoints."""
        stream = self.stream
        beats = [self.wrap(name, None) for name in sorted(stream.names[EDS])]
        if stream.is_delta:
            response = message_class(f"{PREFIX}.DeltaDiscoveryResponse")(type_url=EDS, resources=beats)
        else:
            response = message_class(f"{PREFIX}.DiscoveryResponse")(type_url=EDS, version_info=str(self.versions[EDS]))
            for beat in beats:
                response.resources.add(type_url=RESOURCE_WRAPPER, value=beat.SerializeToString())
        response.nonce = stream.nonce[EDS] = f"beat {self.opened} {stream.sent}"
        stream.sent += 1
        stream.may_send = False
        stream.events.received(response.SerializeToString(), stream._read)

    def restart(self) -> None:
        """As another process whose versions begin anew."""
        self.versions = dict.fromkeys(TYPES, 1)
        self.cut()

    def cut(self) -> None:
        for stream in self.streams:
            stream.end()


class World:
    """A control plane that lives in the test's thread."""

    def __init__(self, variant: str) -> None:
        self.is_delta = variant == "delta"
        self.clock = FakeClock()
        self.server = Server()
        self.events: list[Event] = []
        self.snapshots = 0
        bootstrap = {
            "xds_servers": [
                {
                    "server_uri": "s:1",
                    "channel_creds": [{"type": "insecure"}],
                    "server_features": ["meshlib.delta"] if self.is_delta else [],
                }
            ]
        }
        self.control = ControlPlane(
            parse_bootstrap(bootstrap, origin="test"),
            self,
            clock=self.clock,
            wall_clock=self.clock,
            rng=SeededRng(1),
            emit=self.events.append,
            open_stream=self.server.open,
        )
        self.control._begin()

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshots += 1

    def tick(self, now: float) -> None:
        pass

    def changed(self) -> None:
        pass

    def spin(self) -> None:
        """Do all that can be done now."""
        control = self.control
        busy = True
        while busy:
            busy = bool(control._scheduler.run(block=False))
            if control._is_dirty:
                control._settle()
            done, control._done = control._done, []
            for release in done:
                release()
            stream = self.server.stream
            busy = stream.take() or stream.give() or busy or control._is_dirty

    def pass_time(self, seconds: float) -> None:
        """Let time pass from one thing that is due to the next."""
        end = self.clock() + seconds
        self.spin()
        while (timers := self.control._scheduler._timers) and timers[0][0] <= end:
            self.clock.advance(max(0.0, timers[0][0] - self.clock()))
            self.spin()
        self.clock.advance(max(0.0, end - self.clock()))
        self.spin()

    def watch(self, *names: str, keep: bool = True) -> None:
        self.control.watch(targets=frozenset(names), keep=keep)
        self.spin()

    def target(self, name: str) -> TargetConfig | None:
        found = self.control.snapshot.targets.get(name)
        return found if isinstance(found, TargetConfig) else None

    def fault(self, name: str) -> str:
        found = self.control.snapshot.targets.get(name)
        return found.message if isinstance(found, ConfigFault) else ""

    def ports(self, cluster: str) -> list[int] | None:
        """Return the ports of a cluster's endpoints; None: there is no such cluster in use."""
        found = self.control.snapshot.clusters.get(cluster)
        if not isinstance(found, ClusterConfig):
            return None
        return sorted(e.port for locality in found.assignment.localities for e in locality.endpoints)

    def subscribed(self, kind: str) -> set[str]:
        """Return what the server believes that the client wants."""
        return self.server.stream.names.get(kind, set())


def encode(kind: str, resource: dict[str, Any]) -> bytes:
    data: bytes = from_dict(kind.rpartition("/")[2], resource).SerializeToString(deterministic=True)
    return data


def listener(name: str) -> dict[str, Any]:
    rds = {"config_source": {"ads": {}}, "route_config_name": name}
    filters = [{"name": "router", "typed_config": {"@type": ROUTER}}]
    return {"name": name, "api_listener": {"api_listener": {"@type": HCM, "rds": rds, "http_filters": filters}}}


def routes(name: str, cluster: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    return {"name": name, "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]}


def eds_cluster(name: str, service_name: str = "") -> dict[str, Any]:
    config = {"eds_config": {"ads": {}}, "service_name": service_name}
    return {"name": name, "type": "EDS", "eds_cluster_config": config}


def endpoints(name: str, *ports: int) -> dict[str, Any]:
    if not ports:
        return {"cluster_name": name}
    addresses = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    return {"cluster_name": name, "endpoints": [{"load_balancing_weight": 1, "lb_endpoints": addresses}]}


class Make:
    """Resources; test directories are no packages, so these come as a fixture."""

    routes = staticmethod(routes)
    eds_cluster = staticmethod(eds_cluster)
    endpoints = staticmethod(endpoints)
    listener = staticmethod(listener)


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def new_world() -> Callable[[str], World]:
    return World


@pytest.fixture(params=["sotw", "delta"])
def world(request: pytest.FixtureRequest) -> World:
    """A mesh that uses the service `checkout`, at port 1."""
    result = World(request.param)
    result.server.put_service("checkout", 1)
    result.watch("checkout")
    assert result.ports("checkout") == [1]
    return result
