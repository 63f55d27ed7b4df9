import pytest

from meshlib.errors import ConfigError
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.names import authority_of, canonical, inbound_name, listener_name, parse_xdstp, servers_for


def bootstrap(**changes):
    base = {"xds_servers": [{"server_uri": "main:1", "channel_creds": [{"type": "insecure"}]}]}
    return parse_bootstrap({**base, **changes}, origin="test")


OTHER = {"xds_servers": [{"server_uri": "other:1", "channel_creds": [{"type": "insecure"}]}]}


@pytest.mark.parametrize("authority", ["checkout", "checkout:8080", "a/b c"])
def test_by_default_a_listener_has_the_name_of_the_target(authority):
    assert authority == listener_name(bootstrap(), authority)


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("checkout", "checkout:80"),
        ("checkout:8080", "checkout:8080"),
        ("checkout:80", "checkout:80"),
        ("[::1]", "[::1]:80"),
        ("[::1]:8080", "[::1]:8080"),
        ("checkout:main", "checkout:main:80"),
    ],
)
def test_a_target_without_a_port_gets_the_default_one_where_it_is_said(authority, name):
    assert name == listener_name(bootstrap(meshlib={"default_port": 80}), authority)
    config = bootstrap(meshlib={"default_port": 80}, client_default_listener_resource_name_template="x/%s")
    assert f"x/{name}" == listener_name(config, authority)
    assert authority == listener_name(bootstrap(), authority)


def test_templates_of_authorities_know_no_default_port():
    config = bootstrap(authorities={"a": {}}, meshlib={"default_port": 80})
    assert "xdstp://a/envoy.config.listener.v3.Listener/svc" == listener_name(config, "svc", xds_authority="a")


def test_every_placeholder_of_a_template_is_replaced():
    config = bootstrap(client_default_listener_resource_name_template="x/%s/y/%s")
    assert "x/checkout/y/checkout" == listener_name(config, "checkout")


def test_xdstp_templates_encode_what_a_path_may_not_hold():
    config = bootstrap(client_default_listener_resource_name_template="xdstp://a/envoy.config.listener.v3.Listener/%s")
    name = listener_name(config, "svc/1:80?x y%")
    assert "xdstp://a/envoy.config.listener.v3.Listener/svc/1:80%3Fx%20y%25" == name


def test_a_target_with_an_authority_uses_that_authoritys_template():
    config = bootstrap(authorities={"a": {}})
    assert "xdstp://a/envoy.config.listener.v3.Listener/svc" == listener_name(config, "svc", xds_authority="a")


def test_an_unknown_authority_is_an_error():
    with pytest.raises(ConfigError, match='authority "b" not present in bootstrap config'):
        listener_name(bootstrap(), "svc", xds_authority="b")


def test_inbound_names_keep_the_address_as_it_is():
    config = bootstrap(server_listener_resource_name_template="xds.istio.io/grpc/lds/inbound/%s")
    assert "xds.istio.io/grpc/lds/inbound/[::]:8080" == inbound_name(config, "[::]:8080")


def test_inbound_names_in_xdstp_form_encode_the_brackets():
    config = bootstrap(server_listener_resource_name_template="xdstp://a/t/%s")
    assert "xdstp://a/t/%5B::%5D:8080" == inbound_name(config, "[::]:8080")


def test_without_a_template_there_is_no_inbound_name():
    with pytest.raises(ConfigError, match="server_listener_resource_name_template"):
        inbound_name(bootstrap(), "0.0.0.0:8080")


@pytest.mark.parametrize("template", ["%s", "xdstp://a/envoy.config.listener.v3.Listener/%s"])
def test_a_name_that_no_request_can_hold_is_refused(template):
    """It would end in the control thread, where it stood in the way of all other names."""
    found = bootstrap(client_default_listener_resource_name_template=template, authorities={"a": {}})
    with pytest.raises(ConfigError, match="is not the name of a service: surrogates not allowed"):
        listener_name(found, "check\udc80out")


def test_context_parameters_keep_what_a_query_may_hold():
    """RFC 3986 section 3.4; C-core writes them so."""
    name = "xdstp://a/t/id?k=a/b?c:d@e!f$g'h(i)*j+,;&l=%26%3D%23%25"
    assert name == canonical(name)


def test_context_parameters_are_sorted_and_the_first_of_a_key_counts():
    assert "xdstp://a/t/id?a=1&b=2" == canonical("xdstp://a/t/id?b=2&a=1&b=3")


@pytest.mark.parametrize("name", ["outbound|80||x", "", "xdst://a", "http://a/b"])
def test_old_names_are_their_own_canonical_form(name):
    assert name == canonical(name)
    assert authority_of(name) is None


def test_the_canonical_form_is_stable_and_decodes_escapes():
    name = "xdstp://a/t/%41b%2520?k%26=v%3D"
    assert "xdstp://a/t/Ab%2520?k%26=v%3D" == canonical(name)
    assert canonical(canonical(name)) == canonical(name)
    assert (("k&", "v="),) == parse_xdstp(name).params


@pytest.mark.parametrize("name", ["xdstp:a/t/id", "xdstp://a", "xdstp://a/t", "xdstp://a//id", "xdstp://a/t/id#alt=x"])
def test_malformed_names_are_errors(name):
    with pytest.raises(ConfigError):
        canonical(name)


def test_each_authority_has_its_servers():
    config = bootstrap(authorities={"a": OTHER, "": {}})
    assert ["main:1"] == [server.uri for server in servers_for(config, "checkout")]
    assert ["other:1"] == [server.uri for server in servers_for(config, "xdstp://a/t/id")]
    assert ["main:1"] == [server.uri for server in servers_for(config, "xdstp:///t/id")]
    with pytest.raises(ConfigError, match='authority "b"'):
        servers_for(config, "xdstp://b/t/id")
