"""Whatever happens in whatever order, a stream that is left in peace ends with what the server's last truth says.

A model of a correct server answers on a stream that may be cut anywhere. Versions and contents change, resources turn
invalid and valid, names are subscribed to and given up, messages are delivered or delayed. On the way: one request is
under way at a time, every request carries the newest nonce seen, and only the first of a stream has the node.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.xds.bootstrap import WILDCARD_CDS_FEATURE
from meshlib.xds.cache import Key, ResourceCache, ResourceState
from meshlib.xds.decode import Decoded
from meshlib.xds.resources import CDS, EDS
from meshlib.xds.sotw import CancelTimer, Command, SotwMachine, StartTimer
from meshlib.xds.wire import AnyBytes, DiscoveryResponse, SendRequest

NAMES = st.sampled_from("abcd")
TYPES = st.sampled_from((CDS, EDS))


def encode(name: str, content: int, is_valid: bool) -> bytes:
    return b"\x0a\x01" + name.encode() + (b"ok" if is_valid else b"no") + str(content).encode()


def decode(type_url: str, body: bytes) -> Decoded:
    name = body[2:3].decode()
    if body[3:5] == b"no":
        return Decoded(name, None, ("invalid",))
    return Decoded(name, ClusterLoadAssignment(f"{name}{body[5:].decode()}"))


@dataclass
class ServerStream:
    """A correct server's side of one stream."""

    nonce: dict[str, str] = field(default_factory=dict)
    answered: dict[str, str] = field(default_factory=dict)
    names: dict[str, frozenset[str]] = field(default_factory=dict)
    version: dict[str, int] = field(default_factory=dict)
    inbox: list[SendRequest] = field(default_factory=list)
    outbox: list[DiscoveryResponse] = field(default_factory=list)
    count: int = 0
    has_named: set[str] = field(default_factory=set)

    def understood(self, request: SendRequest) -> frozenset[str]:
        """Return what a list of names asks for: an empty one everything, as long as none had a name."""
        if request.names:
            self.has_named.add(request.type_url)
            return frozenset(request.names)
        return frozenset() if request.type_url in self.has_named else frozenset("*")


class SotwClient(RuleBasedStateMachine):
    is_wild = False
    """All clusters are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ResourceCache()
        features = frozenset({WILDCARD_CDS_FEATURE} if self.is_wild else ())
        self.client = SotwMachine(self.cache, features=features, decode=decode)
        self.now = 0.0
        self.timers: set[Key] = set()
        self.stream: ServerStream | None = None
        self.under_way: SendRequest | None = None
        self.seen_nonce: dict[str, str] = {}
        self.asked_for: set[str] = set()
        self.has_node = False
        self.wanted: dict[str, frozenset[str]] = {}
        self.world: dict[str, dict[str, bytes]] = {CDS: {}, EDS: {}}
        self.version = {CDS: 1, EDS: 1}
        self.given_up: dict[str, set[str]] = {CDS: set(), EDS: set()}

    def obey(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            match command:
                case SendRequest(type_url=type_url):
                    assert self.under_way is None, "two requests under way"
                    assert self.stream is not None
                    assert command.nonce == self.seen_nonce.get(type_url, "")
                    assert command.with_node != self.has_node
                    self.check_names(command)
                    self.asked_for.add(type_url)
                    self.has_node = True
                    self.under_way = command
                case StartTimer(key=key):
                    assert key not in self.timers
                    self.timers.add(key)
                case CancelTimer(key=key):
                    assert key in self.timers
                    self.timers.discard(key)

    def check_names(self, request: SendRequest) -> None:
        wanted = self.wanted.get(request.type_url, frozenset())
        if self.is_wild and request.type_url == CDS:
            assert {*request.names} - {"*"} <= wanted
            assert wanted - {*request.names} <= self.given_up[CDS]
            assert "*" in request.names or not request.names
        else:
            # An answer may go without what was given up and is wanted again; a request that names it follows.
            missing = wanted - frozenset(request.names)
            assert frozenset(request.names) <= wanted
            assert not missing or (request.nonce and missing <= self.given_up[request.type_url])
            assert request.names or request.type_url in self.asked_for, "a wildcard"

    # The world.

    @initialize()
    def begin(self) -> None:
        for name in "abc":
            for type_url in (CDS, EDS):
                self.world[type_url][name] = encode(name, 0, True)

    @rule(type_url=TYPES, name=NAMES, content=st.integers(0, 3), is_valid=st.booleans())
    def change(self, type_url: str, name: str, content: int, is_valid: bool) -> None:
        self.world[type_url][name] = encode(name, content, is_valid)
        self.version[type_url] += 1

    @rule(name=NAMES)
    def remove_cluster(self, name: str) -> None:
        if self.world[CDS].pop(name, None) is not None:
            self.version[CDS] += 1

    # The client's owner.

    @rule(clusters=st.frozensets(NAMES), endpoints=st.frozensets(NAMES))
    def want(self, clusters: frozenset[str], endpoints: frozenset[str]) -> None:
        for type_url, names in ((CDS, clusters), (EDS, endpoints)):
            self.given_up[type_url] |= self.wanted.get(type_url, frozenset()) - names
        self.wanted = {CDS: clusters, EDS: endpoints}
        self.obey(self.client.want(self.wanted))

    # The stream.

    @precondition(lambda self: self.stream is None)
    @rule()
    def open(self) -> None:
        self.stream = ServerStream()
        self.seen_nonce.clear()
        self.asked_for.clear()
        self.has_node = False
        self.obey(self.client.opened())

    @precondition(lambda self: self.stream is not None)
    @rule()
    def cut(self) -> None:
        self.stream = None
        self.under_way = None
        self.obey(self.client.closed())
        assert not self.timers

    @precondition(lambda self: self.stream is not None and self.under_way is not None)
    @rule()
    def transport_takes_request(self) -> None:
        assert self.stream is not None
        assert self.under_way is not None
        self.stream.inbox.append(self.under_way)
        self.under_way = None
        self.obey(self.client.sent())

    @precondition(lambda self: self.stream is not None)
    @rule()
    def server_works(self) -> None:
        stream = self.stream
        assert stream is not None
        for request in stream.inbox:
            kind = request.type_url
            if request.nonce != stream.nonce.get(kind, ""):
                continue  # stale: a newer one must follow
            if request.nonce:
                stream.answered[kind] = request.nonce
            names = stream.understood(request)
            if names != stream.names.get(kind):
                stream.version.pop(kind, None)
            stream.names[kind] = names
        stream.inbox.clear()
        for kind, names in stream.names.items():
            if not names or stream.version.get(kind) == self.version[kind]:
                continue
            stream.count += 1
            stream.nonce[kind] = f"n{stream.count}"
            stream.version[kind] = self.version[kind]
            found = tuple(
                AnyBytes(kind, body) for name, body in sorted(self.world[kind].items()) if name in names or "*" in names
            )
            stream.outbox.append(DiscoveryResponse(kind, str(self.version[kind]), stream.nonce[kind], found))

    @precondition(lambda self: self.stream is not None and self.stream.outbox)
    @rule()
    def deliver(self) -> None:
        assert self.stream is not None
        response = self.stream.outbox.pop(0)
        self.seen_nonce[response.type_url] = response.nonce
        self.now += 1.0
        self.obey(self.client.received(response, self.now))

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def time_is_over(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.timers)))
        self.timers.discard(key)
        self.obey(self.client.timer_fired(key, self.now))

    # Laws.

    @invariant()
    def only_what_was_asked_for_is_cached(self) -> None:
        for type_url, names in self.wanted.items():
            assert names <= set(self.cache.names(type_url))

    @invariant()
    def timers_run_only_for_what_is_unknown(self) -> None:
        for key in self.timers:
            entry = self.cache.get(*key)
            assert entry is not None
            assert entry.state is ResourceState.REQUESTED

    def teardown(self) -> None:
        """Left in peace, with all messages delivered, the client holds the last truth."""
        if self.stream is None:
            self.open()
        while self.under_way is not None or self.stream_is_busy():
            if self.under_way is not None:
                self.transport_takes_request()
            self.server_works()
            while self.stream is not None and self.stream.outbox:
                self.deliver()
        assert self.stream is not None
        assert self.stream.answered == self.stream.nonce, "a response was neither acknowledged nor refused"
        for type_url, names in self.wanted.items():
            held = names | self.world[CDS].keys() | {"*"} if self.is_wild and type_url == CDS else names
            assert set(self.cache.names(type_url)) == held
            for name in held - {"*"}:
                self.check_entry(type_url, name)

    def stream_is_busy(self) -> bool:
        stream = self.stream
        assert stream is not None
        if stream.inbox or stream.outbox:
            return True
        return any(names and stream.version.get(kind) != self.version[kind] for kind, names in stream.names.items())

    def check_entry(self, type_url: str, name: str) -> None:
        entry = self.cache.get(type_url, name)
        assert entry is not None
        body = self.world[type_url].get(name)
        if body is None:
            # A cluster that is gone is gone, or was never there and its timer runs; endpoints are never removed here.
            assert entry.value is None or type_url == EDS
        elif body[3:5] == b"ok":
            assert (entry.state, entry.body) == (ResourceState.ACKED, body)
            assert entry.value == decode(type_url, body).value
        else:
            assert entry.state is ResourceState.NACKED
            assert entry.body != body


TestSotwClient = SotwClient.TestCase
TestSotwClient.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class WildSotwClient(SotwClient):
    is_wild = True


TestWildSotwClient = WildSotwClient.TestCase
TestWildSotwClient.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
