import pytest
from google.protobuf.message import DecodeError

from meshlib.protos import from_dict, message_class, to_any
from meshlib.xds.decode import decode_resource, unwrap
from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS, SRDS, TYPE_URLS, is_full_state, short_name

ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"


def test_an_unknown_type_is_an_error_without_a_name():
    decoded = decode_resource("type.googleapis.com/no.such.Type", b"")
    assert (decoded.name, decoded.value) == ("", None)
    assert decoded.errors == ("unknown resource type 'type.googleapis.com/no.such.Type'",)


@pytest.mark.parametrize("type_url", TYPE_URLS)
def test_bytes_that_are_no_message_keep_the_name_where_it_can_be_read(type_url):
    body = b"\x0a\x03abc" + b"\xff\xff"
    decoded = decode_resource(type_url, body)
    assert (decoded.name, decoded.value) == ("abc", None)
    assert decoded.errors == (f"its bytes are not a {type_url.rpartition('/')[2]}",)


@pytest.mark.parametrize("type_url", [LDS, RDS, CDS, EDS, SDS])
def test_an_empty_resource(type_url):
    decoded = decode_resource(type_url, b"")
    assert decoded.name == ""
    # Of all types only a route configuration may be empty: as an inline one has no name.
    assert (decoded.value is None) == (type_url != RDS)


def test_all_errors_of_a_resource_are_collected_with_their_paths(decode):
    routes = [
        {"match": {"prefix": "/"}, "route": {"cluster": ""}},
        {"match": {}, "route": {"cluster": "c"}},
        {"match": {"safe_regex": {"regex": "("}}, "direct_response": {"status": 99}},
    ]
    decoded = decode("RDS", {"name": "rc", "virtual_hosts": [{"name": "vh", "domains": [], "routes": routes}]})
    assert (decoded.name, decoded.value) == ("rc", None)
    assert {error.partition(": ")[0] for error in decoded.errors} == {
        "virtual_hosts[0].domains",
        "virtual_hosts[0].routes[0].route.cluster",
        "virtual_hosts[0].routes[1].match.path_specifier",
        "virtual_hosts[0].routes[2].match.safe_regex.regex",
        "virtual_hosts[0].routes[2].direct_response.status",
    }


def test_unused_fields_of_repeated_elements_are_named_once(decode_host):
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, "decorator": {"operation": "x"}}
    decoded = decode_host(routes=[route, route, route])
    assert decoded.errors == ()
    assert decoded.unused == ("virtual_hosts[0].routes[0].decorator",)


def test_a_plain_entry_is_its_own_resource():
    packed = to_any(message_class(ENDPOINTS)(cluster_name="c"))
    assert unwrap(packed) == ("", "", EDS, packed.value)


def test_a_wrapped_entry_gives_name_and_version():
    inner = to_any(message_class(ENDPOINTS)(cluster_name="c"))
    wrapper = message_class("envoy.service.discovery.v3.Resource")(name="n", version="7", resource=inner)
    assert unwrap(to_any(wrapper)) == ("n", "7", EDS, inner.value)


def test_a_wrapper_without_a_resource_has_no_type():
    wrapper = from_dict("envoy.service.discovery.v3.Resource", {"resource_name": {"name": "n"}})
    assert unwrap(to_any(wrapper)) == ("n", "", "", b"")


def test_a_broken_wrapper_is_a_decode_error():
    packed = to_any(message_class("envoy.service.discovery.v3.Resource")())
    packed.value = b"\xff"
    with pytest.raises(DecodeError):
        unwrap(packed)


def test_only_listeners_clusters_and_scopes_are_listed_in_full():
    assert {type_url for type_url in TYPE_URLS if is_full_state(type_url)} == {LDS, CDS, SRDS}
    names = ["RTDS", "LDS", "ECDS", "SRDS", "RDS", "VHDS", "CDS", "EDS", "LEDS", "SDS"]
    assert [short_name(type_url) for type_url in TYPE_URLS] == names
    assert short_name("type.googleapis.com/a.B") == "a.B"
