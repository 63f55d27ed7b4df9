"""Scopes, virtual hosts, single endpoints, discovered filters and runtime layers on both kinds of stream."""

from typing import Any

import pytest

from xds_server.model import Document, Profile
from xds_server.ordering import CDS, ECDS, EDS, LDS, LEDS, RDS, RTDS, SRDS, VHDS
from xds_server.references import references
from xds_server.services import DISCOVERY_SERVICES
from xds_server.snapshot import NOTHING, Snapshot
from xds_server.stream import StreamRefused
from xds_server.translate import compile_documents

WRAPPER = "type.googleapis.com/envoy.service.discovery.v3.Resource"
BASE = "xdstp://a/envoy.config.endpoint.v3.LbEndpoint/shop/"
GLOB = BASE + "*"
ADS = {"ads": {}}


def host(name: str, *domains: str, cluster: str = "c") -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    inner = {"@type": VHDS, "name": name, "domains": list(domains), "routes": [route]}
    return {"@type": WRAPPER, "name": f"r/{name}", "resource": inner}


def endpoint(name: str, port: int = 1) -> dict[str, Any]:
    address = {"socket_address": {"address": "10.0.0.1", "port_value": port}}
    return {"@type": WRAPPER, "name": name, "resource": {"@type": LEDS, "endpoint": {"address": address}}}


def compiled(*resources: dict[str, Any]) -> Any:
    return compile_documents([Document({"resources": list(resources)}, {})], (), profile=Profile.MESHLIB)


def publish(peer: Any, *resources: dict[str, Any]) -> bool:
    """Publish native resources."""
    found = compiled(*resources)
    assert found.findings == ()
    snapshot = Snapshot.build(found.resources, peer.snapshot)
    changes = snapshot.changes_since(peer.snapshot)
    peer.snapshot = snapshot
    return bool(peer.machine.publish(snapshot, changes, peer.now))


def entries(decode_delta: Any, response: Any) -> list[tuple[str, tuple[str, ...], bool]]:
    """Name, aliases and whether there is a body of each resource."""
    return [(one.name, tuple(one.aliases), one.HasField("resource")) for one in decode_delta(response).resources]


# Virtual hosts.


def test_virtual_host_is_sent_by_its_own_name_with_what_it_was_asked_for_by(delta, decode_delta):
    publish(delta, host("shop", "shop.example", "*.shop.example"))
    delta.ask(VHDS, "+r/shop.example", "+r/x.shop.example")
    response = delta.accept(VHDS, "r/shop.example", "r/x.shop.example")
    assert entries(decode_delta, response) == [("r/shop", ("r/shop.example", "r/x.shop.example"), True)]
    assert delta.is_silent()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("a.b.example", "exact"),
        ("x.b.example", "suffix"),
        ("x.y.b.example", "suffix"),
        ("x.example", "short"),
        ("b.other", "prefix"),
        ("nothing", "any"),
        ("b.example", "short"),
    ],
)
def test_hosts_are_matched_as_envoy_matches_domains(delta, decode_delta, asked, expected):
    publish(
        delta,
        host("exact", "a.b.example"),
        host("suffix", "*.b.example"),
        host("short", "*.example"),
        host("prefix", "b.*"),
        host("any", "*"),
    )
    delta.ask(VHDS, f"+r/{asked}")
    ((name, aliases, _),) = entries(decode_delta, delta.expect(VHDS, f"r/{asked}"))
    assert (name, aliases) == (f"r/{expected}", (f"r/{asked}",))


def test_host_that_nobody_serves_is_said_by_a_resource_without_contents(delta, decode_delta):
    publish(delta, host("shop", "shop.example"))
    delta.ask(VHDS, "+r/none", "+other/shop.example")
    response = delta.expect(VHDS, "-other/shop.example", "-r/none")
    assert entries(decode_delta, response) == [
        ("other/shop.example", ("other/shop.example",), False),
        ("r/none", ("r/none",), False),
    ]
    message = decode_delta(response)
    assert (list(message.removed_resources), list(message.resource_errors)) == ([], [])
    delta.answer(response)
    publish(delta, host("shop", "shop.example"), host("none", "none"))
    assert entries(decode_delta, delta.accept(VHDS, "r/none")) == [("r/none", ("r/none",), True)]


def test_virtual_host_that_is_removed_is_named_as_it_was_sent(delta, decode_delta):
    publish(delta, host("shop", "shop.example"))
    delta.ask(VHDS, "+r/shop.example")
    delta.accept(VHDS, "r/shop.example")
    publish(delta)
    response = delta.accept(VHDS, "-r/shop.example")
    assert (list(decode_delta(response).removed_resources), entries(decode_delta, response)) == (["r/shop"], [])
    publish(delta, host("shop", "shop.example"))
    delta.accept(VHDS, "r/shop.example")


def test_host_that_moves_to_another_virtual_host_is_sent_from_there(delta, decode_delta):
    publish(delta, host("any", "*"))
    delta.ask(VHDS, "+r/shop.example")
    delta.accept(VHDS, "r/shop.example")
    publish(delta, host("any", "*"), host("shop", "shop.example"))
    response = delta.accept(VHDS, "r/shop.example")
    assert entries(decode_delta, response) == [("r/shop", ("r/shop.example",), True)]


# Single endpoints.


def test_glob_brings_its_members_and_their_changes(delta):
    publish(delta, endpoint(BASE + "a"), endpoint(BASE + "b"), endpoint(BASE + "deeper/c"))
    delta.ask(LEDS, f"+{GLOB}")
    delta.accept(LEDS, BASE + "a", BASE + "b")
    assert delta.is_silent()
    publish(delta, endpoint(BASE + "b", 2), endpoint(BASE + "d"))
    delta.accept(LEDS, BASE + "b", BASE + "d", f"-{BASE}a")
    assert delta.is_silent()


def test_glob_without_members_is_said_to_be_so_once(delta):
    delta.ask(LEDS, f"+{GLOB}")
    delta.accept(LEDS, f"-{GLOB}")
    assert delta.is_silent()
    publish(delta, endpoint(BASE + "a"))
    delta.accept(LEDS, BASE + "a")


def test_glob_that_is_given_up_and_asked_for_again_is_sent_again(delta):
    publish(delta, endpoint(BASE + "a"))
    delta.ask(LEDS, f"+{GLOB}")
    delta.accept(LEDS, BASE + "a")
    delta.ask(LEDS, f"-{GLOB}")
    publish(delta, endpoint(BASE + "a", 2))
    assert delta.is_silent()
    delta.ask(LEDS, f"+{GLOB}")
    delta.accept(LEDS, BASE + "a")


def test_client_that_returns_to_a_glob_hears_what_differs(delta):
    publish(delta, endpoint(BASE + "a"), endpoint(BASE + "b"))
    held = delta.snapshot.state(LEDS).resources[BASE + "a"].version
    delta.ask(LEDS, f"+{GLOB}", initial={BASE + "a": held, BASE + "gone": "1"})
    delta.accept(LEDS, BASE + "b", f"-{BASE}gone")


@pytest.mark.parametrize("type_url", [VHDS, LEDS])
def test_state_of_the_world_has_neither(peer, type_url):
    publish(peer, host("shop", "shop.example"), endpoint(BASE + "a"))
    peer.ask(type_url, "r/shop.example", BASE + "a")
    response = peer.expect(type_url)
    assert {error.name for error in response.errors} == {"r/shop.example", BASE + "a"}


def test_services_of_one_type_know_which_variants_there_are():
    methods = {service.type_url: (service.sotw, service.delta) for service in DISCOVERY_SERVICES}
    assert methods[VHDS] == (None, "DeltaVirtualHosts")
    assert methods[LEDS] == (None, "DeltaLocalityEndpoints")
    assert methods[SRDS] == ("StreamScopedRoutes", "DeltaScopedRoutes")


# Scopes.


def scope(name: str, key: str) -> dict[str, Any]:
    return {"@type": SRDS, "name": name, "key": {"fragments": [{"string_key": key}]}, "route_configuration_name": "r"}


def test_all_scopes_are_the_wildcard_and_left_out_when_they_are_gone(peer):
    publish(peer, scope("a", "x"), scope("b", "y"))
    peer.ask(SRDS)
    peer.accept(SRDS, "a", "b")
    publish(peer, scope("b", "y"))
    peer.accept(SRDS, "b")


def test_scopes_incrementally(delta):
    publish(delta, scope("a", "x"))
    delta.ask(SRDS, "+*")
    delta.accept(SRDS, "a")
    publish(delta, scope("b", "y"))
    delta.accept(SRDS, "b", "-a")


# Native documents.


def test_other_types_are_served_by_name(peer):
    runtime = {"@type": RTDS, "name": "rollout", "layer": {"x": 1}}
    cors = {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"}
    extension = {"@type": ECDS, "name": "filter", "typed_config": cors}
    publish(peer, runtime, extension)
    for type_url, name in ((RTDS, "rollout"), (ECDS, "filter")):
        peer.ask(type_url, name)
        peer.accept(type_url, name)


@pytest.mark.parametrize(
    ("resource", "text"),
    [
        (host("x", "x")["resource"], "must be wrapped in a envoy.service.discovery.v3.Resource with its name"),
        ({**host("x", "x"), "name": "x"}, "the name of a VirtualHost is <route configuration>/<name>"),
        ({"@type": WRAPPER, "resource": host("x", "x")["resource"]}, "a VirtualHost needs a name here"),
        ({**endpoint("x")}, "the name of a LbEndpoint is xdstp://"),
    ],
)
def test_resources_without_their_own_name_need_one(resource, text):
    (finding,) = compiled(resource).findings
    assert text in finding.message


def test_what_scopes_and_filters_name_must_be_there():
    state = Snapshot.build(compiled(scope("a", "x")).resources, NOTHING)
    assert state.state(SRDS).resources["a"].references == ((RDS, "r"),)
    assert Snapshot.build(compiled(host("x", "x")).resources).state(VHDS).resources["r/x"].references == ((CDS, "c"),)


def test_filter_that_is_discovered_is_needed_unless_it_has_a_default():
    hcm = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

    def listener(**more: Any) -> Any:
        discovery = {"config_source": ADS, "type_urls": ["a/b"], **more}
        manager = {"@type": hcm, "http_filters": [{"name": "f", "config_discovery": discovery}]}
        resource = {"@type": LDS, "name": "l", "api_listener": {"api_listener": manager}}
        return compiled(resource).resources[LDS]["l"]

    assert references(listener()) == ((ECDS, "f"),)
    assert references(listener(default_config={"@type": hcm})) == ()


def test_endpoints_of_other_types_are_not_touched_by_all_this(delta):
    delta.publish({EDS: {"a": "1"}})
    delta.ask(EDS, "+a", "+xdstp://a/b/*")
    delta.accept(EDS, "a", "-xdstp://a/b/*")


def test_stream_for_virtual_hosts_alone_is_of_that_type(make_delta):
    delta = make_delta(service_type=VHDS)
    delta.ask("", "+r/x")
    delta.accept(VHDS, "-r/x")
    with pytest.raises(StreamRefused):
        delta.ask(CDS, "+c")
