import json

import pytest

from meshlib.errors import BootstrapError
from meshlib.model.endpoint import Locality
from meshlib.model.snapshot import HomePlace
from meshlib.protos import to_dict
from meshlib.xds.bootstrap import (
    AllowedGrpcService,
    FileWatcherConfig,
    GoogleDefaultCreds,
    InsecureCreds,
    JwtTokenFile,
    ServerConfig,
    TlsCreds,
)
from meshlib.xds.decode_bootstrap import load_bootstrap, parse_bootstrap

INSECURE = {"server_uri": "127.0.0.1:18000", "channel_creds": [{"type": "insecure"}]}
MINIMAL = {"xds_servers": [INSECURE]}


def parse(**changes):
    return parse_bootstrap({**MINIMAL, **changes}, origin="test")


def server(**changes):
    return {"xds_servers": [{**INSECURE, **changes}]}


def nested(depth):
    return {"a": nested(depth - 1)} if depth else {}


def test_the_least_bootstrap_has_the_defaults():
    bootstrap = parse()
    assert bootstrap.servers == (ServerConfig("127.0.0.1:18000", InsecureCreds()),)
    assert bootstrap.client_default_listener_resource_name_template == "%s"
    assert bootstrap.server_listener_resource_name_template is None
    assert bootstrap.registry_uri is None
    assert (bootstrap.authorities, bootstrap.certificate_providers, bootstrap.allowed_grpc_services) == ({}, {}, {})


def test_the_local_cluster_needs_a_place():
    node = {"id": "n", "locality": {"region": "eu", "zone": "a"}}
    meshlib = {"local_cluster": "orders"}
    assert HomePlace("orders", Locality("eu", "a")) == parse(node=node, meshlib=meshlib).home
    assert parse(node={"id": "n"}, meshlib=meshlib).home is None
    assert parse(node=node).home is None


def test_a_secure_bootstrap_as_the_server_prints_it():
    text = json.dumps(
        {
            "xds_servers": [
                {
                    "server_uri": "127.0.0.1:18001",
                    "channel_creds": [{"type": "tls", "config": {"ca_certificate_file": "/s/root.pem"}}],
                    "call_creds": [{"type": "jwt_token_file", "config": {"jwt_token_file": "/s/token"}}],
                    "server_features": ["xds_v3", 7, None],
                }
            ],
            "node": {
                "id": "orders-1",
                "cluster": "orders",
                "locality": {"region": "eu", "zone": "a"},
                "metadata": {"labels": {"version": "v1"}, "n": 3},
            },
            "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
            "meshlib": {"registry_uri": "http://127.0.0.1:18002"},
        }
    )
    bootstrap = parse_bootstrap(text, origin="test")
    assert bootstrap.servers == (
        ServerConfig(
            "127.0.0.1:18001",
            TlsCreds(ca_certificate_file="/s/root.pem"),
            (JwtTokenFile("/s/token"),),
            frozenset({"xds_v3"}),
        ),
    )
    assert bootstrap.node.locality == Locality("eu", "a")
    assert bootstrap.registry_uri == "http://127.0.0.1:18002"
    assert bootstrap.server_listener_resource_name_template == "xds.istio.io/grpc/lds/inbound/%s"


def test_unknown_keys_are_ignored_everywhere():
    bootstrap = parse_bootstrap(
        {
            "xds_servers": [{**INSECURE, "later": 1}],
            "node": {"later": []},
            "later": {"x": 1},
            "meshlib": {"later": True},
        },
        origin="test",
    )
    assert bootstrap == parse()


def test_the_first_known_channel_credentials_are_used():
    creds = [{"type": "alts"}, {"type": "google_default"}, {"type": "insecure"}]
    assert parse(**server(channel_creds=creds)).servers[0].channel_creds == GoogleDefaultCreds()


def test_a_tuple_is_an_array_too():
    servers = ({**INSECURE, "channel_creds": ({"type": "insecure"},), "server_features": ("xds_v3",)},)
    assert parse(xds_servers=servers).servers[0].features == {"xds_v3"}


def test_null_counts_as_absent():
    locality = {"region": None, "zone": "z", "sub_zone": None}
    found = parse(
        **server(call_creds=None, server_features=None),
        node={"id": None, "locality": locality, "metadata": {"kept": None}},
        authorities=None,
        certificate_providers=None,
        client_default_listener_resource_name_template=None,
        meshlib={"registry_uri": None, "default_port": None},
    )
    assert found == parse(node={"locality": {"zone": "z"}, "metadata": {"kept": None}})


def test_a_type_of_credentials_without_letters_is_an_unknown_one():
    assert parse(**server(channel_creds=[{"type": ""}, {"type": "insecure"}], call_creds=[{"type": ""}])) == parse()


def test_an_interval_of_zero_is_one():
    creds = parse(**server(channel_creds=[{"type": "tls", "config": {"refresh_interval": "0s"}}])).servers[0]
    assert creds.channel_creds == TlsCreds(refresh_interval_s=0.0)


def test_all_known_call_credentials_are_used():
    secure = [{"type": "tls"}]
    calls = [
        {"type": "later"},
        {"type": "jwt_token_file", "config": {"jwt_token_file": "a"}},
        {"type": "jwt_token_file", "config": {"jwt_token_file": "b"}},
    ]
    found = parse(**server(channel_creds=secure, call_creds=calls)).servers[0].call_creds
    assert found == (JwtTokenFile("a"), JwtTokenFile("b"))


def test_tls_credentials_take_a_key_pair_and_an_interval():
    config = {"certificate_file": "c", "private_key_file": "k", "refresh_interval": "1.5s"}
    creds = parse(**server(channel_creds=[{"type": "tls", "config": config}])).servers[0].channel_creds
    assert creds == TlsCreds("", "c", "k", 1.5)


def test_authorities_have_defaults():
    other = {"server_uri": "other:1", "channel_creds": [{"type": "insecure"}]}
    authorities = {
        "a": {},
        "b": {
            "client_listener_resource_name_template": "xdstp://b/l/%s",
            "xds_servers": [other],
            "fallback_on_reachability_only": True,
        },
        "": {},
    }
    found = parse(authorities=authorities).authorities
    assert found["a"].listener_template == "xdstp://a/envoy.config.listener.v3.Listener/%s"
    assert found["a"].servers == parse().servers
    assert found["b"].servers == (ServerConfig("other:1", InsecureCreds()),)
    assert found["b"].fallback_on_reachability_only
    assert found[""].listener_template == "xdstp:///envoy.config.listener.v3.Listener/%s"


def test_certificate_providers():
    config = {"certificate_file": "c", "private_key_file": "k", "ca_certificate_file": "r", "refresh_interval": "60s"}
    found = parse(certificate_providers={"default": {"plugin_name": "file_watcher", "config": config}})
    assert found.certificate_providers == {"default": FileWatcherConfig("c", "k", "r", "", 60.0)}


@pytest.mark.parametrize("key", ["spiffe_trust_bundle_map_file", "spiffe_bundle_map_file"])
def test_a_spiffe_bundle_map_is_known_by_both_its_names(key):
    found = parse(certificate_providers={"p": {"plugin_name": "file_watcher", "config": {key: "m"}}})
    assert found.certificate_providers["p"].spiffe_bundle_map_file == "m"


def test_allowed_grpc_services():
    found = parse(allowed_grpc_services={"dns:///authz": {"channel_creds": [{"type": "insecure"}]}})
    assert found.allowed_grpc_services == {"dns:///authz": AllowedGrpcService(InsecureCreds())}


TLS = [{"type": "tls"}]


@pytest.mark.parametrize(
    ("changes", "pointer", "reason"),
    [
        ({"xds_servers": []}, "/xds_servers", "at least one server is required"),
        ({"xds_servers": {}}, "/xds_servers", "must be an array, is an object"),
        ({"xds_servers": ["x"]}, "/xds_servers/0", "must be an object, is a string"),
        (server(server_uri=""), "/xds_servers/0/server_uri", "is required"),
        (server(server_uri=5), "/xds_servers/0/server_uri", "must be a string, is a number"),
        (server(channel_creds=[]), "/xds_servers/0/channel_creds", "no known creds type found"),
        (server(channel_creds=[{"type": "alts"}]), "/xds_servers/0/channel_creds", "no known creds type found"),
        (server(channel_creds=[{}]), "/xds_servers/0/channel_creds/0/type", "is required"),
        (
            server(channel_creds=[{"type": "insecure"}, {"type": "tls", "config": {"certificate_file": "c"}}]),
            "/xds_servers/0/channel_creds/1/config",
            "must be given together",
        ),
        (
            server(channel_creds=[{"type": "tls", "config": {"refresh_interval": "5"}}]),
            "/xds_servers/0/channel_creds/0/config/refresh_interval",
            "must be a duration",
        ),
        (
            server(channel_creds=[{"type": "tls", "config": {"refresh_interval": "-1s"}}]),
            "/xds_servers/0/channel_creds/0/config/refresh_interval",
            "must be a duration",
        ),
        (
            server(channel_creds=TLS, call_creds=[{"type": "jwt_token_file"}]),
            "/xds_servers/0/call_creds/0/config/jwt_token_file",
            "is required",
        ),
        (
            server(call_creds=[{"type": "jwt_token_file", "config": {"jwt_token_file": "t"}}]),
            "/xds_servers/0/call_creds",
            "needs secure channel credentials",
        ),
        (server(server_features="xds_v3"), "/xds_servers/0/server_features", "must be an array, is a string"),
        ({"node": []}, "/node", "must be an object, is an array"),
        ({"node": {"locality": {"zone": 5}}}, "/node/locality/zone", "must be a string, is a number"),
        ({"xds_servers": [None]}, "/xds_servers/0", "must be an object, is null"),
        (server(server_uri=None), "/xds_servers/0/server_uri", "is required"),
        (server(channel_creds=[{"type": None}]), "/xds_servers/0/channel_creds/0/type", "is required"),
        ({"node": {"metadata": 1}}, "/node/metadata", "must be an object, is a number"),
        (
            {"node": {"metadata": {"a": object()}}},
            "/node/metadata",
            "cannot be told to a server: Object of type object is not",
        ),
        ({"node": {"metadata": {"a": 10**400}}}, "/node/metadata", "cannot be told to a server: "),
        ({"node": {"metadata": nested(120)}}, "/node/metadata", "cannot be told to a server: Message too deep"),
        ({"node": {"id": "\ud800"}}, "/node/id", "is no text: surrogates not allowed"),
        (server(server_uri="\ud800:1"), "/xds_servers/0/server_uri", "is no text: surrogates not allowed"),
        ({"authorities": {"a/b~": 1}}, "/authorities/a~1b~0", "must be an object, is a number"),
        (
            {"authorities": {"a": {"client_listener_resource_name_template": "xdstp://b/%s"}}},
            "/authorities/a/client_listener_resource_name_template",
            "must start with xdstp://a/",
        ),
        (
            {"authorities": {"a": {"fallback_on_reachability_only": "yes"}}},
            "/authorities/a/fallback_on_reachability_only",
            "must be true or false, is a string",
        ),
        ({"certificate_providers": {"p": {}}}, "/certificate_providers/p/plugin_name", "is required"),
        (
            {"certificate_providers": {"p": {"plugin_name": "vault"}}},
            "/certificate_providers/p/plugin_name",
            "unknown plugin 'vault'",
        ),
        (
            {"certificate_providers": {"p": {"plugin_name": "file_watcher"}}},
            "/certificate_providers/p/config",
            "at least one of",
        ),
        ({"meshlib": {"registry_uri": "127.0.0.1:1"}}, "/meshlib/registry_uri", "must be an http:// or https://"),
        ({"meshlib": {"default_port": "80"}}, "/meshlib/default_port", "must be a whole number, is a string"),
        ({"meshlib": {"default_port": True}}, "/meshlib/default_port", "must be a whole number, is a boolean"),
        ({"meshlib": {"default_port": 80.5}}, "/meshlib/default_port", "must be a whole number, is a number"),
        ({"meshlib": {"default_port": 0}}, "/meshlib/default_port", "must be from 1 to 65535, is 0"),
        ({"meshlib": {"default_port": 65536}}, "/meshlib/default_port", "must be from 1 to 65535, is 65536"),
        ({"client_default_listener_resource_name_template": 1}, "/client_default_listener", "must be a string"),
    ],
)
def test_errors_name_origin_pointer_and_reason(changes, pointer, reason):
    with pytest.raises(BootstrapError) as caught:
        parse_bootstrap({**MINIMAL, **changes}, origin="GRPC_XDS_BOOTSTRAP (/b.json)")
    message = str(caught.value)
    assert message.startswith("bootstrap GRPC_XDS_BOOTSTRAP (/b.json): at " + pointer)
    assert reason in message


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", '{"node": {"metadata": {"x": NaN}}}', "[" * 100_000])
def test_text_that_is_no_json_object_is_refused(text):
    with pytest.raises(BootstrapError, match=r"bootstrap test: (not valid JSON|at /: must be an object)"):
        parse_bootstrap(text, origin="test")


def test_a_key_that_is_there_twice_is_refused():
    text = '{"xds_servers": [], "node": {}, "xds_servers": [{}]}'
    with pytest.raises(BootstrapError, match=r'^bootstrap test: not valid JSON: duplicate key "xds_servers"$'):
        parse_bootstrap(text, origin="test")


def test_the_file_wins_over_the_text():
    env = {"GRPC_XDS_BOOTSTRAP": "/b.json", "GRPC_XDS_BOOTSTRAP_CONFIG": "not json"}
    read = {"/b.json": json.dumps(MINIMAL)}
    assert load_bootstrap(env, read.__getitem__) == parse()


def test_the_text_is_used_without_a_file():
    assert load_bootstrap({"GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(MINIMAL)}, str) == parse()


def test_a_file_that_cannot_be_read_is_an_error_and_the_text_is_not_tried():
    def read(path):
        raise FileNotFoundError(2, "No such file or directory", path)

    env = {"GRPC_XDS_BOOTSTRAP": "/b.json", "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(MINIMAL)}
    with pytest.raises(BootstrapError, match=r"GRPC_XDS_BOOTSTRAP \(/b.json\): cannot be read: No such file"):
        load_bootstrap(env, read)


def test_neither_variable_is_an_error_that_names_both():
    with pytest.raises(BootstrapError, match="GRPC_XDS_BOOTSTRAP or GRPC_XDS_BOOTSTRAP_CONFIG not defined"):
        load_bootstrap({}, str)


def test_the_node_message_says_who_we_are():
    node = parse(node={"id": "n", "cluster": "c", "locality": {"zone": "z"}, "metadata": {"a": {"b": [1, None]}}}).node
    assert to_dict(node.to_proto(user_agent_version="1.2.3")) == {
        "id": "n",
        "cluster": "c",
        "locality": {"zone": "z"},
        "metadata": {"a": {"b": [1.0, None]}},
        "user_agent_name": "meshlib",
        "user_agent_version": "1.2.3",
        "client_features": ["xds.config.resource-in-sotw", "xds.config.supports-resource-ttl"],
    }


def test_the_node_message_of_an_empty_node_has_a_version():
    message = parse().node.to_proto()
    assert message.user_agent_name == "meshlib"
    assert message.user_agent_version
    assert not message.HasField("locality")
    assert not message.HasField("metadata")
