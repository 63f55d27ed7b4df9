import json

import pytest

CLUSTER = """\
resources:
- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
  name: a
  connectTimeout: 1.5s
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: a
  endpoints:
  - lb_endpoints:
    - endpoint: {address: {socket_address: {address: 1.1.1.1, port_value: 80}}}
"""
API_LISTENER = """\
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: a
api_listener:
  api_listener:
    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
    stat_prefix: a
"""


@pytest.mark.parametrize("profile", ["envoy", "grpc", "meshlib"])
def test_resources_are_passed_on(compiled, profile):
    result = compiled(CLUSTER, profile=profile)
    assert result.findings == ()
    assert result.get("CDS", "a") == {"name": "a", "connect_timeout": "1.500s"}
    assert "1.1.1.1" in json.dumps(result.get("EDS", "a"))


@pytest.mark.parametrize(("profile", "names"), [("envoy", ["outbound"]), ("meshlib", ["a"])])
def test_envoy_is_spared_api_listeners(compiled, profile, names):
    assert compiled(API_LISTENER, profile=profile).names("LDS") == names


def test_unknown_fields_are_found_within_messages_lists_maps_and_anys(compiled):
    text = """\
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: a
circuit_breakers: {thresholds: [{max_requets: 1}]}
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_config: {}
metadata: {filter_metadata: {anything: {goes: here}}}
transport_socket: {name: x, typed_config: {"@type": type.googleapis.com/nobody.knows.This}}
"""
    found = [(finding.code, finding.position.line, finding.position.column) for finding in compiled(text).findings]
    assert found == [("MESH0050", 3, 34), ("MESH0050", 7, 5), ("MESH0051", 9, 44)]
    assert "did you mean max_requests?" in compiled(text).findings[0].message


@pytest.mark.parametrize(
    "text",
    [
        "resources: 1\n",
        "resources: [1]\n",
        "resources: [{}]\n",
        '"@type": 1\n',
        '"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster\n',
        API_LISTENER + "---\n" + API_LISTENER,
        "resources: []\nother: 1\n",
    ],
)
def test_what_is_no_resource_is_an_error(compiled, text):
    assert {finding.severity for finding in compiled(text).findings} == {"error"}
