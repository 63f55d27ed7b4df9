"""Subscriptions to everything of a type, and to globs of xdstp names, in both variants of the protocol."""

import pytest

from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.discovery import Collection, ScopedRoute
from meshlib.model.endpoint import Endpoint
from meshlib.xds.bootstrap import WILDCARD_CDS_FEATURE, WILDCARD_LDS_FEATURE
from meshlib.xds.cache import CacheShare, ResourceCache, ResourceState, Spare
from meshlib.xds.commands import StartTimer
from meshlib.xds.decode import Decoded
from meshlib.xds.delta import DeltaMachine
from meshlib.xds.names import covers, is_collection, virtual_host_name
from meshlib.xds.resources import CDS, LDS, LEDS, SRDS, VHDS
from meshlib.xds.sotw import SotwMachine
from meshlib.xds.wire import AnyBytes, DeltaResponse, DiscoveryResponse, SendDelta, SendRequest

GLOB = "xdstp://a/envoy.config.endpoint.v3.LbEndpoint/shop/*"


def decode(type_url: str, body: bytes) -> Decoded:
    name, _, rest = body[2:].decode().partition("|")
    if rest == "bad":
        return Decoded(name, None, ("bad",))
    if type_url == SRDS:
        return Decoded(name, ScopedRoute(name, (rest,), f"{name}-routes"))
    if type_url == LEDS:
        return Decoded("", Endpoint(f"10.0.0.1:{rest}"))
    return Decoded(name, Cluster(name, EdsDiscovery(rest)))


def body(name: str, rest: str = "x") -> bytes:
    return b"\x0a" + bytes([len(name)]) + f"{name}|{rest}".encode()


def one(name: str, rest: str = "x", kind: str = CDS) -> AnyBytes:
    return AnyBytes(kind, body(name, rest), name, rest)


def sotw(cache: ResourceCache, *features: str) -> SotwMachine:
    return SotwMachine(CacheShare(cache), features=frozenset(features), decode=decode)


def delta(cache: ResourceCache, *features: str) -> DeltaMachine:
    return DeltaMachine(CacheShare(cache), features=frozenset(features), decode=decode)


def request_of(commands: tuple[object, ...]) -> SendRequest:
    (found,) = [command for command in commands if isinstance(command, SendRequest)]
    return found


def deltas_of(commands: tuple[object, ...]) -> list[SendDelta]:
    return [command for command in commands if isinstance(command, SendDelta)]


def answer(machine: SotwMachine, version: str, *resources: AnyBytes, kind: str = CDS) -> SendRequest:
    machine.sent()
    return request_of(machine.received(DiscoveryResponse(kind, version, f"n{version}", resources), 1.0))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("*", True),
        (GLOB, True),
        (f"{GLOB}?x=1", True),
        ("plain/*", False),
        ("xdstp://a/T/shop/one", False),
        ("xdstp://a/T/shop?x=/*", False),
    ],
)
def test_which_names_stand_for_many(name: str, expected: bool) -> None:
    assert is_collection(name) is expected


@pytest.mark.parametrize(
    ("collection", "name", "expected"),
    [
        ("*", "anything", True),
        ("*", "*", False),
        (GLOB, GLOB.replace("*", "one"), True),
        (GLOB, GLOB.replace("*", "one/two"), False),
        (GLOB, GLOB.replace("*", ""), False),
        (GLOB, GLOB.replace("shop/*", "other/one"), False),
        (GLOB, GLOB.replace("*", "one?x=1"), False),
        (f"{GLOB}?x=1", GLOB.replace("*", "one?x=1"), True),
    ],
)
def test_what_a_collection_covers(collection: str, name: str, expected: bool) -> None:
    assert covers(collection, name) is expected


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ("r", "r/shop.example:80"),
        ("a/b", "a/b/shop.example:80"),
        (
            "xdstp://a/envoy.config.route.v3.RouteConfiguration/r?x=1",
            "xdstp://a/envoy.config.route.v3.VirtualHost/r/shop.example:80?x=1",
        ),
    ],
)
def test_name_of_a_virtual_host_on_demand(routes: str, expected: str) -> None:
    assert virtual_host_name(routes, "Shop.example:80") == expected


# State of the world.


def test_nothing_is_asked_for_as_a_whole_by_default() -> None:
    machine = sotw(ResourceCache())
    machine.want({CDS: frozenset("a")})
    assert request_of(machine.opened()).names == ("a",)


def test_wildcard_is_the_empty_list_until_something_is_named() -> None:
    machine = sotw(ResourceCache(), WILDCARD_CDS_FEATURE)
    machine.want({})
    assert request_of(machine.opened()).names == ()
    machine.sent()
    assert answer(machine, "1", one("a"), one("b")).names == ()
    machine.sent()
    assert request_of(machine.want({CDS: frozenset("a")})).names == ("*", "a")
    machine.sent()
    assert request_of(machine.want({})).names == ("*",)
    machine.closed()
    assert request_of(machine.opened()).names == ()


def test_wildcard_is_of_the_types_that_ask_for_it() -> None:
    machine = sotw(ResourceCache(), WILDCARD_LDS_FEATURE)
    machine.want({CDS: frozenset("a")})
    assert (request_of(machine.opened()).type_url, machine.wanted(CDS)) == (LDS, frozenset("a"))


def test_what_comes_unasked_is_held_and_gone_when_it_is_left_out() -> None:
    cache = ResourceCache()
    machine = sotw(cache, WILDCARD_CDS_FEATURE)
    machine.want({CDS: frozenset("a")})
    machine.opened()
    machine.sent()
    answer(machine, "1", one("a"), one("b"), one("c", "bad"))
    machine.sent()
    assert cache.value(CDS, "b") == Cluster("b", EdsDiscovery("x"))
    refused = cache.peek(CDS, "c")
    assert refused is not None
    assert refused.state is ResourceState.NACKED
    answer(machine, "2", one("a"))
    assert sorted(cache.names(CDS)) == ["*", "a"]


def test_named_cluster_that_is_left_out_is_absent_and_stays_subscribed() -> None:
    cache = ResourceCache()
    machine = sotw(cache, WILDCARD_CDS_FEATURE)
    machine.want({CDS: frozenset("a")})
    machine.opened()
    machine.sent()
    answer(machine, "1", one("a"), one("b"))
    answer(machine, "2", one("b"))
    entry = cache.peek(CDS, "a")
    assert entry is not None
    assert (entry.state, entry.is_absent) == (ResourceState.DOES_NOT_EXIST, True)


def test_ignored_deletion_keeps_what_came_unasked() -> None:
    cache = ResourceCache()
    machine = sotw(cache, WILDCARD_CDS_FEATURE, "ignore_resource_deletion")
    machine.want({})
    machine.opened()
    machine.sent()
    answer(machine, "1", one("a"), one("b"))
    answer(machine, "2", one("a"))
    assert cache.value(CDS, "b") is not None
    machine.sent()
    machine.want({CDS: frozenset("z")})
    assert cache.value(CDS, "b") is not None


def test_giving_the_whole_up_frees_it_and_keeps_what_is_named() -> None:
    cache = ResourceCache()
    machine = sotw(cache)
    machine.want({SRDS: frozenset("*"), CDS: frozenset("c")})
    machine.opened()
    machine.sent()
    answer(machine, "1", one("s", kind=SRDS), one("t", kind=SRDS), kind=SRDS)
    machine.sent()
    machine.want({SRDS: frozenset("t"), CDS: frozenset("c")})
    machine.closed()
    assert sorted(cache.names(SRDS)) == ["t"]


def test_scopes_are_one_value_that_changes_with_each_of_them() -> None:
    cache = ResourceCache()
    machine = sotw(cache)
    machine.want({SRDS: frozenset("*")})
    commands = machine.opened() + machine.sent()
    assert StartTimer((SRDS, "*"), 15.0) in commands
    answer(machine, "1", one("s", "k", SRDS), one("t", "l", SRDS), kind=SRDS)
    first = cache.value(SRDS, "*")
    assert isinstance(first, Collection)
    assert dict(first.members) == {"s": ScopedRoute("s", ("k",), "s-routes"), "t": ScopedRoute("t", ("l",), "t-routes")}
    machine.sent()
    answer(machine, "2", one("s", "k", SRDS), one("t", "l", SRDS), kind=SRDS)
    assert cache.value(SRDS, "*") is first
    machine.sent()
    answer(machine, "3", one("s", "m", SRDS), kind=SRDS)
    second = cache.value(SRDS, "*")
    assert isinstance(second, Collection)
    assert list(second.members) == ["s"]


def test_no_scopes_is_an_answer_too() -> None:
    cache = ResourceCache()
    machine = sotw(cache)
    machine.want({SRDS: frozenset("*")})
    machine.opened()
    machine.sent()
    answer(machine, "1", kind=SRDS)
    entry = cache.peek(SRDS, "*")
    assert entry is not None
    assert (entry.state, entry.is_open_question) == (ResourceState.ACKED, False)


def test_silence_about_a_collection_is_noticed() -> None:
    cache = ResourceCache()
    machine = sotw(cache)
    machine.want({SRDS: frozenset("*")})
    machine.opened()
    machine.sent()
    machine.timer_fired((SRDS, "*"), 15.0)
    entry = cache.peek(SRDS, "*")
    assert entry is not None
    assert entry.state is ResourceState.DOES_NOT_EXIST


@pytest.mark.parametrize("kind", [VHDS, LEDS])
def test_what_only_the_incremental_variant_carries_is_refused_at_once(kind: str) -> None:
    cache = ResourceCache()
    machine = sotw(cache)
    machine.want({kind: frozenset("a")})
    assert machine.opened() == ()
    entry = cache.peek(kind, "a")
    assert entry is not None
    assert entry.state is ResourceState.RECEIVED_ERROR
    assert "meshlib.delta" in entry.error


def test_members_come_back_from_disk() -> None:
    cache = ResourceCache()
    cache.add_spares([Spare(SRDS, "s", "1", body("s", "k"), 0.0), Spare(CDS, "c", "1", body("c"), 0.0)])
    machine = sotw(cache)
    machine.want({SRDS: frozenset("*")})
    assert machine.adopt_spares(5.0)
    assert not machine.adopt_spares(6.0)
    found = cache.value(SRDS, "*")
    assert isinstance(found, Collection)
    assert list(found.members) == ["s"]
    assert cache.peek(CDS, "c") is None
    assert [spare.name for spare in cache.dump(1.0)] == ["s", "c"]
    machine.opened()
    machine.sent()
    answer(machine, "2", one("t", kind=SRDS), kind=SRDS)
    found = cache.value(SRDS, "*")
    assert isinstance(found, Collection)
    assert list(found.members) == ["t"]


# Incremental.


def test_incremental_wildcard_is_explicit_and_says_what_is_held() -> None:
    cache = ResourceCache()
    machine = delta(cache, WILDCARD_CDS_FEATURE)
    machine.want({CDS: frozenset("a")})
    (first,) = deltas_of(machine.opened())
    assert (first.subscribe, first.held) == (("*", "a"), ())
    machine.sent()
    machine.received(DeltaResponse(CDS, "1", (one("a", "x"), one("b", "y"))), 1.0)
    assert cache.value(CDS, "b") is not None
    machine.closed()
    (again,) = deltas_of(machine.opened())
    assert (again.subscribe, again.held) == (("*", "a"), (("a", "x"), ("b", "y")))
    machine.sent()
    machine.received(DeltaResponse(CDS, "1", (), ("b",)), 2.0)
    assert sorted(cache.names(CDS)) == ["*", "a"]


def test_glob_gathers_its_members() -> None:
    cache = ResourceCache()
    machine = delta(cache)
    machine.want({LEDS: frozenset({GLOB})})
    machine.opened()
    machine.sent()
    names = [GLOB.replace("*", each) for each in ("one", "two")]
    members = tuple(AnyBytes(LEDS, body("", str(port)), name, "1") for port, name in enumerate(names, 1))
    machine.received(DeltaResponse(LEDS, "1", members), 1.0)
    found = cache.value(LEDS, GLOB)
    assert isinstance(found, Collection)
    assert dict(found.members) == {names[0]: Endpoint("10.0.0.1:1"), names[1]: Endpoint("10.0.0.1:2")}
    machine.received(DeltaResponse(LEDS, "2", (), (names[0],)), 2.0)
    found = cache.value(LEDS, GLOB)
    assert isinstance(found, Collection)
    assert list(found.members) == [names[1]]
    machine.received(DeltaResponse(LEDS, "3", (), (GLOB,)), 3.0)
    found = cache.value(LEDS, GLOB)
    assert isinstance(found, Collection)
    assert not found.members
    assert cache.names(LEDS) == (GLOB,)


def test_one_globs_members_do_not_answer_for_another() -> None:
    cache = ResourceCache()
    machine = delta(cache)
    other = GLOB.replace("shop", "other")
    machine.want({LEDS: frozenset({GLOB, other})})
    machine.opened()
    machine.sent()
    machine.received(DeltaResponse(LEDS, "1", (AnyBytes(LEDS, body("", "1"), GLOB.replace("*", "one"), "1"),)), 1.0)
    assert [entry.is_answered for name in (GLOB, other) if (entry := cache.peek(LEDS, name)) is not None] == [
        True,
        False,
    ]


def test_fall_back_to_the_other_variant_keeps_members() -> None:
    cache = ResourceCache()
    machine = delta(cache)
    machine.want({SRDS: frozenset("*")})
    machine.opened()
    machine.sent()
    machine.received(DeltaResponse(SRDS, "1", (one("s", kind=SRDS),)), 1.0)
    machine.closed()
    machine.as_sotw()
    assert cache.value(SRDS, "s") is not None


def test_virtual_host_that_does_not_exist_is_said_by_a_resource_without_contents() -> None:
    cache = ResourceCache()
    machine = delta(cache)
    machine.want({VHDS: frozenset({"r/a", "r/b"})})
    machine.opened()
    machine.sent()
    commands = machine.received(DeltaResponse(VHDS, "1", (AnyBytes("", None, "r/a", "", ("r/b",)),)), 1.0)
    assert [request.error for request in deltas_of(commands)] == [""]
    assert [entry.is_absent for entry in cache.entries()] == [True, True]


def test_what_has_expired_leaves_its_collection() -> None:
    cache = ResourceCache()
    machine = delta(cache)
    machine.want({SRDS: frozenset("*")})
    machine.opened()
    machine.sent()
    mortal = AnyBytes(SRDS, body("s", "k"), "s", "1", (), 5.0)
    machine.received(DeltaResponse(SRDS, "1", (mortal, one("t", "l", SRDS))), 1.0)
    machine.expired((SRDS, "s"), 6.0)
    found = cache.value(SRDS, "*")
    assert isinstance(found, Collection)
    assert list(found.members) == ["t"]


def mortal(name: str, kind: str) -> AnyBytes:
    return AnyBytes(kind, body(name, "k"), name, "k", (), 5.0)


@pytest.mark.parametrize(("kind", "features"), [(SRDS, ()), (CDS, (WILDCARD_CDS_FEATURE,))])
def test_an_expired_member_is_asked_for_by_name_when_the_server_still_keeps_it_alive(
    kind: str, features: tuple[str, ...]
) -> None:
    """Its time alone asks for nothing, as in Envoy; the heartbeat shows that the server believes it here."""
    cache = ResourceCache()
    machine = delta(cache, *features)
    machine.want({SRDS: frozenset("*")} if kind == SRDS else {})
    machine.opened()
    machine.sent()
    machine.received(DeltaResponse(kind, "1", (mortal("s", kind), one("t", "l", kind))), 1.0)
    machine.sent()
    assert deltas_of(machine.expired((kind, "s"), 6.0)) == []
    assert cache.value(kind, "s") is None
    beat = AnyBytes("", None, "s", "k", (), 5.0)
    assert [request.error for request in deltas_of(machine.received(DeltaResponse(kind, "2", (beat,)), 7.0))] == [""]
    assert [request.subscribe for request in deltas_of(machine.sent())] == [("s",)]
    assert deltas_of(machine.sent()) == []
    machine.received(DeltaResponse(kind, "3", (mortal("s", kind),)), 8.0)
    assert cache.value(kind, "s") is not None
    assert [request.unsubscribe for request in deltas_of(machine.sent())] == [("s",)]
    machine.sent()
    # The collection covers it, so the server sends it again, and it is a member as before.
    machine.received(DeltaResponse(kind, "4", (mortal("s", kind),)), 9.0)
    machine.sent()
    assert cache.value(kind, "s") is not None
    machine.expired((kind, "s"), 14.0)
    assert cache.value(kind, "s") is None


def test_an_expired_member_that_is_gone_when_asked_for_is_forgotten() -> None:
    cache = ResourceCache()
    machine = delta(cache)
    machine.want({SRDS: frozenset("*")})
    machine.opened()
    machine.sent()
    machine.received(DeltaResponse(SRDS, "1", (mortal("s", SRDS),)), 1.0)
    machine.sent()
    machine.expired((SRDS, "s"), 6.0)
    machine.received(DeltaResponse(SRDS, "2", (AnyBytes("", None, "s", "k", (), 5.0),)), 7.0)
    machine.sent()
    machine.sent()
    machine.received(DeltaResponse(SRDS, "3", (), ("s",)), 8.0)
    assert [request.unsubscribe for request in deltas_of(machine.sent())] == [("s",)]
    machine.sent()
    assert cache.names(SRDS) == ("*",)
