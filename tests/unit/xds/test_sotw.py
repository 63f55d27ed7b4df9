"""The stream's machine, message by message, with resources that are one line of text."""

from meshlib.events import ResourceAccepted, ResourceRejected
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.xds.cache import ResourceCache, ResourceState, Spare
from meshlib.xds.commands import StartExpiry, StopExpiry
from meshlib.xds.decode import Decoded
from meshlib.xds.resources import CDS, EDS, LDS
from meshlib.xds.sotw import CancelTimer, Command, Report, SotwMachine, StartTimer
from meshlib.xds.wire import AnyBytes, DiscoveryResponse, ResourceError, SendRequest


def body(name: str, content: str = "1") -> bytes:
    """A resource whose field 1 is its name, as real ones have it."""
    return b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12" + content.encode()


def decode(type_url: str, data: bytes) -> Decoded:
    name, content = data[2 : 2 + data[1]].decode(), data[3 + data[1] :].decode()
    if content.startswith("bad"):
        return Decoded(name, None, (f"field: {content}",), ())
    if content.startswith("nameless"):
        return Decoded("", None, ("cannot be parsed",), ())
    if content.startswith("bug"):
        raise ZeroDivisionError(content)
    return Decoded(name, ClusterLoadAssignment(f"{name}={content}"), (), ())


def machine(*features: str) -> tuple[SotwMachine, ResourceCache]:
    cache = ResourceCache()
    return SotwMachine(cache, features=frozenset(features), decode=decode), cache


def response(
    type_url: str, version: str, *resources: bytes, nonce: str = "", errors: tuple[ResourceError, ...] = ()
) -> DiscoveryResponse:
    return DiscoveryResponse(
        type_url, version, nonce or f"n{version}", tuple(AnyBytes(type_url, data) for data in resources), errors
    )


def requests(commands: tuple[Command, ...]) -> list[SendRequest]:
    return [command for command in commands if isinstance(command, SendRequest)]


def subscribed(*names: str, type_url: str = CDS, features: tuple[str, ...] = ()) -> tuple[SotwMachine, ResourceCache]:
    """A machine whose first request is on the wire."""
    result, cache = machine(*features)
    result.want({type_url: frozenset(names)})
    result.opened()
    result.sent()
    return result, cache


def value(cache: ResourceCache, name: str, type_url: str = CDS) -> str | None:
    found = cache.value(type_url, name)
    return None if found is None else found.name


def test_first_request_carries_node_and_no_version() -> None:
    client, _ = machine()
    assert client.want({CDS: frozenset(("b", "a"))}) == ()
    assert (SendRequest(CDS, ("a", "b"), "", "", with_node=True),) == client.opened()


def test_each_type_is_told_who_we_are_where_each_has_a_stream_of_its_own() -> None:
    client, _ = machine("meshlib.separate_streams")
    client.want({CDS: frozenset("a"), EDS: frozenset("x")})
    commands = [*client.opened(), *client.sent(), *client.sent()]
    client.want({CDS: frozenset("ab"), EDS: frozenset("x")})
    client.closed()
    commands += client.opened()
    assert [True, True, True] == [command.with_node for command in commands if isinstance(command, SendRequest)]


def test_one_request_is_under_way_and_changes_coalesce() -> None:
    client, _ = machine()
    client.want({CDS: frozenset("a")})
    client.opened()
    assert requests(client.want({CDS: frozenset("ab")})) == []
    assert requests(client.want({CDS: frozenset("abc")})) == []
    assert [SendRequest(CDS, ("a", "b", "c"), "", "")] == requests(client.sent())


def test_a_change_taken_back_before_it_was_sent_sends_nothing() -> None:
    client, _ = machine()
    client.want({CDS: frozenset("a")})
    client.opened()
    client.want({CDS: frozenset("ab")})
    client.want({CDS: frozenset("a")})
    assert requests(client.sent()) == []


def test_ack_carries_version_and_nonce() -> None:
    client, cache = subscribed("a")
    commands = client.received(response(CDS, "7", body("a")), 1.0)
    assert [SendRequest(CDS, ("a",), "7", "n7")] == requests(commands)
    assert Report(ResourceAccepted(CDS, "a", "7")) in commands
    assert value(cache, "a") == "a=1"


def test_nack_keeps_previous_version() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    client.sent()
    commands = client.received(response(CDS, "2", body("a", "bad")), 2.0)
    error = "xDS response validation errors: [resource index 0: a: field: bad]"
    assert [SendRequest(CDS, ("a",), "1", "n2", error)] == requests(commands)
    assert Report(ResourceRejected(CDS, "a", "2", "field: bad")) in commands
    entry = cache.get(CDS, "a")
    assert entry is not None
    assert (
        entry.state,
        value(cache, "a"),
        entry.version,
        entry.failed_version,
    ) == (ResourceState.NACKED, "a=1", "1", "2")


def test_good_resources_of_a_bad_response_are_used() -> None:
    client, cache = subscribed("a", "b")
    client.received(response(CDS, "1", body("a"), body("b")), 1.0)
    client.sent()
    request = requests(client.received(response(CDS, "2", body("a", "2"), body("b", "bad")), 2.0))[0]
    assert (request.version, request.nonce) == ("2", "n2")
    assert "resource index 1: b: field: bad" in request.error
    assert (value(cache, "a"), value(cache, "b")) == ("a=2", "b=1")


def test_a_response_that_follows_replaces_the_answer_owed() -> None:
    client, _ = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    assert requests(client.received(response(CDS, "2", body("a", "bad")), 1.0)) == []
    assert requests(client.received(response(CDS, "3", body("a", "3")), 1.0)) == []
    assert [SendRequest(CDS, ("a",), "3", "n3")] == requests(client.sent())


def test_a_new_stream_keeps_versions_and_forgets_nonces() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    client.closed()
    assert (SendRequest(CDS, ("a",), "1", "", with_node=True),) == client.opened()
    assert value(cache, "a") == "a=1"


def test_the_last_name_unsubscribed_sends_an_empty_list_once_and_the_nonce_is_kept() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    client.sent()
    assert [SendRequest(CDS, (), "1", "n1")] == requests(client.want({}))
    client.sent()
    assert len(cache) == 0
    assert [SendRequest(CDS, ("b",), "1", "n1")] == requests(client.want({CDS: frozenset("b")}))


def test_an_empty_list_never_opens_a_type() -> None:
    client, _ = machine()
    client.want({CDS: frozenset("a")})
    client.want({})
    assert client.opened() == ()


def test_unwatch_and_watch_between_two_requests_keeps_the_value() -> None:
    client, cache = subscribed("a", "b")
    client.received(response(CDS, "1", body("a"), body("b")), 1.0)
    client.want({CDS: frozenset("a")})
    client.want({CDS: frozenset("ab")})
    client.sent()
    assert value(cache, "b") == "b=1"


def test_timers_start_again_on_a_new_stream_with_the_same_list() -> None:
    client, _ = subscribed("a", "b")
    client.received(response(CDS, "1", body("a")), 1.0)
    assert requests(client.sent()) == []
    client.closed()
    client.opened()
    assert (StartTimer((CDS, "b"), 15.0),) == client.sent()


def test_what_came_while_a_name_was_given_up_and_the_server_did_not_know_yet_is_not_missed() -> None:
    client, cache = subscribed("a")
    client.want({CDS: frozenset("a"), EDS: frozenset("x")})
    client.want({EDS: frozenset("x")})
    client.received(response(CDS, "1", body("a")), 1.0)
    client.want({CDS: frozenset("a"), EDS: frozenset("x")})
    assert [SendRequest(CDS, ("a",), "1", "n1")] == requests(client.sent())
    assert value(cache, "a") == "a=1"


def test_the_time_to_exist_goes_on_for_a_name_given_up_and_wanted_again_before_the_server_knew() -> None:
    client, cache = subscribed("a")
    client.want({CDS: frozenset("a"), EDS: frozenset("x")})
    assert client.want({EDS: frozenset("x")}) == ()
    client.want({CDS: frozenset("a"), EDS: frozenset("x")})
    client.timer_fired((CDS, "a"), 15.0)
    entry = cache.get(CDS, "a")
    assert entry is not None
    assert entry.state is ResourceState.DOES_NOT_EXIST


def test_a_name_wanted_and_given_up_while_another_request_is_under_way_is_forgotten() -> None:
    client, cache = subscribed("a")
    client.want({CDS: frozenset("a"), EDS: frozenset("x")})
    client.sent()
    client.want({CDS: frozenset("a")})
    client.sent()
    client.want({CDS: frozenset("ab")})
    client.want({CDS: frozenset("ab"), EDS: frozenset("x")})
    client.want({CDS: frozenset("ab")})
    client.sent()
    assert cache.names(EDS) == ()


def test_timer_starts_when_the_request_was_taken_and_only_for_what_is_unknown() -> None:
    client, _ = machine()
    client.want({CDS: frozenset("a")})
    assert not [command for command in client.opened() if isinstance(command, StartTimer)]
    assert (StartTimer((CDS, "a"), 15.0),) == client.sent()
    assert CancelTimer((CDS, "a")) in client.received(response(CDS, "1", body("a")), 1.0)
    assert client.sent() == ()


def test_timer_is_longer_where_the_server_says_that_it_is_transient() -> None:
    client, cache = machine("resource_timer_is_transient_error")
    client.want({CDS: frozenset("a")})
    client.opened()
    assert (StartTimer((CDS, "a"), 30.0),) == client.sent()
    client.timer_fired((CDS, "a"), 30.0)
    entry = cache.get(CDS, "a")
    assert entry is not None
    assert (entry.state, entry.is_absent) == (ResourceState.TIMEOUT, False)


def test_a_resource_that_comes_after_its_timer_is_used() -> None:
    client, cache = subscribed("a", type_url=EDS)
    client.timer_fired((EDS, "a"), 15.0)
    entry = cache.get(EDS, "a")
    assert entry is not None
    assert (entry.state, entry.is_absent) == (ResourceState.DOES_NOT_EXIST, True)
    client.received(response(EDS, "1", body("a")), 16.0)
    assert (entry.state, entry.is_absent) == (ResourceState.ACKED, False)


def test_the_end_of_a_stream_cancels_timers_and_the_next_one_starts_them_for_what_is_unknown() -> None:
    client, _ = subscribed("a", "b", type_url=EDS)
    client.received(response(EDS, "1", body("a")), 1.0)
    assert (CancelTimer((EDS, "b")),) == client.closed()
    client.opened()
    assert (StartTimer((EDS, "b"), 15.0),) == client.sent()


def test_a_timer_that_fires_late_is_ignored() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    client.timer_fired((CDS, "a"), 15.0)
    assert value(cache, "a") == "a=1"


def test_a_cluster_left_out_is_deleted() -> None:
    client, cache = subscribed("a", "b")
    client.received(response(CDS, "1", body("a"), body("b")), 1.0)
    client.received(response(CDS, "2", body("a")), 2.0)
    entry = cache.get(CDS, "b")
    assert entry is not None
    assert (entry.value, entry.state, entry.is_absent) == (None, ResourceState.DOES_NOT_EXIST, True)


def test_ignore_resource_deletion_keeps_the_value() -> None:
    client, cache = subscribed("a", features=("ignore_resource_deletion",))
    client.received(response(CDS, "1", body("a")), 1.0)
    client.received(response(CDS, "2"), 2.0)
    assert value(cache, "a") == "a=1"


def test_endpoints_left_out_stay() -> None:
    client, cache = subscribed("a", "b", type_url=EDS)
    client.received(response(EDS, "1", body("a"), body("b")), 1.0)
    client.received(response(EDS, "2", body("a", "2")), 2.0)
    assert (value(cache, "a", EDS), value(cache, "b", EDS)) == ("a=2", "b=1")


def test_a_cluster_never_received_is_not_deleted_by_an_older_response() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    client.want({CDS: frozenset("ab")})
    client.received(response(CDS, "2", body("a")), 2.0)
    entry = cache.get(CDS, "b")
    assert entry is not None
    assert ResourceState.REQUESTED is entry.state


def test_nothing_is_deleted_when_a_name_cannot_be_read() -> None:
    client, cache = subscribed("a", "b")
    client.received(response(CDS, "1", body("a"), body("b")), 1.0)
    client.received(response(CDS, "2", body("a"), body("?", "nameless")), 2.0)
    assert value(cache, "b") == "b=1"


def test_a_refused_cluster_counts_as_seen() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    client.received(response(CDS, "2", body("a", "bad")), 2.0)
    assert value(cache, "a") == "a=1"


def test_fail_on_data_errors_drops_what_was_refused() -> None:
    client, cache = subscribed("a", features=("fail_on_data_errors",))
    client.received(response(CDS, "1", body("a")), 1.0)
    client.received(response(CDS, "2", body("a", "bad")), 2.0)
    assert None is value(cache, "a")


def test_a_name_that_appears_twice_is_refused_and_the_first_kept() -> None:
    client, cache = subscribed("a")
    request = requests(client.received(response(CDS, "1", body("a", "1"), body("a", "2")), 1.0))[0]
    assert "appears twice" in request.error
    assert value(cache, "a") == "a=1"


def test_a_resource_of_another_type_is_refused() -> None:
    client, _ = subscribed("a")
    odd = DiscoveryResponse(CDS, "1", "n1", (AnyBytes(LDS, body("a")),))
    assert f"resource index 0: is of type '{LDS}' instead of CDS" in requests(client.received(odd, 1.0))[0].error


def test_a_wrapper_without_a_resource_is_refused() -> None:
    client, _ = subscribed("a")
    odd = DiscoveryResponse(CDS, "1", "n1", (AnyBytes("", None, "a"),))
    assert "resource index 0: a: resource missing" in requests(client.received(odd, 1.0))[0].error


def test_a_wrapped_resource_is_called_as_its_wrapper_says() -> None:
    client, cache = subscribed("a", "b")
    wrapped = (AnyBytes(CDS, body("a", "1"), "a"), AnyBytes(CDS, body("a", "2"), "b"))
    (refusal,) = requests(client.received(DiscoveryResponse(CDS, "1", "n1", wrapped), 1.0))
    assert "[resource index 1: b: is called 'a' inside]" in refusal.error
    assert ("a=1", None) == (value(cache, "a"), value(cache, "b"))


def test_a_wrapped_resource_that_cannot_be_read_is_called_as_its_wrapper_says() -> None:
    client, cache = subscribed("a")
    odd = DiscoveryResponse(CDS, "1", "n1", (AnyBytes(CDS, body("?", "nameless"), "a"),))
    assert "resource index 0: a: cannot be parsed" in requests(client.received(odd, 1.0))[0].error
    entry = cache.get(CDS, "a")
    assert entry is not None
    assert ResourceState.NACKED is entry.state


def test_a_refusal_goes_out_before_the_next_response_is_answered() -> None:
    client, _ = subscribed("a")
    client.is_patient = True
    (refusal,) = requests(client.received(response(CDS, "1", body("a", "bad")), 1.0))
    assert ("n1", True) == (refusal.nonce, bool(refusal.error))
    client.sent()
    assert [] == requests(client.received(response(CDS, "2", body("a")), 2.0))
    assert [SendRequest(CDS, ("a",), "2", "n2")] == requests(client.answer())


def test_a_type_without_a_service_is_not_asked_for_until_the_next_stream() -> None:
    client, cache = machine("meshlib.separate_streams")
    client.want({EDS: frozenset("a"), CDS: frozenset("c")})
    (clusters,) = requests(client.opened())
    (endpoints,) = requests(client.sent())
    assert [CDS, EDS] == [clusters.type_url, endpoints.type_url]
    client.unserved(EDS, "no such method")
    entry = cache.get(EDS, "a")
    assert entry is not None
    assert (ResourceState.RECEIVED_ERROR, "the management server has no EDS: no such method") == (
        entry.state,
        entry.error,
    )
    # The request under way is void, so others go out; what is wanted later cannot be had either.
    (clusters,) = requests(client.want({EDS: frozenset("ab"), CDS: frozenset("cd")}))
    assert CDS == clusters.type_url
    later = cache.get(EDS, "b")
    assert later is not None
    assert ResourceState.RECEIVED_ERROR is later.state
    client.closed()
    client.opened()
    assert [EDS] == [request.type_url for request in requests(client.sent())]


def test_a_type_whose_own_stream_has_ended_begins_anew_with_its_version_and_without_a_nonce() -> None:
    client, cache = machine("meshlib.separate_streams")
    client.want({EDS: frozenset("ab"), CDS: frozenset("c")})
    client.opened()
    client.sent()
    client.received(response(EDS, "1", body("a")), 1.0)
    commands = client.paused(EDS)  # with its answer under way
    assert [] == [request for request in requests(commands) if request.type_url == EDS]
    assert [] == requests(client.want({EDS: frozenset("b"), CDS: frozenset("c")}))
    assert (None, ("b",)) == (cache.get(EDS, "a"), cache.names(EDS))
    assert [SendRequest(EDS, ("b",), "1", "", with_node=True)] == requests(client.resumed(EDS))
    assert [StartTimer((EDS, "b"), 15.0)] == [one for one in client.sent() if isinstance(one, StartTimer)]
    # The other type knows nothing of it.
    (ack,) = requests(client.received(response(CDS, "7", body("c")), 2.0))
    assert ("7", "n7", False) == (ack.version, ack.nonce, ack.with_node)


def test_what_is_in_use_stays_when_a_type_has_no_service_any_more() -> None:
    client, cache = subscribed("a", type_url=EDS)
    client.received(response(EDS, "1", body("a")), 1.0)
    client.unserved(EDS, "no such method")
    assert "a=1" == value(cache, "a", EDS)


def test_an_error_inside_a_decoder_costs_one_resource() -> None:
    client, cache = subscribed("a", "b")
    request = requests(client.received(response(CDS, "1", body("a"), body("b", "bug")), 1.0))[0]
    assert "cannot be decoded: ZeroDivisionError" in request.error
    assert value(cache, "a") == "a=1"


def test_unknown_types_and_types_never_asked_for_get_no_answer() -> None:
    client, _ = subscribed("a")
    assert client.received(response("type.googleapis.com/x.Y", "1", body("a")), 1.0) == ()
    assert client.received(response(LDS, "1", body("a")), 1.0) == ()


def test_resources_not_asked_for_are_skipped() -> None:
    client, cache = subscribed("a")
    request = requests(client.received(response(CDS, "1", body("a"), body("z")), 1.0))[0]
    assert request.error == ""
    assert cache.names(CDS) == ("a",)


def test_equal_bytes_are_not_decoded_again_and_the_value_stays_the_same_object() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    before = cache.value(CDS, "a")
    commands = client.received(response(CDS, "2", body("a")), 2.0)
    entry = cache.get(CDS, "a")
    assert entry is not None
    assert before is entry.value
    assert (entry.version, entry.updated_at) == ("2", 1.0)
    assert not [command for command in commands if isinstance(command, Report)]


def test_equal_bytes_after_a_refusal_clear_the_error() -> None:
    client, cache = subscribed("a")
    client.received(response(CDS, "1", body("a")), 1.0)
    client.received(response(CDS, "2", body("a", "bad")), 2.0)
    client.received(response(CDS, "3", body("a")), 3.0)
    entry = cache.get(CDS, "a")
    assert entry is not None
    assert (entry.state, entry.error) == (ResourceState.ACKED, "")


def test_resource_errors_are_kept_beside_the_value() -> None:
    client, cache = subscribed("a", "b")
    client.received(response(CDS, "1", body("a")), 1.0)
    errors = (ResourceError("a", 7, "not for you"), ResourceError("b", 5, ""))
    assert requests((*client.sent(), *client.received(response(CDS, "2", errors=errors), 2.0)))[0].error == ""
    known, unknown = cache.get(CDS, "a"), cache.get(CDS, "b")
    assert known is not None
    assert unknown is not None
    assert (known.state, known.error, value(cache, "a")) == (ResourceState.RECEIVED_ERROR, "not for you", "a=1")
    assert (unknown.state, unknown.error, unknown.is_absent) == (ResourceState.RECEIVED_ERROR, "does not exist", True)


def test_what_is_said_not_to_exist_is_kept_until_it_is_left_out() -> None:
    """A88: a resource that an error names is not deleted, unless the server has `fail_on_data_errors`."""
    for type_url, features, kept, left_out in (
        (LDS, (), "a=1", None),
        (LDS, ("fail_on_data_errors",), None, None),
        (EDS, (), "a=1", "a=1"),
    ):
        client, cache = subscribed("a", type_url=type_url, features=features)
        client.received(response(type_url, "1", body("a")), 1.0)
        client.received(response(type_url, "2", errors=(ResourceError("a", 5, ""),)), 2.0)
        entry = cache.get(type_url, "a")
        assert entry is not None
        assert (kept, kept is None) == (value(cache, "a", type_url), entry.is_absent)
        client.received(response(type_url, "3"), 3.0)
        assert left_out == value(cache, "a", type_url)


def test_resource_errors_without_a_name_or_a_code_are_refused() -> None:
    client, _ = subscribed("a")
    errors = (ResourceError("", 5, ""), ResourceError("a", 0, ""))
    error = requests(
        client.received(response(EDS, "1", errors=errors), 1.0)
        or client.received(response(CDS, "1", errors=errors), 1.0)
    )[0].error
    assert "resource_errors index 0: no name; resource_errors index 1: code OK" in error


def spare(name: str, content: str = "0") -> Spare:
    return Spare(CDS, name, "old", body(name, content), 0.0)


def test_copies_from_disk_stand_in_until_the_server_answers() -> None:
    client, cache = machine()
    cache.add_spares((spare("a"), spare("b", "bad"), spare("c")))
    client.want({CDS: frozenset("ab")})
    assert True is client.adopt_spares(1.0)
    assert False is client.adopt_spares(1.0)
    assert (value(cache, "a"), value(cache, "b")) == ("a=0", None)
    assert {(CDS, "a"), (CDS, "c")} == set(cache.spares)
    assert requests(client.opened())[0].version == ""
    assert {StartTimer((CDS, "a"), 15.0), StartTimer((CDS, "b"), 15.0)} == set(client.sent())
    client.received(response(CDS, "1", body("a", "1"), body("b", "1")), 2.0)
    assert (value(cache, "a"), value(cache, "b")) == ("a=1", "b=1")
    assert {(CDS, "c")} == set(cache.spares)


def test_a_copy_that_the_server_knows_nothing_of_goes_with_its_timer() -> None:
    client, cache = machine()
    cache.add_spares((spare("a"),))
    client.want({CDS: frozenset("a")})
    client.adopt_spares(1.0)
    client.opened()
    client.sent()
    client.received(response(CDS, "1"), 2.0)
    assert value(cache, "a") == "a=0"
    client.timer_fired((CDS, "a"), 17.0)
    assert None is value(cache, "a")


def wrapped(name: str, content: str | None = "1", *, ttl_s: float | None = 10.0) -> AnyBytes:
    """A resource in its wrapper; without content a heartbeat."""
    data = None if content is None else body(name, content)
    return AnyBytes(CDS if data else "", data, name, "1", (), ttl_s)


def test_a_resource_lives_as_long_as_it_was_given_and_heartbeats_prolong_that() -> None:
    client, cache = subscribed("a", "b")
    both = DiscoveryResponse(CDS, "1", "n1", (wrapped("a"), wrapped("b", ttl_s=None)))
    assert StartExpiry((CDS, "a"), 11.0) in client.received(both, 1.0)
    client.sent()
    commands = client.received(DiscoveryResponse(CDS, "1", "n2", (wrapped("a", None),)), 9.0)
    assert [StartExpiry((CDS, "a"), 19.0), SendRequest(CDS, ("a", "b"), "1", "n2")] == list(commands)
    assert client.expired((CDS, "a"), 11.0) == ()
    assert (value(cache, "a"), value(cache, "b")) == ("a=1", "b=1")


def test_an_expired_resource_is_deleted_and_the_version_is_not_claimed_any_more() -> None:
    client, cache = subscribed("a", features=("ignore_resource_deletion",))
    client.received(DiscoveryResponse(CDS, "1", "n1", (wrapped("a"),)), 1.0)
    client.closed()
    assert Report(ResourceRejected(CDS, "a", "1", "its time to live has passed")) in client.expired((CDS, "a"), 11.0)
    entry = cache.get(CDS, "a")
    assert entry is not None
    assert (entry.value, entry.state, entry.is_absent) == (None, ResourceState.DOES_NOT_EXIST, True)
    assert (SendRequest(CDS, ("a",), "", "", with_node=True),) == client.opened()


def test_a_resource_that_comes_without_a_time_to_live_lives_on() -> None:
    client, cache = subscribed("a")
    client.received(DiscoveryResponse(CDS, "1", "n1", (wrapped("a"),)), 1.0)
    assert StopExpiry((CDS, "a")) in client.received(response(CDS, "2", body("a", "2")), 2.0)
    assert client.expired((CDS, "a"), 11.0) == ()
    assert value(cache, "a") == "a=2"


def test_what_is_wanted_again_after_a_request_that_the_server_passed_over_is_asked_for_anew() -> None:
    """The request that gave it up crossed a response: with the same list as before the server would send nothing."""
    client, cache = subscribed("a", type_url=EDS)
    (gone,) = requests(client.want({EDS: frozenset()}))
    assert ((), "") == (gone.names, gone.nonce)
    client.sent()
    client.want({LDS: frozenset("l")})  # a request under way when the response comes
    assert [] == requests(client.received(response(EDS, "1", body("a")), 1.0))
    client.want({LDS: frozenset("l"), EDS: frozenset("a")})
    (answer,) = requests(client.sent())
    assert ((), "n1") == (answer.names, answer.nonce)
    (anew,) = requests(client.sent())
    assert (("a",), "n1") == (anew.names, anew.nonce)
    client.sent()
    client.received(response(EDS, "1", body("a"), nonce="n2"), 2.0)
    assert "a=1" == value(cache, "a", EDS)


def test_a_heartbeat_that_comes_too_late_has_the_name_asked_for_anew() -> None:
    """The answer leaves it out, the next request names it again: so a server has to send it whatever its version."""
    client, cache = subscribed("a", "b")
    client.received(DiscoveryResponse(CDS, "1", "n1", (wrapped("a"), wrapped("b", ttl_s=None))), 1.0)
    client.sent()
    client.expired((CDS, "a"), 11.0)
    late = client.received(DiscoveryResponse(CDS, "1", "n2", (wrapped("a", None),)), 12.0)
    assert (SendRequest(CDS, ("b",), "1", "n2"),) == late
    assert [SendRequest(CDS, ("a", "b"), "1", "n2")] == requests(client.sent())
    assert requests(client.sent()) == []
    client.received(DiscoveryResponse(CDS, "1", "n3", (wrapped("a"), wrapped("b", ttl_s=None))), 13.0)
    assert (value(cache, "a"), value(cache, "b")) == ("a=1", "b=1")


def test_a_late_heartbeat_does_not_bring_the_version_back_of_what_is_gone() -> None:
    client, _ = subscribed("a", type_url=EDS)
    first = AnyBytes(EDS, body("a"), "a", "1", (), 10.0)
    client.received(DiscoveryResponse(EDS, "1", "n1", (first,)), 1.0)
    client.sent()
    client.expired((EDS, "a"), 11.0)
    client.received(DiscoveryResponse(EDS, "1", "n2", (AnyBytes("", None, "a", "1", (), 10.0),)), 12.0)
    client.closed()
    assert (SendRequest(EDS, ("a",), "", "", with_node=True),) == client.opened()
