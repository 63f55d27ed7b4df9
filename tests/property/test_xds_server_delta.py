"""Any order of requests, acknowledgements, rejections and publishes leaves an incremental client with what it should have."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.property.make_before_break import (
    NAMES,
    TYPES,
    Content,
    Promises,
    Ref,
    consistent,
    contents,
    named_by,
    snapshot_of,
)
from xds_server.delta import DeltaStream
from xds_server.ordering import CDS, EDS, LDS, RDS
from xds_server.snapshot import NOTHING
from xds_server.stream import Response, Settings
from xds_server.wire import DeltaRequest, Node

WILD = (CDS, LDS)

# Whose children are sent again with them.
NEXT = {CDS: EDS, LDS: RDS, RDS: CDS}

types = st.sampled_from(TYPES)
changes = st.frozensets(st.sampled_from((*NAMES, "*", "missing")), max_size=3)


class DeltaModel(RuleBasedStateMachine):
    """A client that takes responses late, throws away whatever holds a `bad` version, changes its mind and reconnects.

    `None` in its view stands for a resource that it was told does not exist.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.content: Content = {}
        self.is_consistent = True
        self.snapshot = NOTHING
        self.view: dict[str, dict[str, str | None]] = {type_url: {} for type_url in TYPES}
        self.connect()

    @initialize(is_consistent=st.booleans())
    def begin(self, is_consistent: bool) -> None:
        """Publish only states in which everything exists that is named, as publishers must, or any at all."""
        self.is_consistent = is_consistent

    def connect(self) -> None:
        # Two or three entries fill a response. This client answers in the end, so that nothing goes out without an answer (ACK-9).
        limits = Settings(max_response_bytes=180, ack_timeout_s=10_000.0)
        self.server = DeltaStream(self.snapshot, settings=limits)
        self.arriving: list[tuple[Response, dict[str, str | None]]] = []
        self.names: dict[str, set[str]] = {}
        self.wildcard: dict[str, bool] = {}
        self.named_once: set[str] = set()
        self.nonces: set[str] = set()
        self.promises = Promises()
        self.accepted: set[Ref] = set()  # on this stream: a new one has no memory (REC-1)
        self.rejected: dict[str, dict[str, str | None]] = {}
        # Types of which a rejected response may come again: subscriptions or content changed, a parent was sent.
        self.may_repeat: set[str] = set(TYPES)

    # The client.

    def held(self) -> dict[Ref, set[str]]:
        """Return the versions that the client has or is being sent on this stream."""
        held: dict[Ref, set[str]] = {}
        for type_url, message in ((response.type_url, message) for response, message in self.arriving):
            for name, version in message.items():
                if version is not None:
                    held.setdefault((type_url, name), set()).add(version)
        for type_url, name in self.accepted:
            if (version := self.view[type_url].get(name)) is not None:
                held.setdefault((type_url, name), set()).add(version)
        return held

    def in_use(self) -> dict[Ref, set[str]]:
        """Return what the client goes on with after it rejected the next version."""
        return {
            (type_url, name): {version}
            for type_url, message in self.rejected.items()
            for name in message
            if (version := self.view[type_url].get(name)) is not None
            and (type_url, name) in self.accepted
            and name in self.content.get(type_url, {})
        }

    def wants(self, type_url: str, name: str) -> bool:
        return self.wildcard.get(type_url, False) or name in self.names.get(type_url, ())

    def subscribe(self, type_url: str, plus: frozenset[str], minus: frozenset[str], *, first: bool) -> None:
        """Do to our own state what the request does to the server's, as the protocol has it."""
        if type_url in WILD and type_url not in self.named_once and not plus:
            if first:
                self.wildcard[type_url] = True
            return
        names = self.names.setdefault(type_url, set())
        if plus:
            self.named_once.add(type_url)
        if "*" in plus and type_url in WILD:
            self.wildcard[type_url] = True
        names |= plus - {"*"}
        for name in plus:
            self.view[type_url].pop(name, None)  # whoever subscribes again may have lost it (DX-1)
        if "*" in minus:
            self.wildcard[type_url] = False
        for name in (minus - {"*"}) & names:
            names.remove(name)
            self.view[type_url].pop(name, None)  # to be told again, if the wildcard covers it
        self.view[type_url] = {name: each for name, each in self.view[type_url].items() if self.wants(type_url, name)}

    def take(self, response: Response, message: dict[str, str | None]) -> None:
        type_url = response.type_url
        if "bad" in message.values():
            self.rejected[type_url] = message
            self.server.request(DeltaRequest(type_url, nonce=response.nonce, error="bad"), self.now)
            return
        self.rejected.pop(type_url, None)
        for name, version in message.items():
            if self.wants(type_url, name):
                self.view[type_url][name] = version
                self.accepted.add((type_url, name))
        self.server.request(DeltaRequest(type_url, nonce=response.nonce), self.now)

    def pump(self) -> None:
        """Let the server write all that it has; the client does not look yet."""
        while (response := self.server.respond(self.now)) is not None:
            type_url = response.type_url
            assert response.nonce not in self.nonces, "a nonce was used again"
            self.nonces.add(response.nonce)
            assert not any(each.type_url == type_url for each, _ in self.arriving), "two responses of a type in flight"
            assert not {*response.names} & {*response.removed}, "a name is there and gone"
            assert len(response.names) + len(response.removed) <= 2 or not response.names
            known = self.server.subscriptions[type_url].known
            message: dict[str, str | None] = {name: known[name] for name in response.names}
            message.update(dict.fromkeys(response.removed))
            if self.is_consistent:
                told = {(type_url, name) for name in response.removed}
                self.promises.check(told, self.held(), self.in_use(), self.now)
            if (rejected := self.rejected.get(type_url)) is not None and type_url not in self.may_repeat:
                assert rejected != message, "a rejected response was sent again"
            is_leaving = known.keys() - self.content.get(type_url, {}).keys()  # held back, and then a change of its own
            if not self.server.subscriptions[type_url].pending and not is_leaving:
                self.may_repeat.discard(type_url)
            if type_url in NEXT and response.names:
                self.may_repeat.add(NEXT[type_url])
            self.arriving.append((response, message))
        self.promises.moved(self.held())

    @rule(type_url=types, plus=changes, minus=changes)
    def ask(self, type_url: str, plus: frozenset[str], minus: frozenset[str]) -> None:
        if type_url not in WILD:
            plus, minus = plus - {"*"}, minus - {"*"}
        first = type_url not in self.server.subscriptions
        held = dict(self.view[type_url])
        initial = {name: version for name, version in held.items() if version is not None} if first else {}
        self.may_repeat.add(type_url)
        self.subscribe(type_url, plus, minus, first=first)
        if first and type_url in WILD:  # here a name that is said to be held counts as held (REC-3)
            self.view[type_url].update((name, held[name]) for name in initial if self.wants(type_url, name))
            current = self.content.get(type_url, {})
            self.accepted |= {(type_url, name) for name in initial if current.get(name) == initial[name]}
        request = DeltaRequest(type_url, tuple(sorted(plus)), tuple(sorted(minus)), initial, node=Node("n"))
        self.server.request(request, self.now)
        self.pump()

    @rule(type_url=st.sampled_from((LDS, RDS, CDS)))
    def follow(self, type_url: str) -> None:
        """Ask for what the accepted resources of a type name, as gRPC clients do, at any later time."""
        view = ((name, version) for name, version in self.view[type_url].items() if version is not None)
        named = {child for name, version in view for _, child in named_by(type_url, name, version)}
        if plus := named - self.names.get(NEXT[type_url], set()):
            self.ask(NEXT[type_url], frozenset(plus), frozenset())

    @precondition(lambda self: self.arriving)
    @rule()
    def receive(self) -> None:
        self.take(*self.arriving.pop(0))
        self.pump()

    @precondition(lambda self: self.server.subscriptions)
    @rule()
    def reconnect(self) -> None:
        """Come back as Envoy does: what was named is named again, what is held is said."""
        before = {type_url: (self.wildcard.get(type_url, False), set(names)) for type_url, names in self.names.items()}
        for type_url in WILD:
            before.setdefault(type_url, (self.wildcard.get(type_url, False), set()))
        self.connect()
        for type_url, (wildcard, names) in before.items():
            plus = frozenset(names | ({"*"} if wildcard and names else set()))
            if plus or wildcard:
                self.ask(type_url, plus, frozenset())
            else:
                self.view[type_url].clear()

    @rule(content=contents)
    def publish(self, content: Content) -> None:
        content = consistent(content) if self.is_consistent else content
        previous, self.content = self.content, content
        self.may_repeat.update(TYPES if content != previous else ())
        self.change(previous, content)
        self.pump()

    def change(self, previous: Content, content: Content) -> None:
        self.promises.published(previous, content, self.held(), self.in_use(), self.now)
        snapshot = snapshot_of(content)
        self.server.publish(snapshot, snapshot.changes_since(self.snapshot), self.now)
        self.snapshot = snapshot

    @rule(seconds=st.sampled_from((0.1, 4.9, 5.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.pump()

    @invariant()
    def due_work_is_never_forgotten(self) -> None:
        """Whatever is unfinished waits for an answer of the client or for a time."""
        assert self.server.respond(self.now) is None
        waiting = any(each.pending for each in self.server.subscriptions.values())
        assert not waiting or self.arriving or self.server.deadline(self.now) is not None

    def teardown(self) -> None:
        """Make everything good, let it settle, and compare: also what does not exist has been said."""
        good = {
            type_url: {name: version.replace("bad", "good") for name, version in resources.items()}
            for type_url, resources in self.content.items()
        }
        self.may_repeat.update(TYPES)
        self.change(self.content, good)
        self.content = good
        for _ in range(400):
            self.pump()
            if self.arriving:
                self.take(*self.arriving.pop(0))
            elif (deadline := self.server.deadline(self.now)) is not None:
                self.now = deadline
            else:
                break
        else:
            raise AssertionError("it does not settle")
        for type_url in TYPES:
            exists = good.get(type_url, {})
            wanted = {name: version for name, version in exists.items() if self.wants(type_url, name)}
            has = {name: version for name, version in self.view[type_url].items() if version is not None}
            assert wanted == has, type_url
            absent = self.names.get(type_url, set()) - exists.keys()
            assert absent <= self.view[type_url].keys(), type_url


DeltaModel.TestCase.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)
TestDeltaModel = DeltaModel.TestCase
