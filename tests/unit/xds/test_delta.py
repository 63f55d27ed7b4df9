"""The incremental stream's machine, message by message, with resources that are one line of text."""

from meshlib.events import ResourceAccepted, ResourceRejected
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.xds.cache import Entry, ResourceCache, ResourceState, Spare
from meshlib.xds.commands import CancelTimer, Command, Report, StartExpiry, StartTimer, StopExpiry
from meshlib.xds.decode import Decoded
from meshlib.xds.delta import DeltaMachine, new_machine
from meshlib.xds.resources import CDS, EDS, LDS, RDS
from meshlib.xds.sotw import SotwMachine
from meshlib.xds.wire import AnyBytes, DeltaResponse, ResourceError, SendDelta, SendRequest


def body(name: str, content: str = "1") -> bytes:
    """A resource whose field 1 is its name, as real ones have it."""
    return b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12" + content.encode()


def decode(type_url: str, data: bytes) -> Decoded:
    name, content = data[2 : 2 + data[1]].decode(), data[3 + data[1] :].decode()
    if content.startswith("bad"):
        return Decoded(name, None, (f"field: {content}",), ())
    return Decoded(name, ClusterLoadAssignment(f"{name}={content}"), (), ())


def machine(*features: str) -> tuple[DeltaMachine, ResourceCache]:
    cache = ResourceCache()
    return DeltaMachine(cache, features=frozenset(features), decode=decode), cache


def resource(
    name: str, content: str = "1", *, type_url: str = CDS, aliases: tuple[str, ...] = (), ttl_s: float | None = None
) -> AnyBytes:
    """A resource whose version is its content."""
    return AnyBytes(type_url, body(name, content), name, content, aliases, ttl_s)


def heartbeat(name: str, version: str, ttl_s: float = 10.0) -> AnyBytes:
    return AnyBytes("", None, name, version, (), ttl_s)


def response(
    nonce: str,
    *resources: AnyBytes,
    type_url: str = CDS,
    removed: tuple[str, ...] = (),
    errors: tuple[ResourceError, ...] = (),
) -> DeltaResponse:
    return DeltaResponse(type_url, nonce, resources, removed, errors)


def requests(commands: tuple[Command, ...]) -> list[SendDelta]:
    return [command for command in commands if isinstance(command, SendDelta)]


def subscribed(*names: str, type_url: str = CDS, features: tuple[str, ...] = ()) -> tuple[DeltaMachine, ResourceCache]:
    """A machine whose first request is on the wire."""
    result, cache = machine(*features)
    result.want({type_url: frozenset(names)})
    result.opened()
    result.sent()
    return result, cache


def holding(*names: str, features: tuple[str, ...] = ()) -> tuple[DeltaMachine, ResourceCache]:
    """A machine that was sent all it wants, and has acknowledged it."""
    result, cache = subscribed(*names, features=features)
    result.received(response("n1", *(resource(name) for name in names)), 1.0)
    result.sent()
    return result, cache


def entry_of(cache: ResourceCache, name: str, type_url: str = CDS) -> Entry:
    entry = cache.get(type_url, name)
    assert entry is not None
    return entry


def value(cache: ResourceCache, name: str, type_url: str = CDS) -> str | None:
    found = cache.value(type_url, name)
    return None if found is None else found.name


def test_first_request_names_all_and_holds_nothing() -> None:
    client, _ = machine()
    assert client.want({CDS: frozenset(("b", "a"))}) == ()
    assert (SendDelta(CDS, ("a", "b"), with_node=True),) == client.opened()


def test_each_type_is_told_once_who_we_are_where_each_has_a_stream_of_its_own() -> None:
    client, _ = machine("meshlib.separate_streams")
    client.want({CDS: frozenset("a"), EDS: frozenset("x")})
    commands = (*client.opened(), *client.sent(), *client.sent())
    commands += client.want({CDS: frozenset("ab"), EDS: frozenset("x")})
    assert [True, True, False] == [request.with_node for request in requests(commands)]


def test_only_what_changed_is_requested_and_changes_coalesce() -> None:
    client, _ = machine()
    client.want({CDS: frozenset("ab")})
    client.opened()
    assert requests(client.want({CDS: frozenset("abc")})) == []
    assert requests(client.want({CDS: frozenset("bcd")})) == []
    assert [SendDelta(CDS, ("c", "d"), ("a",))] == requests(client.sent())


def test_a_change_taken_back_before_it_was_sent_sends_nothing() -> None:
    client, _ = machine()
    client.want({CDS: frozenset("a")})
    client.opened()
    client.want({CDS: frozenset("ab")})
    client.want({CDS: frozenset("a")})
    assert requests(client.sent()) == []


def test_an_empty_request_never_opens_a_type() -> None:
    client, _ = machine()
    client.want({CDS: frozenset("a")})
    client.want({})
    assert client.opened() == ()


def test_ack_carries_the_nonce_and_nothing_else() -> None:
    client, cache = subscribed("a")
    commands = client.received(response("n1", resource("a", "7")), 1.0)
    assert [SendDelta(CDS, nonce="n1")] == requests(commands)
    assert Report(ResourceAccepted(CDS, "a", "7")) in commands
    assert (value(cache, "a"), entry_of(cache, "a").version) == ("a=7", "7")


def test_every_response_is_answered_by_itself_and_in_order() -> None:
    client, _ = subscribed("a")
    assert [SendDelta(CDS, nonce="n1")] == requests(client.received(response("n1", resource("a", "1")), 1.0))
    client.received(response("n2", resource("a", "bad")), 1.0)
    client.received(response("n3", resource("a", "3")), 1.0)
    client.want({CDS: frozenset("ab")})
    (second,) = requests(client.sent())
    assert second.nonce == "n2"
    assert "resource index 0: a: field: bad" in second.error
    assert [SendDelta(CDS, nonce="n3")] == requests(client.sent())
    assert [SendDelta(CDS, ("b",))] == requests(client.sent())


def test_good_resources_of_a_bad_response_are_used_and_each_keeps_its_version() -> None:
    client, cache = holding("a", "b")
    commands = client.received(response("n2", resource("a", "2"), resource("b", "bad2")), 2.0)
    assert [
        SendDelta(CDS, nonce="n2", error="xDS response validation errors: [resource index 1: b: field: bad2]")
    ] == requests(commands)
    assert Report(ResourceRejected(CDS, "b", "bad2", "field: bad2")) in commands
    assert (value(cache, "a"), value(cache, "b")) == ("a=2", "b=1")
    assert (ResourceState.NACKED, "1", "bad2") == (
        entry_of(cache, "b").state,
        entry_of(cache, "b").version,
        entry_of(cache, "b").failed_version,
    )
    client.closed()
    assert [SendDelta(CDS, ("a", "b"), held=(("a", "2"), ("b", "1")), with_node=True)] == requests(client.opened())


def test_a_new_stream_says_what_is_held_in_the_first_request_of_a_type_only() -> None:
    client, cache = holding("a")
    client.want({CDS: frozenset("ab")})
    client.closed()
    assert [SendDelta(CDS, ("a", "b"), held=(("a", "1"),), with_node=True)] == requests(client.opened())
    assert value(cache, "a") == "a=1"
    client.sent()
    assert [SendDelta(CDS, ("c",))] == requests(client.want({CDS: frozenset("abc")}))


def test_what_another_source_put_into_the_cache_is_not_said_to_be_held() -> None:
    client, cache = holding("a", "b")
    entry_of(cache, "a").value = ClusterLoadAssignment("from another server")
    client.closed()
    assert (("b", "1"),) == requests(client.opened())[0].held


def test_copies_from_disk_are_not_said_to_be_held() -> None:
    client, cache = machine()
    cache.add_spares((Spare(CDS, "a", "old", body("a"), 0.0),))
    client.want({CDS: frozenset("a")})
    client.adopt_spares(1.0)
    assert requests(client.opened())[0].held == ()
    assert (StartTimer((CDS, "a"), 15.0),) == client.sent()
    client.received(response("n1", resource("a", "2")), 2.0)
    assert (value(cache, "a"), entry_of(cache, "a").is_spare) == ("a=2", False)


def test_a_copy_from_disk_goes_when_the_server_says_that_it_does_not_exist() -> None:
    client, cache = machine()
    cache.add_spares((Spare(CDS, "a", "old", body("a"), 0.0),))
    client.want({CDS: frozenset("a")})
    client.adopt_spares(1.0)
    client.opened()
    client.sent()
    client.received(response("n1", removed=("a",)), 2.0)
    assert (value(cache, "a"), entry_of(cache, "a").is_absent) == (None, True)


def test_unsubscribed_names_are_forgotten_once_the_server_was_told() -> None:
    client, cache = holding("a", "b")
    assert [SendDelta(CDS, (), ("a",))] == requests(client.want({CDS: frozenset("b")}))
    assert set(cache.names(CDS)) == {"a", "b"}
    client.sent()
    assert cache.names(CDS) == ("b",)


def test_a_name_unsubscribed_and_wanted_again_is_asked_for_again() -> None:
    client, cache = holding("a")
    client.want({})
    client.sent()
    assert [SendDelta(CDS, ("a",))] == requests(client.want({CDS: frozenset("a")}))
    assert (StartTimer((CDS, "a"), 15.0),) == client.sent()
    assert value(cache, "a") is None


def test_unwatch_and_watch_between_two_requests_keeps_the_value() -> None:
    client, cache = subscribed("a", "b")
    client.received(response("n1", resource("a"), resource("b")), 1.0)
    client.want({CDS: frozenset("a")})
    client.want({CDS: frozenset("ab")})
    assert client.sent() == ()
    assert value(cache, "b") == "b=1"


def test_what_came_while_a_name_was_given_up_and_the_server_did_not_know_yet_is_not_missed() -> None:
    client, cache = subscribed("a", "b")
    client.want({CDS: frozenset("ab"), EDS: frozenset("x")})
    client.want({EDS: frozenset("x")})
    client.received(response("n1", resource("a"), removed=("b",)), 1.0)
    client.want({CDS: frozenset("ab"), EDS: frozenset("x")})
    assert [SendDelta(CDS, nonce="n1")] == requests(client.sent())
    assert requests(client.sent()) == []
    assert (value(cache, "a"), entry_of(cache, "b").is_absent) == ("a=1", True)


def test_names_wanted_and_given_up_before_they_were_asked_for_are_forgotten() -> None:
    client, cache = subscribed("a")
    client.want({CDS: frozenset("ab")})
    client.want({CDS: frozenset("abc")})
    client.want({CDS: frozenset("ab")})
    assert set(cache.names(CDS)) == {"a", "b"}


def test_resources_of_every_type_are_removed_by_name() -> None:
    for type_url in (LDS, RDS, CDS, EDS):
        client, cache = subscribed("a", "b", type_url=type_url)
        client.received(response("n1", *(resource(n, type_url=type_url) for n in "ab"), type_url=type_url), 1.0)
        commands = client.received(response("n2", type_url=type_url, removed=("a", "nobody")), 2.0)
        assert Report(ResourceRejected(type_url, "a", "", "was removed")) in commands
        gone = entry_of(cache, "a", type_url)
        assert (None, ResourceState.DOES_NOT_EXIST, True) == (gone.value, gone.state, gone.is_absent)
        assert value(cache, "b", type_url) == "b=1"
        client.closed()
        assert (("b", "1"),) == requests(client.opened())[0].held


def test_what_does_not_exist_is_known_at_once_and_its_timer_stops() -> None:
    client, cache = subscribed("a")
    assert CancelTimer((CDS, "a")) in client.received(response("n1", removed=("a",)), 1.0)
    assert (ResourceState.DOES_NOT_EXIST, "does not exist", True) == (
        entry_of(cache, "a").state,
        entry_of(cache, "a").error,
        entry_of(cache, "a").is_absent,
    )
    client.sent()
    client.received(response("n2", resource("a")), 2.0)
    assert (value(cache, "a"), entry_of(cache, "a").is_absent) == ("a=1", False)


def test_the_timer_guards_against_servers_that_say_nothing() -> None:
    client, cache = machine()
    client.want({EDS: frozenset("a")})
    assert not [command for command in client.opened() if isinstance(command, StartTimer)]
    assert (StartTimer((EDS, "a"), 15.0),) == client.sent()
    client.timer_fired((EDS, "a"), 15.0)
    assert entry_of(cache, "a", EDS).state is ResourceState.DOES_NOT_EXIST
    client.received(response("n1", resource("a", type_url=EDS), type_url=EDS), 16.0)
    assert entry_of(cache, "a", EDS).state is ResourceState.ACKED


def test_timers_die_with_the_stream_and_start_again_for_what_is_unknown() -> None:
    client, _ = subscribed("a", "b")
    client.received(response("n1", resource("a")), 1.0)
    assert (CancelTimer((CDS, "b")),) == client.closed()
    client.opened()
    assert (StartTimer((CDS, "b"), 15.0),) == client.sent()


def test_absence_says_nothing() -> None:
    client, cache = holding("a", "b")
    client.received(response("n2", resource("a", "2")), 2.0)
    client.received(response("n3"), 3.0)
    assert (value(cache, "a"), value(cache, "b")) == ("a=2", "b=1")


def test_ignore_resource_deletion_keeps_what_was_in_use() -> None:
    client, cache = holding("a", features=("ignore_resource_deletion",))
    client.received(response("n2", removed=("a",)), 2.0)
    assert (value(cache, "a"), entry_of(cache, "a").state) == ("a=1", ResourceState.DOES_NOT_EXIST)


def test_a_resource_both_sent_and_removed_is_kept_and_complained_of() -> None:
    client, cache = subscribed("a")
    (answer,) = requests(client.received(response("n1", resource("a"), removed=("a",)), 1.0))
    assert "removed_resources index 0: a: is in resources too" in answer.error
    assert value(cache, "a") == "a=1"


def test_a_name_that_appears_twice_is_refused_and_the_first_kept() -> None:
    client, cache = subscribed("a")
    (answer,) = requests(client.received(response("n1", resource("a", "1"), resource("a", "2")), 1.0))
    assert "appears twice" in answer.error
    assert value(cache, "a") == "a=1"
    client.closed()
    assert (("a", "1"),) == requests(client.opened())[0].held


def test_a_resource_without_a_name_or_with_another_one_inside_is_refused() -> None:
    client, cache = subscribed("a", "b")
    odd = (AnyBytes(CDS, body("a"), "", "1"), AnyBytes(CDS, body("a"), "b", "1"))
    (answer,) = requests(client.received(response("n1", *odd), 1.0))
    assert "resource index 0: no name; resource index 1: b: is called 'a' inside" in answer.error
    assert (value(cache, "a"), value(cache, "b")) == (None, None)
    assert entry_of(cache, "b").state is ResourceState.NACKED


def test_a_resource_of_another_type_or_with_nothing_in_it_is_refused() -> None:
    client, _ = subscribed("a", "b")
    odd = (AnyBytes(LDS, body("a"), "a", "1"), AnyBytes("", None, "b", "1"))
    (answer,) = requests(client.received(response("n1", *odd), 1.0))
    assert f"resource index 0: a: is of type '{LDS}' instead of CDS" in answer.error
    assert "resource index 1: b: resource missing" in answer.error


def test_an_alias_subscribed_to_is_served_and_removed_under_its_own_name() -> None:
    client, cache = subscribed("web", "other")
    client.received(response("n1", resource("frontend", "1", aliases=("web", "www"))), 1.0)
    assert value(cache, "web") == "frontend=1"
    client.sent()
    client.received(response("n2", resource("frontend", "2")), 2.0)
    assert value(cache, "web") == "frontend=2"
    client.closed()
    (again,) = requests(client.opened())
    assert (again.subscribe, again.held) == (("other", "web"), (("frontend", "2"),))
    client.sent()
    client.received(response("n3", removed=("frontend",)), 3.0)
    assert (value(cache, "web"), entry_of(cache, "web").is_absent) == (None, True)


def test_names_with_parameters_in_another_order_are_the_same() -> None:
    name = "xdstp://corp/envoy.config.cluster.v3.Cluster/a?x=1&y=2"
    client, cache = subscribed(name)
    other = "xdstp://corp/envoy.config.cluster.v3.Cluster/a?y=2&x=1"
    client.received(response("n1", AnyBytes(CDS, body(other), other, "1")), 1.0)
    assert entry_of(cache, name).state is ResourceState.ACKED
    client.received(response("n2", removed=(other,)), 2.0)
    assert entry_of(cache, name).state is ResourceState.DOES_NOT_EXIST


def test_resource_errors_are_kept_beside_the_value_and_not_found_removes() -> None:
    client, cache = subscribed("a", "b", "c", type_url=EDS)
    client.received(response("n1", *(resource(n, type_url=EDS) for n in "ab"), type_url=EDS), 1.0)
    client.sent()
    errors = (ResourceError("a", 7, "not for you"), ResourceError("b", 5, ""), ResourceError("c", 5, ""))
    (answer,) = requests(client.received(response("n2", type_url=EDS, errors=errors), 2.0))
    assert answer.error == ""
    states = [(entry_of(cache, n, EDS).state, entry_of(cache, n, EDS).error, value(cache, n, EDS)) for n in "abc"]
    assert [
        (ResourceState.RECEIVED_ERROR, "not for you", "a=1"),
        (ResourceState.RECEIVED_ERROR, "does not exist", None),
        (ResourceState.RECEIVED_ERROR, "does not exist", None),
    ] == states
    client.closed()
    assert (("a", "1"),) == requests(client.opened())[0].held


def test_resource_errors_without_a_name_or_a_code_are_refused() -> None:
    client, _ = subscribed("a")
    errors = (ResourceError("", 5, ""), ResourceError("a", 0, ""))
    (answer,) = requests(client.received(response("n1", errors=errors), 1.0))
    assert "resource_errors index 0: no name; resource_errors index 1: code OK" in answer.error


def test_fail_on_data_errors_drops_what_was_refused_and_does_not_claim_it() -> None:
    client, cache = holding("a", features=("fail_on_data_errors",))
    client.received(response("n2", resource("a", "bad")), 2.0)
    assert value(cache, "a") is None
    client.closed()
    assert requests(client.opened())[0].held == ()


def test_types_never_asked_for_get_no_answer_and_neither_do_responses_without_a_nonce() -> None:
    client, cache = subscribed("a")
    assert client.received(response("n1", resource("a", type_url=LDS), type_url=LDS), 1.0) == ()
    assert client.received(response("n1", type_url="type.googleapis.com/x.Y"), 1.0) == ()
    assert requests(client.received(response("", resource("a")), 1.0)) == []
    assert value(cache, "a") == "a=1"


def test_a_type_left_empty_still_answers() -> None:
    client, _ = holding("a")
    client.want({})
    client.sent()
    assert [SendDelta(CDS, nonce="n2")] == requests(client.received(response("n2", removed=("a",)), 2.0))


def test_equal_bytes_stay_the_same_object_under_a_new_version() -> None:
    client, cache = holding("a")
    before = cache.value(CDS, "a")
    commands = client.received(response("n2", AnyBytes(CDS, body("a"), "a", "2")), 2.0)
    assert before is cache.value(CDS, "a")
    assert not [command for command in commands if isinstance(command, Report)]
    client.closed()
    assert (("a", "2"),) == requests(client.opened())[0].held


def test_silence_after_a_reconnect_is_an_answer_when_all_is_held() -> None:
    client, _ = holding("a")
    client.closed()
    client.opened()
    looks = [client.expects_nothing]
    client.sent()
    looks.append(client.expects_nothing)
    client.want({CDS: frozenset("ab")})
    client.sent()
    looks.append(client.expects_nothing)
    client.received(response("n1", removed=("b",)), 2.0)
    assert [False, True, False, True] == [*looks, client.expects_nothing]


def test_a_resource_lives_as_long_as_it_was_given_and_heartbeats_prolong_that() -> None:
    client, cache = subscribed("a")
    assert StartExpiry((CDS, "a"), 11.0) in client.received(response("n1", resource("a", ttl_s=10.0)), 1.0)
    client.sent()
    commands = client.received(response("n2", heartbeat("a", "1")), 9.0)
    assert [StartExpiry((CDS, "a"), 19.0), SendDelta(CDS, nonce="n2")] == list(commands)
    assert client.expired((CDS, "a"), 11.0) == ()
    assert value(cache, "a") == "a=1"
    client.closed()
    assert Report(ResourceRejected(CDS, "a", "1", "its time to live has passed")) in client.expired((CDS, "a"), 19.0)
    assert (None, ResourceState.DOES_NOT_EXIST, True) == (
        value(cache, "a"),
        entry_of(cache, "a").state,
        entry_of(cache, "a").is_absent,
    )
    assert requests(client.opened())[0].held == ()


def test_a_resource_that_comes_without_a_time_to_live_lives_on() -> None:
    client, cache = subscribed("a")
    client.received(response("n1", resource("a", ttl_s=10.0)), 1.0)
    assert StopExpiry((CDS, "a")) in client.received(response("n2", resource("a", "2")), 2.0)
    assert client.expired((CDS, "a"), 11.0) == ()
    assert value(cache, "a") == "a=2"


def test_a_heartbeat_that_comes_too_late_has_the_resource_sent_again() -> None:
    client, cache = subscribed("a")
    client.received(response("n1", resource("a", ttl_s=10.0)), 1.0)
    client.sent()
    client.expired((CDS, "a"), 11.0)
    client.received(response("n2", heartbeat("a", "1")), 12.0)
    assert [SendDelta(CDS, ("a",))] == requests(client.sent())
    client.received(response("n3", resource("a", ttl_s=10.0)), 13.0)
    assert value(cache, "a") == "a=1"


def test_a_late_heartbeat_of_what_was_given_up_does_not_keep_the_server_from_being_told() -> None:
    client, cache = subscribed("a")
    client.received(response("n1", resource("a", ttl_s=10.0)), 1.0)  # its answer is under way
    client.want({})
    client.expired((CDS, "a"), 11.0)
    client.received(response("n2", heartbeat("a", "1")), 12.0)
    told = [*requests(client.sent()), *requests(client.sent()), *requests(client.sent())]
    assert ("a",) in [request.unsubscribe for request in told]
    client.sent()
    assert () == cache.names(CDS)


def test_times_to_live_are_said_again_on_each_stream_and_stop_when_given_up() -> None:
    client, _ = subscribed("a")
    client.received(response("n1", resource("a", ttl_s=10.0)), 1.0)
    client.closed()
    assert StartExpiry((CDS, "a"), 11.0) in client.opened()
    client.sent()
    client.want({})
    assert (StopExpiry((CDS, "a")),) == client.sent()


def test_the_other_variant_goes_on_with_the_same_names_and_values() -> None:
    client, cache = holding("a", "b")
    client.closed()
    other = client.as_sotw()
    assert (SendRequest(CDS, ("a", "b"), "", "", with_node=True),) == other.opened()
    assert value(cache, "a") == "a=1"


def test_the_features_of_the_server_choose_the_variant() -> None:
    assert isinstance(new_machine(ResourceCache(), frozenset(("xds_v3",))), SotwMachine)
    assert isinstance(new_machine(ResourceCache(), frozenset(("meshlib.delta",))), DeltaMachine)


def test_resources_and_removals_of_names_never_asked_for_are_acknowledged_and_not_kept() -> None:
    """Servers that take the names we hold for subscriptions (istiod, Consul) send more than was asked for."""
    client, cache = holding("a")
    commands = client.received(response("n2", resource("b"), heartbeat("c", "1"), removed=("d",)), 2.0)
    assert [(request.nonce, request.error) for request in requests(commands)] == [("n2", "")]
    assert cache.names(CDS) == ("a",)
    client.sent()
    assert requests(client.sent()) == []


def test_an_empty_response_is_acknowledged() -> None:
    """go-control-plane answers requests that ask for nothing with it."""
    client, cache = holding("a")
    assert [(request.nonce, request.error) for request in requests(client.received(response("n2"), 2.0))] == [
        ("n2", "")
    ]
    assert value(cache, "a") == "a=1"


def test_a_type_without_a_service_is_not_asked_for_until_the_next_stream() -> None:
    client, cache = machine("meshlib.separate_streams")
    client.want({EDS: frozenset("a"), CDS: frozenset("c")})
    client.opened()
    assert [EDS] == [request.type_url for request in requests(client.sent())]
    client.unserved(EDS, "no such method")
    (clusters,) = requests(client.want({EDS: frozenset("ab"), CDS: frozenset("cd")}))
    assert (CDS, ("d",)) == (clusters.type_url, clusters.subscribe)
    for name in "ab":
        entry = cache.get(EDS, name)
        assert entry is not None
        assert (ResourceState.RECEIVED_ERROR, "the management server has no EDS: no such method") == (
            entry.state,
            entry.error,
        )
    client.closed()
    client.opened()
    assert [(EDS, ("a", "b"))] == [(request.type_url, request.subscribe) for request in requests(client.sent())]


def test_a_type_whose_own_stream_has_ended_begins_anew_with_what_is_held() -> None:
    client, cache = machine("meshlib.separate_streams")
    client.want({EDS: frozenset("abx"), CDS: frozenset("c")})
    client.opened()
    client.sent()
    client.sent()
    client.received(response("n1", resource("a", "5", type_url=EDS), resource("x", type_url=EDS), type_url=EDS), 1.0)
    client.want({EDS: frozenset("ab"), CDS: frozenset("c")})  # which the server is still to hear
    client.paused(EDS)
    assert {"a", "b"} == set(cache.names(EDS))
    assert [] == requests(client.want({EDS: frozenset("abd"), CDS: frozenset("c")}))
    assert [SendDelta(EDS, ("a", "b", "d"), (), (("a", "5"),), with_node=True)] == requests(client.resumed(EDS))
