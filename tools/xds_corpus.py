"""Rich resources, in proto3 JSON: between them they have every small message that the decoders read.

Here the tables of small messages in docs/reference/xds-features.md come from: `xds_small.py` finds each message in one of
these resources, and tries its fields. A message that a decoder begins to read has to be put in here; the tool says so.
"""

from xds_corpus_clusters import ASSIGNMENT, HOST, client_tls, clusters
from xds_corpus_listeners import CLIENTS, SCOPE, server
from xds_corpus_parts import FILTER, HTTP, Json, named, pem
from xds_corpus_routes import MORE_HOSTS, ROUTES, TO_ROUTE, TREES

from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS, SRDS


def resources() -> list[tuple[str, Json]]:
    """Return type URLs and resources; each decodes without an error."""
    return [
        (RDS, ROUTES),
        (RDS, TREES),
        (RDS, MORE_HOSTS),
        *((LDS, one) for one in CLIENTS),
        (LDS, server()),
        (EDS, ASSIGNMENT),
        (EDS, {"cluster_name": "c", "endpoints": [{"load_balancer_endpoints": {"lb_endpoints": [HOST]}}]}),
        *((CDS, one) for one in clusters()),
        (SDS, {"name": "s", "validation_context": {"trusted_ca": {"inline_string": pem()[0]}}}),
        (SRDS, SCOPE),
    ]


_CORE = "envoy.config.core.v3."
_CLUSTER = "envoy.config.cluster.v3.Cluster."
_POLICIES = "envoy.extensions.load_balancing_policies."
_TLS = "envoy.extensions.transport_sockets.tls.v3."
OTHER_INPUT: Json = named("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name="x-z")
DIRECTORY: Json = {"watched_directory": {"path": "/x"}}
SAMPLES: dict[tuple[str, str], Json] = {
    ("envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template"): {
        "path_template": "/{a}/b"
    },
    ("envoy.config.route.v3.DirectResponseAction", "status"): {"status": 404},
    ("envoy.config.route.v3.FilterConfig", "config"): {
        "config": {"@type": FILTER + "fault.v3.HTTPFault", "max_active_faults": 9}
    },
    ("envoy.extensions.filters.http.fault.v3.FaultAbort", "http_status"): {"http_status": 400},
    ("envoy.config.route.v3.RateLimit.HitsAddend", "format"): {"format": "%REQ(y)%"},
    ("xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate", "input"): {"input": OTHER_INPUT},
    ("xds.type.matcher.v3.Matcher.MatcherTree", "input"): {"input": OTHER_INPUT},
    ("xds.type.matcher.v3.Matcher.MatcherTree", "exact_match_map"): {"exact_match_map": {"map": {"b": TO_ROUTE}}},
    ("xds.type.matcher.v3.Matcher.MatcherTree", "prefix_match_map"): {"prefix_match_map": {"map": {"b": TO_ROUTE}}},
    ("xds.type.matcher.v3.Matcher.MatcherTree.MatchMap", "map"): {"map": {"b": TO_ROUTE}},
    ("xds.type.matcher.v3.Matcher.OnMatch", "action"): {
        "action": named("envoy.config.route.v3.Route", match={"prefix": "/z"}, non_forwarding_action={})
    },
    (f"{_CORE}SocketAddress", "address"): {"address": "127.0.0.9"},
    (f"{_CORE}CidrRange", "address_prefix"): {"address_prefix": "11.0.0.0"},
    (f"{_CORE}DataSource", "watched_directory"): DIRECTORY,
    (f"{_CORE}ConfigSource", "authorities"): {"authorities": [{"name": "a"}]},
    (f"{_CORE}ConfigSource", "path_config_source"): {"path_config_source": {"path": "/x"}},
    (f"{_CORE}Http2ProtocolOptions", "initial_stream_window_size"): {"initial_stream_window_size": 65535},
    (f"{_CORE}Http2ProtocolOptions", "initial_connection_window_size"): {"initial_connection_window_size": 65535},
    (f"{_CORE}Http2ProtocolOptions", "custom_settings_parameters"): {
        "custom_settings_parameters": [{"identifier": 10, "value": 1}]
    },
    (f"{_CORE}Http1ProtocolOptions", "header_key_format"): {"header_key_format": {"proper_case_words": {}}},
    (f"{_CORE}HealthCheck", "event_service"): {
        "event_service": {"grpc_service": {"envoy_grpc": {"cluster_name": "c"}}}
    },
    (f"{_CORE}HealthCheck", "event_logger"): {"event_logger": [named("google.protobuf.Empty")]},
    (f"{_CLUSTER}LbSubsetConfig.LbSubsetSelector", "fallback_keys_subset"): {"fallback_keys_subset": ["b"]},
    (f"{_POLICIES}subset.v3.Subset.LbSubsetSelector", "fallback_keys_subset"): {"fallback_keys_subset": ["b"]},
    (f"{_CLUSTER}TransportSocketMatch", "transport_socket"): {"transport_socket": client_tls()},
    (f"{HTTP}.AutoHttpConfig", "alternate_protocols_cache_options"): {
        "alternate_protocols_cache_options": {"name": "n"}
    },
    (f"{_TLS}CommonTlsContext", "key_log"): {"key_log": {"path": "/x"}},
    (f"{_TLS}TlsCertificate", "watched_directory"): DIRECTORY,
    (f"{_TLS}TlsCertificate", "ocsp_staple"): {"ocsp_staple": {"inline_bytes": "AA=="}},
    (f"{_TLS}TlsCertificate", "signed_certificate_timestamp"): {
        "signed_certificate_timestamp": [{"inline_bytes": "AA=="}]
    },
    (f"{_CORE}Http1ProtocolOptions", "ignore_http_11_upgrade"): {"ignore_http_11_upgrade": [{"exact": "a"}]},
}
"""Of a message and a field: what the field, and others that it needs, may be."""
