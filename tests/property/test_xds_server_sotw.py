"""Any order of requests, acknowledgements, rejections and publishes leaves the client with what it should have."""

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
from xds_server.ordering import CDS, EDS, LDS, RDS
from xds_server.snapshot import NOTHING
from xds_server.sotw import SotwStream
from xds_server.stream import Response, Settings
from xds_server.wire import Node, Request

FULL = (CDS, LDS)

# Whose children are sent again with them.
NEXT = {CDS: EDS, LDS: RDS, RDS: CDS}

types = st.sampled_from(TYPES)
some_names = st.frozensets(st.sampled_from((*NAMES, "*", "missing")))


class SotwModel(RuleBasedStateMachine):
    """A client that takes responses late, rejects whatever holds a `bad` version, and changes its mind."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.content: Content = {}
        self.is_consistent = True
        self.snapshot = NOTHING
        self.server = SotwStream(NOTHING, settings=Settings(max_response_bytes=4, ack_timeout_s=10_000.0))
        self.arriving: list[Response] = []
        self.names: dict[str, frozenset[str]] = {}
        self.named_once: set[str] = set()
        self.nonce: dict[str, str] = {}
        self.view: dict[str, dict[str, str]] = {type_url: {} for type_url in TYPES}
        self.rejected: dict[str, dict[str, str]] = {}
        self.sent: dict[str, dict[str, str]] = {}
        self.promises = Promises()
        # Types of which a rejected response may come again: names were added, content moved, a parent was sent.
        self.may_repeat: set[str] = set()
        self.asked_meanwhile: set[str] = set()

    @initialize(is_consistent=st.booleans())
    def begin(self, is_consistent: bool) -> None:
        """Publish only states in which everything exists that is named, as publishers must, or any at all."""
        self.is_consistent = is_consistent

    # The client.

    def held(self) -> dict[Ref, set[str]]:
        """Return the versions that the client has or is being sent.

        What has left the state counts only if it is told of: whoever is not told goes by what names it.
        """
        held: dict[Ref, set[str]] = {}
        messages = [*self.view.items(), *((each.type_url, self.sent[each.nonce]) for each in self.arriving)]
        for type_url, message in messages:
            for name, version in message.items():
                held.setdefault((type_url, name), set()).add(version)
        return held

    def in_use(self) -> dict[Ref, set[str]]:
        """Return what the client goes on with after it rejected the next version."""
        return {
            (type_url, name): {self.view[type_url][name]}
            for type_url, message in self.rejected.items()
            for name in message
            if name in self.view[type_url] and name in self.content.get(type_url, {})
        }

    def told(self, response: Response) -> set[Ref]:
        """Return what a response says not to be there."""
        names = {error.name for error in response.errors}
        if response.type_url in FULL:
            names |= {name for name in NAMES if self.wants(response.type_url, name)} - set(response.names)
        return {(response.type_url, name) for name in names}

    def send(self, type_url: str, error: str | None = None) -> None:
        names = tuple(sorted(self.names[type_url]))
        request = Request(type_url, names, self.nonce.get(type_url, ""), "", error, Node("n"))
        self.server.request(request, self.now)

    def wants(self, type_url: str, name: str) -> bool:
        names = self.names.get(type_url)
        if names is None:
            return False
        is_wildcard = "*" in names or type_url not in self.named_once
        return name in names or (type_url in FULL and is_wildcard)

    def take(self, response: Response) -> None:
        type_url = response.type_url
        message = {name: self.sent[response.nonce][name] for name in response.names}
        self.nonce[type_url] = response.nonce
        if type_url in self.asked_meanwhile:
            self.asked_meanwhile.remove(type_url)
            self.may_repeat.add(type_url)  # the answer carries what the stale request could not
        if "bad" in message.values():
            self.rejected[type_url] = message
            self.send(type_url, error="bad")
            return
        view = {} if type_url in FULL else dict(self.view[type_url])
        view.update(message)
        self.view[type_url] = {name: version for name, version in view.items() if self.wants(type_url, name)}
        self.rejected.pop(type_url, None)
        self.send(type_url)

    def pump(self) -> bool:
        """Let the server write all that it has; the client does not look yet."""
        wrote = False
        while (response := self.server.respond(self.now)) is not None:
            wrote = True
            type_url = response.type_url
            assert response.nonce not in self.sent, "a nonce was used again"
            assert not any(each.type_url == type_url for each in self.arriving), "two responses of a type in flight"
            known = self.server.subscriptions[type_url].known
            message = {name: known[name] for name in response.names}
            self.sent[response.nonce] = message
            if self.is_consistent:
                self.promises.check(self.told(response), self.held(), self.in_use(), self.now)
            if (rejected := self.rejected.get(type_url)) is not None and type_url not in self.may_repeat:
                assert rejected != message, "a rejected response was sent again"
            if not known.keys() - self.content.get(type_url, {}).keys():  # held back, and then a change of its own
                self.may_repeat.discard(type_url)
            if type_url in FULL:
                self.may_repeat.add(NEXT[type_url])
            self.arriving.append(response)
        self.promises.moved(self.held())
        return wrote

    @rule(type_url=types, names=some_names)
    def ask(self, type_url: str, names: frozenset[str]) -> None:
        if type_url not in FULL:
            names -= {"*"}
        self.names[type_url] = names
        if names:
            self.named_once.add(type_url)
        self.view[type_url] = {name: each for name, each in self.view[type_url].items() if self.wants(type_url, name)}
        self.may_repeat.add(type_url)  # newly named resources are sent, rejected or not
        if any(each.type_url == type_url for each in self.arriving):
            self.asked_meanwhile.add(type_url)
        self.send(type_url)
        self.pump()

    @rule(type_url=st.sampled_from((LDS, RDS, CDS)))
    def follow(self, type_url: str) -> None:
        """Ask for what the accepted resources of a type name, as gRPC clients do, at any later time."""
        view = self.view[type_url]
        if wanted := {child for name, version in view.items() for child in named_by(type_url, name, version)}:
            self.ask(NEXT[type_url], frozenset(name for _, name in wanted))

    @precondition(lambda self: self.arriving)
    @rule()
    def receive(self) -> None:
        # A stream keeps the order of its messages.
        self.take(self.arriving.pop(0))
        self.pump()

    @rule(content=contents)
    def publish(self, content: Content) -> None:
        content = consistent(content) if self.is_consistent else content
        previous, self.content = self.content, content
        snapshot = snapshot_of(content)
        self.promises.published(previous, content, self.held(), self.in_use(), self.now)
        # Content may also go and come back.
        self.may_repeat.update(TYPES if content != previous else ())
        self.server.publish(snapshot, snapshot.changes_since(self.snapshot), self.now)
        self.snapshot = snapshot
        self.pump()

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
        """Make everything good, let it settle, and compare."""
        good = {
            type_url: {name: version.replace("bad", "good") for name, version in resources.items()}
            for type_url, resources in self.content.items()
        }
        snapshot = snapshot_of(good)
        self.promises.published(self.content, good, self.held(), self.in_use(), self.now)
        self.content = good
        self.may_repeat.update(TYPES)
        self.server.publish(snapshot, snapshot.changes_since(self.snapshot), self.now)
        for _ in range(200):
            self.pump()
            if self.arriving:
                self.take(self.arriving.pop(0))
            elif (deadline := self.server.deadline(self.now)) is not None:
                self.now = deadline
            else:
                break
        else:
            raise AssertionError("it does not settle")
        for type_url in TYPES:
            wanted = {name: version for name, version in good.get(type_url, {}).items() if self.wants(type_url, name)}
            view = self.view[type_url]
            if type_url not in FULL:  # deletions of these types are not told
                view = {name: version for name, version in view.items() if name in wanted}
            assert wanted == view, type_url


SotwModel.TestCase.settings = settings(max_examples=200, stateful_step_count=25, deadline=None)
TestSotwModel = SotwModel.TestCase
