"""PeerAuthentication on both sides, and DestinationRule's TLS modes."""

import pytest

from meshlib.protos import to_dict
from xds_server.model import Profile
from xds_server.sources import memory
from xds_server.translate import compile_documents

PA = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n"
NAME = "xds.istio.io/grpc/lds/inbound/10.0.0.1:9001"


def peer(name: str, spec: str, namespace: str = "default") -> str:
    return f"{PA}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"


MESH = peer("mesh", "{mtls: {mode: STRICT}}", "istio-system")
NAMESPACE = peer("ns", "{mtls: {mode: %s}}")
WORKLOAD = peer("w", "{selector: {matchLabels: {app: reviews}}, mtls: {mode: %s}}")
PORT = peer("w", "{selector: {matchLabels: {app: reviews}}, mtls: {mode: %s}, portLevelMtls: {'9001': {mode: %s}}}")
MODES = {
    "none": ("", False),
    "mesh": (MESH, True),
    "namespace over mesh": (MESH + NAMESPACE % "DISABLE", False),
    "UNSET inherits": (MESH + NAMESPACE % "UNSET", True),
    "workload over namespace": (NAMESPACE % "DISABLE" + WORKLOAD % "STRICT", True),
    "port over workload": (PORT % ("STRICT", "DISABLE"), False),
    "port STRICT": (PORT % ("DISABLE", "STRICT"), True),
    "another workload": (peer("w", "{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}"), False),
    "another namespace": (peer("a", "{mtls: {mode: STRICT}}", "shop"), False),
    "selector in root": (
        peer("a", "{selector: {matchLabels: {app: reviews}}, mtls: {mode: STRICT}}", "istio-system"),
        False,
    ),
    "the oldest of a scope": (NAMESPACE % "STRICT" + peer("z", "{mtls: {mode: DISABLE}}"), True),
    "permissive": (NAMESPACE % "PERMISSIVE", False),
}


@pytest.mark.parametrize(("text", "is_strict"), MODES.values(), ids=MODES)
def test_mode_of_a_server(compiled, instance, text, is_strict):
    chain = compiled(text, instance()).get("LDS", NAME)["filter_chains"][0]
    assert ("transport_socket" in chain) == is_strict
    assert chain["name"] == ("inbound-mtls" if is_strict else "inbound-plaintext")


TAKES_TLS = {"app": "reviews", "version": "v1", "security.istio.io/tlsMode": "istio"}


def test_permissive_is_a_chain_for_tls_and_one_for_plaintext(compiled, instance):
    listener = compiled(NAMESPACE % "PERMISSIVE", instance()).get("LDS", NAME)
    plain, secure = listener["filter_chains"]
    assert ["raw_buffer", "tls"] == [one["filter_chain_match"]["transport_protocol"] for one in (plain, secure)]
    assert plain["filters"] == secure["filters"]
    assert "transport_socket" not in plain
    assert secure["transport_socket"]["typed_config"]["require_client_certificate"]
    assert ["envoy.filters.listener.tls_inspector"] == [one["name"] for one in listener["listener_filters"]]
    (only,) = compiled(NAMESPACE % "PERMISSIVE", instance(), profile="grpc").get("LDS", NAME)["filter_chains"]
    assert "transport_socket" not in only


def test_strict_at_one_registration_is_strict_beside_permissive(compiled, instance):
    text = NAMESPACE % "PERMISSIVE" + peer("w", "{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}")
    other = instance(id="x", service="other", service_account="other")
    (chain,) = compiled(text, instance(), other).get("LDS", NAME)["filter_chains"]
    assert "inbound-mtls" == chain["name"]


def test_clients_use_tls_for_permissive_endpoints_that_can(compiled, instance):
    able, other = instance(9001, labels=TAKES_TLS), instance(9002, "v2")
    marks = {}
    for mode in ("PERMISSIVE", "DISABLE", "STRICT"):
        result = compiled(NAMESPACE % mode, able, other)
        (locality,) = result.get("EDS", result.cluster()["name"])["endpoints"]
        marks[mode] = ["metadata" in one for one in locality["lb_endpoints"]]
        assert ("transport_socket_matches" in result.cluster()) == (mode != "DISABLE")
    assert {"PERMISSIVE": [True, False], "DISABLE": [False, False], "STRICT": [True, True]} == marks
    grpc = compiled(NAMESPACE % "PERMISSIVE", able, profile="grpc").cluster()
    assert "transport_socket" not in grpc


def test_without_certificates_permissive_is_plaintext(instance):
    documents, _ = memory.from_text(NAMESPACE % "PERMISSIVE", "test.yaml")
    found = compile_documents(documents, [instance(labels=TAKES_TLS)], profile=Profile.MESHLIB, has_certificates=False)
    listener = to_dict(found.resources["type.googleapis.com/envoy.config.listener.v3.Listener"][NAME])
    (chain,) = listener["filter_chains"]
    assert "inbound-plaintext" == chain["name"]
    assert b"transport_socket" not in b"".join(
        one.SerializeToString()
        for one in found.resources["type.googleapis.com/envoy.config.cluster.v3.Cluster"].values()
    )


ALLOW = """apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-gateway}
spec:
  selector: {matchLabels: {app: reviews}}
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/gateway]}}]}]
---
"""


@pytest.mark.parametrize("service", ["alpha", "zeta"])
def test_second_registration_of_an_address_cannot_take_away_what_guards_it(compiled, instance, service):
    text = ALLOW + ALLOW.replace("reviews", service).replace("gateway", "other") + WORKLOAD % "STRICT"
    other = instance(id="x", service=service, service_account=service)
    result = compiled(text, instance(), other)
    chain = result.get("LDS", NAME)["filter_chains"][0]
    filters = chain["filters"][0]["typed_config"]["http_filters"]
    assert "transport_socket" in chain
    assert ["envoy.filters.http.rbac", "envoy.filters.http.rbac#2", "envoy.filters.http.router"] == [
        one["name"] for one in filters
    ]
    assert "MESH0025" in result.codes


def test_same_policies_at_one_address_are_there_once(compiled, instance):
    result = compiled(ALLOW, instance(), instance(id="x", weight=2))
    filters = result.get("LDS", NAME)["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    assert 2 == len(filters)


def test_clients_use_tls_for_strict_endpoints_and_check_their_identities(compiled, instance):
    strict = WORKLOAD.replace("app: reviews", "version: v1") % "STRICT"
    result = compiled(strict, instance(9001, "v1"), instance(9002, "v2", service_account="other"))
    cluster = result.cluster()
    first, second = cluster["transport_socket_matches"]
    names = [
        {"san_type": "URI", "matcher": {"exact": f"spiffe://cluster.local/ns/default/sa/{sa}"}}
        for sa in ("other", "reviews")
    ]
    sds = {"ads": {}, "resource_api_version": "V3"}
    assert first == {
        "name": "tlsMode-istio",
        "match": {"tlsMode": "istio"},
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "common_tls_context": {
                    "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": sds}],
                    "combined_validation_context": {
                        "default_validation_context": {"match_typed_subject_alt_names": names},
                        "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": sds},
                    },
                },
                "sni": "outbound_.80_._.reviews.default.svc.cluster.local",
            },
        },
    }
    assert (second["name"], second["match"]) == ("tlsMode-disabled", {})
    (locality,) = result.get("EDS", cluster["name"])["endpoints"]
    assert [one.get("metadata") for one in locality["lb_endpoints"]] == [
        {"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}},
        None,
    ]


def test_without_a_known_identity_only_the_namespace_is_trusted(compiled, instance):
    cluster = compiled(MESH, instance(service_account="")).cluster()
    context = cluster["transport_socket_matches"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    assert context["combined_validation_context"]["default_validation_context"] == {
        "match_typed_subject_alt_names": [
            {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/ns/default/"}}
        ]
    }


def test_stock_grpc_uses_tls_only_where_all_endpoints_demand_it(compiled, instance):
    some = WORKLOAD.replace("app: reviews", "version: v1") % "STRICT"
    instances = (instance(9001, "v1"), instance(9002, "v2"))
    mixed = compiled(some, *instances, profile="grpc")
    assert "transport_socket" not in mixed.cluster()
    assert mixed.codes == ["MESH0040"]
    assert compiled(MESH, *instances, profile="grpc").cluster()["transport_socket"]["typed_config"] == {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_certificate_provider_instance": {"instance_name": "default", "certificate_name": "default"},
            "combined_validation_context": {
                "default_validation_context": {
                    "match_subject_alt_names": [{"exact": "spiffe://cluster.local/ns/default/sa/reviews"}],
                    "ca_certificate_provider_instance": {"instance_name": "default", "certificate_name": "ROOTCA"},
                }
            },
        },
    }


def test_a_destination_rule_has_the_last_word(compiled, destination_rule, instance):
    off = compiled(MESH + destination_rule("{tls: {mode: DISABLE}}"), instance()).cluster()
    on = compiled(destination_rule("{tls: {mode: ISTIO_MUTUAL}}"), instance()).cluster()
    assert not {"transport_socket", "transport_socket_matches"} & off.keys()
    assert on["transport_socket"]["typed_config"]["sni"] == "outbound_.80_._.reviews.default.svc.cluster.local"


def test_simple_tls_checks_the_name_against_the_systems_roots(compiled, destination_rule):
    policy = "{tls: {mode: SIMPLE, sni: a.example.com}}"
    assert compiled(destination_rule(policy)).cluster()["transport_socket"]["typed_config"] == {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a.example.com"}}],
                "system_root_certs": {},
            }
        },
        "sni": "a.example.com",
    }


def test_stock_grpc_never_falls_back_to_plaintext(compiled, destination_rule, instance):
    result = compiled(destination_rule("{tls: {mode: SIMPLE}}"), instance(), profile="grpc")
    name = "outbound|80||reviews.default.svc.cluster.local"
    assert result.get("EDS", name) == {"cluster_name": name}
    assert result.codes == ["MESH0040"]
