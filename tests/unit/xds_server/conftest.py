"""A stream machine with a scripted client, for the rules of discovery streams."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from meshlib.protos import message_class
from xds_server.delta import DeltaStream
from xds_server.ordering import CDS
from xds_server.snapshot import NOTHING, Resource, Snapshot, TypeState
from xds_server.sotw import SotwStream
from xds_server.stream import Response, Settings
from xds_server.wire import DeltaRequest, Node, Request


def state_of(content: Mapping[str, Mapping[str, str]], references: Mapping[str, tuple[Any, ...]]) -> Snapshot:
    """Build a state from `{type: {name: version}}`; `references` are keyed by resource name."""
    return Snapshot(
        {
            type_url: TypeState.of(
                Resource(name, version, b"\x12\x00", references.get(name, ())) for name, version in resources.items()
            )
            for type_url, resources in content.items()
        }
    )


class AnyPeer:
    """Drives one machine at a time that stands still unless told."""

    machine: Any

    def __init__(self) -> None:
        self.now = 0.0
        self.snapshot = NOTHING
        self._node: Node | None = Node("n1")

    def publish(self, content: Mapping[str, Mapping[str, str]], **references: tuple[Any, ...]) -> bool:
        snapshot = state_of(content, references)
        changes = snapshot.changes_since(self.snapshot)
        self.snapshot = snapshot
        return self.machine.publish(snapshot, changes, self.now)

    def next(self) -> Response | None:
        return self.machine.respond(self.now)

    def is_silent(self) -> bool:
        return self.next() is None


class Peer(AnyPeer):
    """The other end of a state-of-the-world stream."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        settings = Settings(**options.pop("settings", {}))
        self.machine = SotwStream(NOTHING, settings=settings, **options)

    def ask(self, type_url: str, *names: str, nonce: str = "", version: str = "", error: str | None = None) -> None:
        request = Request(type_url, names, nonce, version, error, self._node)
        self._node = None
        self.machine.request(request, self.now)

    def answer(self, response: Response, *names: str, error: str | None = None) -> None:
        """Acknowledge or reject, naming what a client would: by default what was sent, nothing for a wildcard."""
        subscription = self.machine.subscriptions[response.type_url]
        listed = names or (() if subscription.wildcard else tuple(sorted(subscription.names)))
        self.ask(response.type_url, *listed, nonce=response.nonce, error=error)

    def expect(self, type_url: str = CDS, *names: str) -> Response:
        """Take the next response and check what it holds."""
        response = self.next()
        assert response is not None, f"silent, expected {type_url}"
        assert (type_url, names) == (response.type_url, response.names)
        return response

    def accept(self, type_url: str, *names: str) -> Response:
        """Expect a response and acknowledge it."""
        response = self.expect(type_url, *names)
        self.answer(response)
        return response


class DeltaPeer(AnyPeer):
    """The other end of an incremental stream."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        settings = Settings(**options.pop("settings", {}))
        self.machine = DeltaStream(NOTHING, settings=settings, **options)

    def ask(
        self,
        type_url: str,
        *changes: str,
        nonce: str = "",
        error: str | None = None,
        initial: Mapping[str, str] | None = None,
    ) -> None:
        """Send a request; `+a` subscribes to a, `-a` unsubscribes."""
        subscribe = tuple(each[1:] for each in changes if each[0] == "+")
        unsubscribe = tuple(each[1:] for each in changes if each[0] == "-")
        assert len(changes) == len(subscribe) + len(unsubscribe)
        request = DeltaRequest(type_url, subscribe, unsubscribe, initial or {}, nonce, error, self._node)
        self._node = None
        self.machine.request(request, self.now)

    def answer(self, response: Response, *changes: str, error: str | None = None) -> None:
        """Acknowledge or reject, changing subscriptions with it."""
        self.ask(response.type_url, *changes, nonce=response.nonce, error=error)

    def expect(self, type_url: str = CDS, *told: str) -> Response:
        """Take the next response and check what it says: `a` is in it, `-a` is gone."""
        response = self.next()
        assert response is not None, f"silent, expected {type_url}"
        assert (type_url, told) == (response.type_url, (*response.names, *(f"-{name}" for name in response.removed)))
        return response

    def accept(self, type_url: str, *told: str) -> Response:
        """Expect a response and acknowledge it."""
        response = self.expect(type_url, *told)
        self.answer(response)
        return response


@pytest.fixture
def make_peer() -> Callable[..., Peer]:
    return Peer


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def make_delta() -> Callable[..., DeltaPeer]:
    return DeltaPeer


@pytest.fixture
def delta() -> DeltaPeer:
    return DeltaPeer()


@pytest.fixture
def decode_delta() -> Callable[[Response], Any]:
    return lambda response: message_class("envoy.service.discovery.v3.DeltaDiscoveryResponse").FromString(response.data)


@pytest.fixture
def decode_response() -> Callable[[Response], Any]:
    return lambda response: message_class("envoy.service.discovery.v3.DiscoveryResponse").FromString(response.data)
