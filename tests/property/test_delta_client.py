"""Whatever happens in whatever order, an incremental stream that is left in peace ends with the server's last truth.

A model of a correct server answers on a stream that may be cut anywhere. Contents change, resources turn invalid and
valid, come and go; names are subscribed to and given up; messages are delivered or delayed; times to live pass. On the
way: one request is under way at a time, every response is answered once and in order, no request is a wildcard, what
is said to be held is held, and only the first request of a stream has the node.
"""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.xds.bootstrap import WILDCARD_CDS_FEATURE
from meshlib.xds.cache import Key, ResourceCache, ResourceState
from meshlib.xds.commands import CancelTimer, Command, StartExpiry, StartTimer, StopExpiry
from meshlib.xds.decode import Decoded
from meshlib.xds.delta import DeltaMachine
from meshlib.xds.resources import CDS, EDS
from meshlib.xds.stream_machine import EXPIRED
from meshlib.xds.wire import AnyBytes, DeltaResponse, SendDelta

NAMES = st.sampled_from("abcd")
TYPES = st.sampled_from((CDS, EDS))
TTL_S = 1000.0


def encode(name: str, content: int, is_valid: bool) -> bytes:
    return b"\x0a\x01" + name.encode() + (b"ok" if is_valid else b"no") + str(content).encode()


def decode(type_url: str, body: bytes) -> Decoded:
    name = body[2:3].decode()
    if body[3:5] == b"no":
        return Decoded(name, None, ("invalid",))
    return Decoded(name, ClusterLoadAssignment(f"{name}{body[5:].decode()}"))


@dataclass
class ServerStream:
    """A correct server's side of one stream.

    Attributes:
        known: By type: what the client holds as far as this side knows; None: it was told that there is none.
    """

    names: dict[str, set[str]] = field(default_factory=dict)
    known: dict[str, dict[str, str | None]] = field(default_factory=dict)
    inbox: list[SendDelta] = field(default_factory=list)
    outbox: list[DeltaResponse] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    count: int = 0


class DeltaClient(RuleBasedStateMachine):
    is_wild = False
    """All clusters are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ResourceCache()
        features = frozenset({WILDCARD_CDS_FEATURE} if self.is_wild else ())
        self.client = DeltaMachine(self.cache, features=features, decode=decode)
        self.now = 0.0
        self.timers: set[Key] = set()
        self.expiries: dict[Key, float] = {}
        self.stream: ServerStream | None = None
        self.under_way: SendDelta | None = None
        self.delivered: dict[str, list[str]] = {CDS: [], EDS: []}
        self.asked_for: set[str] = set()
        self.has_node = False
        self.wanted: dict[str, frozenset[str]] = {}
        self.world: dict[str, dict[str, tuple[bytes, bool]]] = {CDS: {}, EDS: {}}

    def obey(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            match command:
                case SendDelta():
                    self.check_request(command)
                    self.under_way = command
                case StartTimer(key=key):
                    assert key not in self.timers
                    self.timers.add(key)
                case CancelTimer(key=key):
                    assert key in self.timers
                    self.timers.discard(key)
                case StartExpiry(key=key, at=at):
                    self.expiries[key] = at
                case StopExpiry(key=key):
                    self.expiries.pop(key, None)

    def check_request(self, request: SendDelta) -> None:
        kind = request.type_url
        assert self.under_way is None, "two requests under way"
        assert self.stream is not None
        assert request.with_node != self.has_node
        self.has_node = True
        if request.nonce:
            assert request.nonce == self.delivered[kind].pop(0), "answers are given once, and in order"
            assert not (request.subscribe or request.unsubscribe or request.held)
        else:
            assert request.subscribe or request.unsubscribe, "a wildcard, or nothing"
            assert set(request.subscribe) - self.asks_for(kind) <= self.expired_members(kind)
            assert not set(request.unsubscribe) & self.asks_for(kind)
        assert not request.held or kind not in self.asked_for, "only the first request says what is held"
        for name, version in request.held:
            entry = self.cache.get(kind, name)
            assert entry is not None
            assert (entry.value is not None, version) == (True, version_of(entry.body))
        if kind not in self.asked_for:
            assert set(request.subscribe) == self.asks_for(kind)
        self.asked_for.add(kind)

    def asks_for(self, kind: str) -> frozenset[str]:
        wanted = self.wanted[kind]
        return wanted | {"*"} if self.is_wild and kind == CDS else wanted

    def expired_members(self, kind: str) -> set[str]:
        """What a wildcard brought and time took: a late heartbeat has it asked for by name."""
        entries = [entry for entry in self.cache if entry.type_url == kind and entry.error == EXPIRED]
        return {entry.name for entry in entries} if self.is_wild and kind == CDS else set()

    # The world.

    @initialize()
    def begin(self) -> None:
        for name in "abc":
            for type_url in (CDS, EDS):
                self.world[type_url][name] = (encode(name, 0, True), False)

    @rule(type_url=TYPES, name=NAMES, content=st.integers(0, 3), is_valid=st.booleans(), is_mortal=st.booleans())
    def change(self, type_url: str, name: str, content: int, is_valid: bool, is_mortal: bool) -> None:
        self.world[type_url][name] = (encode(name, content, is_valid), is_mortal)

    @rule(type_url=TYPES, name=NAMES)
    def remove(self, type_url: str, name: str) -> None:
        self.world[type_url].pop(name, None)

    # The client's owner.

    @rule(clusters=st.frozensets(NAMES), endpoints=st.frozensets(NAMES))
    def want(self, clusters: frozenset[str], endpoints: frozenset[str]) -> None:
        self.wanted = {CDS: clusters, EDS: endpoints}
        self.obey(self.client.want(self.wanted))

    # The stream.

    @precondition(lambda self: self.stream is None)
    @rule()
    def open(self) -> None:
        self.stream = ServerStream()
        for nonces in self.delivered.values():
            nonces.clear()
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
            names, known = stream.names.setdefault(kind, set()), stream.known.setdefault(kind, {})
            if request.nonce:
                stream.unanswered.remove(request.nonce)
            known.update(request.held)
            before = set(names)
            for name in request.subscribe:
                if name in before or "*" in before:
                    known.pop(name, None)  # asked for again, or by name now: sent again
                names.add(name)
            for name in request.unsubscribe:
                names.discard(name)
                if "*" in names:
                    known[name] = ""  # the client has dropped it, and must hear whether it still has it
                else:
                    known.pop(name, None)
        stream.inbox.clear()
        for kind in stream.names:
            self.answer(stream, kind)

    def answer(self, stream: ServerStream, kind: str) -> None:
        resources, removed = self.news(stream, kind)
        if resources or removed:
            stream.count += 1
            nonce = f"n{stream.count}"
            stream.unanswered.append(nonce)
            stream.outbox.append(DeltaResponse(kind, nonce, tuple(resources), tuple(removed)))

    def news(self, stream: ServerStream, kind: str) -> tuple[list[AnyBytes], list[str]]:
        known = stream.known[kind]
        resources, removed = [], []
        names = set(stream.names[kind])
        if "*" in names:
            names |= self.world[kind].keys() | known.keys()
        for name in sorted(names - {"*"}):
            body, is_mortal = self.world[kind].get(name, (None, False))
            if body is None:
                if known.get(name, "") is not None:
                    removed.append(name)
                    known[name] = None
            elif known.get(name) != version_of(body):
                version = known[name] = version_of(body)
                resources.append(AnyBytes(kind, body, name, version, (), TTL_S if is_mortal else None))
        return resources, removed

    @precondition(lambda self: self.stream is not None and self.stream.outbox)
    @rule()
    def deliver(self) -> None:
        assert self.stream is not None
        response = self.stream.outbox.pop(0)
        self.delivered[response.type_url].append(response.nonce)
        self.now += 1.0
        self.obey(self.client.received(response, self.now))

    @precondition(lambda self: self.stream is not None and self.expiries)
    @rule()
    def heartbeats(self) -> None:
        """The server keeps everything alive that it gave a time to live."""
        stream = self.stream
        assert stream is not None
        for kind, names in stream.names.items():
            beats = [
                AnyBytes("", None, name, version, (), TTL_S)
                for name in sorted(stream.known[kind] if "*" in names else names)
                if name != "*"
                if (version := stream.known[kind].get(name)) is not None and self.world[kind].get(name, (b"", False))[1]
            ]
            if beats:
                stream.count += 1
                stream.unanswered.append(f"n{stream.count}")
                stream.outbox.append(DeltaResponse(kind, f"n{stream.count}", tuple(beats)))

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def time_is_over(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.timers)))
        self.timers.discard(key)
        self.obey(self.client.timer_fired(key, self.now))

    @precondition(lambda self: self.expiries)
    @rule()
    def lives_end(self) -> None:
        self.now += TTL_S
        due, self.expiries = dict(self.expiries), {}
        for key in sorted(due):
            self.obey(self.client.expired(key, self.now))
            entry = self.cache.get(*key)
            assert entry is None or entry.expires_at is None
            assert entry is None or entry.value is None

    # Laws.

    @invariant()
    def what_is_wanted_is_in_the_cache(self) -> None:
        for type_url, names in self.wanted.items():
            assert names <= set(self.cache.names(type_url))

    @invariant()
    def timers_run_only_for_what_is_unknown(self) -> None:
        for key in self.timers:
            entry = self.cache.get(*key)
            assert entry is not None
            assert entry.state is ResourceState.REQUESTED

    @invariant()
    def every_time_to_live_has_its_timer(self) -> None:
        for entry in self.cache:
            key = (entry.type_url, entry.name)
            assert entry.expires_at is None or self.expiries[key] == entry.expires_at

    def teardown(self) -> None:
        """Left in peace, with all messages delivered and all that is mortal kept alive, the client holds the truth."""
        if self.stream is None:
            self.open()
        self.settle()
        self.heartbeats()
        self.settle()
        assert self.stream is not None
        assert not self.stream.unanswered, "a response was neither acknowledged nor refused"
        for type_url, names in self.wanted.items():
            if self.is_wild and type_url == CDS:
                # Of what came unasked nothing is left when it is gone, has expired, or was refused before it was gone.
                held = set(self.cache.names(type_url)) - {"*"}
                assert names <= held <= names | self.world[CDS].keys()
                assert {name for name, (body, _) in self.world[CDS].items() if body[3:5] == b"ok"} <= held
                names = frozenset(held)
            else:
                assert set(self.cache.names(type_url)) == names
            for name in names:
                self.check_entry(type_url, name)

    def settle(self) -> None:
        stream = self.stream
        assert stream is not None
        while self.under_way is not None or stream.inbox or stream.outbox or self.has_news(stream):
            if self.under_way is not None:
                self.transport_takes_request()
            self.server_works()
            while stream.outbox:
                self.deliver()

    def has_news(self, stream: ServerStream) -> bool:
        copy = ServerStream(stream.names, {kind: dict(known) for kind, known in stream.known.items()})
        return any(part for kind in stream.names for part in self.news(copy, kind))

    def check_entry(self, type_url: str, name: str) -> None:
        entry = self.cache.get(type_url, name)
        assert entry is not None
        body, is_mortal = self.world[type_url].get(name, (None, False))
        if body is None:
            assert (entry.value, entry.is_absent) == (None, True)
        elif body[3:5] == b"ok":
            has_expired = entry.state is ResourceState.DOES_NOT_EXIST and entry.error == EXPIRED
            if has_expired and not is_mortal:
                # It was mortal when it came, the server has changed its mind since without a new version: no heartbeat.
                assert entry.value is None
                return
            assert (entry.state, entry.body) == (ResourceState.ACKED, body)
            assert entry.value == decode(type_url, body).value
        else:
            assert entry.state in (ResourceState.NACKED, ResourceState.DOES_NOT_EXIST)
            assert entry.body != body


def version_of(body: bytes) -> str:
    return body.decode()[3:]


TestDeltaClient = DeltaClient.TestCase
TestDeltaClient.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class WildDeltaClient(DeltaClient):
    is_wild = True


TestWildDeltaClient = WildDeltaClient.TestCase
TestWildDeltaClient.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
