"""What becomes of a resource when something goes wrong with it, by the features of its server (gRFCs A53, A57, A88).

Each row is a row of A88's table; the default is that of gRPC before A88, where deletions of listeners and clusters count.
Errors that the server sends for a resource are A88's alone: they count as it says, and are no deletion.
"""

import pytest

from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.xds.cache import ResourceCache, ResourceState
from meshlib.xds.decode import Decoded
from meshlib.xds.resources import CDS, EDS
from meshlib.xds.sotw import SotwMachine, StartTimer
from meshlib.xds.wire import AnyBytes, DiscoveryResponse, ResourceError

IGNORES, FAILS, TRANSIENT = "ignore_resource_deletion", "fail_on_data_errors", "resource_timer_is_transient_error"
DOES_NOT_EXIST, NACKED, RECEIVED = ResourceState.DOES_NOT_EXIST, ResourceState.NACKED, ResourceState.RECEIVED_ERROR


def decode(type_url: str, body: bytes) -> Decoded:
    if body == b"bad":
        return Decoded("a", None, ("is bad",))
    return Decoded("a", ClusterLoadAssignment(body.decode()))


def machine(*features: str, cached: bool, type_url: str) -> tuple[SotwMachine, ResourceCache]:
    cache = ResourceCache()
    client = SotwMachine(cache, features=frozenset(features), decode=decode)
    client.want({type_url: frozenset("a")})
    client.opened()
    client.sent()
    if cached:
        client.received(response(type_url, b"good"), 1.0)
        client.sent()
    return client, cache


def response(type_url: str, *bodies: bytes, code: int = 0) -> DiscoveryResponse:
    errors = (ResourceError("a", code, "said so"),) if code else ()
    return DiscoveryResponse(type_url, "v", "n", tuple(AnyBytes(type_url, body) for body in bodies), errors)


@pytest.mark.parametrize(
    ("happens", "type_url", "features", "state", "keeps"),
    [
        ("nack", CDS, (), NACKED, True),
        ("nack", CDS, (FAILS,), NACKED, False),
        ("nack", EDS, (FAILS,), NACKED, False),
        ("deletion", CDS, (), DOES_NOT_EXIST, False),
        ("deletion", CDS, (IGNORES,), DOES_NOT_EXIST, True),
        ("deletion", CDS, (FAILS,), DOES_NOT_EXIST, False),
        ("deletion", CDS, (IGNORES, FAILS), DOES_NOT_EXIST, False),
        ("deletion", EDS, (FAILS,), ResourceState.ACKED, True),
        ("not found", EDS, (), RECEIVED, True),
        ("not found", EDS, (FAILS,), RECEIVED, False),
        ("not found", CDS, (), RECEIVED, True),
        ("not found", CDS, (FAILS,), RECEIVED, False),
        ("not found", CDS, (IGNORES, FAILS), RECEIVED, False),
        ("not found", CDS, (IGNORES,), RECEIVED, True),
        ("forbidden", CDS, (), RECEIVED, True),
        ("forbidden", CDS, (FAILS,), RECEIVED, False),
        ("unavailable", CDS, (), RECEIVED, True),
        ("unavailable", CDS, (FAILS,), RECEIVED, True),
    ],
)
def test_a_resource_in_use(
    happens: str, type_url: str, features: tuple[str, ...], state: ResourceState, keeps: bool
) -> None:
    client, cache = machine(*features, cached=True, type_url=type_url)
    code = {"not found": 5, "forbidden": 7, "unavailable": 14}.get(happens, 0)
    client.received(response(type_url, *((b"bad",) if happens == "nack" else ()), code=code), 2.0)
    entry = cache.get(type_url, "a")
    assert entry is not None
    assert (state, keeps) == (entry.state, entry.value is not None)
    if state is not ResourceState.ACKED:
        assert entry.error
        assert 2.0 == entry.failed_at


@pytest.mark.parametrize(
    ("features", "delay_s", "state", "is_absent"),
    [((), 15.0, DOES_NOT_EXIST, True), ((TRANSIENT,), 30.0, ResourceState.TIMEOUT, False)],
)
def test_a_resource_that_does_not_come(
    features: tuple[str, ...], delay_s: float, state: ResourceState, is_absent: bool
) -> None:
    cache = ResourceCache()
    client = SotwMachine(cache, features=frozenset(features), decode=decode)
    client.want({EDS: frozenset("a")})
    client.opened()
    (timer,) = [command for command in client.sent() if isinstance(command, StartTimer)]
    assert delay_s == timer.delay_s
    client.timer_fired(timer.key, delay_s)
    entry = cache.get(EDS, "a")
    assert entry is not None
    assert (state, is_absent) == (entry.state, entry.is_absent)
    # "After expiry: stay subscribed. The resource may still arrive at any time and is then used."
    client.received(response(EDS, b"late"), 40.0)
    assert (ResourceState.ACKED, "") == (entry.state, entry.error)
    assert cache.value(EDS, "a") is not None


def test_the_error_stands_until_the_resource_comes_again() -> None:
    client, cache = machine(cached=True, type_url=EDS)
    client.received(response(EDS, code=7), 2.0)
    client.received(response(EDS), 3.0)
    entry = cache.get(EDS, "a")
    assert entry is not None
    assert RECEIVED is entry.state
    client.received(response(EDS, b"good"), 4.0)
    assert ResourceState.ACKED is entry.state
    assert not entry.error
