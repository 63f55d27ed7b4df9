import base64
import hashlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import (
    ClientTls,
    PeerChecks,
    SanMatcher,
    SanType,
    SecretRef,
    ServerTls,
    SniSource,
    TlsParameters,
    TrustBundle,
    TrustedCa,
)

TLS = "envoy.extensions.transport_sockets.tls.v3."
ADS = {"ads": {}}
CERTIFICATE = {"tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ADS}]}
TRUST = {"name": "ROOTCA", "sds_config": ADS}
SOCKET = "transport_socket.typed_config"
COMMON = f"{SOCKET}.common_tls_context"


@pytest.fixture
def client(decode_cluster, packed):
    def run(common=None, **fields):
        context = packed(f"{TLS}UpstreamTlsContext", common_tls_context=common or {}, **fields)
        return decode_cluster(transport_socket={"name": "envoy.transport_sockets.tls", "typed_config": context})

    return run


@pytest.fixture
def server(decode_server, packed):
    def run(common=None, **fields):
        context = packed(f"{TLS}DownstreamTlsContext", common_tls_context=common or {}, **fields)
        return decode_server(chain={"transport_socket": {"name": "tls", "typed_config": context}})

    return run


def tls_of(decoded):
    assert decoded.errors == ()
    return decoded.value.tls


def paths_of(decoded):
    assert decoded.value is None
    return [error.partition(": ")[0] for error in decoded.errors]


def exact(value):
    return StringMatcher(StringKind.EXACT, value)


def test_the_mesh_client_context(client):
    default = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "spiffe://td/ns/a/sa/b"}}]}
    combined = {"default_validation_context": default, "validation_context_sds_secret_config": TRUST}
    decoded = client(
        {**CERTIFICATE, "combined_validation_context": combined, "alpn_protocols": ["h2"]}, sni="outbound_.80_.v1_.x"
    )
    assert tls_of(decoded) == ClientTls(
        certificate=SecretRef("default"),
        trust=SecretRef("ROOTCA"),
        sans=(SanMatcher(SanType.URI, exact("spiffe://td/ns/a/sa/b")),),
        sni="outbound_.80_.v1_.x",
        alpn=("h2",),
    )


def test_the_mesh_server_context(server):
    default = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]}
    combined = {"default_validation_context": default, "validation_context_sds_secret_config": TRUST}
    common = {
        **CERTIFICATE,
        "combined_validation_context": combined,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
    }
    assert tls_of(server(common, require_client_certificate=True)) == ServerTls(
        certificate=SecretRef("default"),
        trust=SecretRef("ROOTCA"),
        sans=(SanMatcher(SanType.URI, StringMatcher(StringKind.PREFIX, "spiffe://cluster.local/")),),
        require_client_certificate=True,
        minimum_version="TLSv1_3",
    )


def test_certificate_providers_by_their_new_and_old_names(client):
    instance = {"instance_name": "default"}
    new = {
        "tls_certificate_provider_instance": instance,
        "validation_context": {"ca_certificate_provider_instance": instance},
    }
    old = {
        "tls_certificate_certificate_provider_instance": instance,
        "combined_validation_context": {
            "default_validation_context": {"match_subject_alt_names": [{"exact": "a"}]},
            "validation_context_certificate_provider_instance": instance,
        },
    }
    reference = SecretRef(provider="default")
    assert tls_of(client(new)) == ClientTls(reference, reference)
    assert tls_of(client(old)) == ClientTls(reference, reference, (SanMatcher(SanType.ANY, exact("a")),))
    bare = {"validation_context_certificate_provider_instance": instance}
    assert tls_of(client(bare)) == ClientTls(None, reference)
    assert tls_of(client({**new, "tls_certificate_certificate_provider_instance": instance})).certificate == reference


def test_inline_trust_and_plain_sds(client, root_pem):
    inline = tls_of(client({"validation_context": {"trusted_ca": {"inline_string": root_pem.decode()}}}))
    assert inline.trust.inline.ca_pem == root_pem
    assert tls_of(client({"validation_context_sds_secret_config": TRUST})).trust == SecretRef("ROOTCA")


def test_tls_without_validation_has_no_trust(client):
    assert tls_of(client()) == ClientTls(None, None)


def test_what_is_discovered_replaces_the_default_roots(client, root_pem):
    default = {"trusted_ca": {"inline_string": root_pem.decode()}}
    combined = {"default_validation_context": default, "validation_context_sds_secret_config": TRUST}
    decoded = client({"combined_validation_context": combined})
    assert tls_of(decoded).trust == SecretRef("ROOTCA")
    assert decoded.unused[0].startswith(f"{COMMON}.combined_validation_context.default_validation_context: ")


@pytest.mark.parametrize(
    ("params", "version", "unused"),
    [
        ({}, "TLSv1_2", 0),
        ({"tls_minimum_protocol_version": "TLSv1_0"}, "TLSv1_2", 1),
        ({"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}, "TLSv1_2", 0),
        ({"tls_maximum_protocol_version": "TLSv1_2"}, "TLSv1_2", 0),
        ({"tls_minimum_protocol_version": "TLSv1_3", "cipher_suites": ["AES128-SHA"]}, "TLSv1_3", 1),
    ],
)
def test_versions(client, params, version, unused):
    decoded = client({"tls_params": params})
    assert tls_of(decoded).minimum_version == version
    assert len(decoded.unused) == unused


ROOTS = {"ca_certificate_provider_instance": {"instance_name": "p"}}


@pytest.mark.parametrize(
    ("common", "path"),
    [
        ({"tls_params": {"cipher_suites": ["RC4-SHA"]}}, "tls_params.cipher_suites[0]"),
        ({"tls_params": {"ecdh_curves": ["X25519", "P-256"]}}, "tls_params.ecdh_curves"),
        ({"tls_params": {"ecdh_curves": ["P-224"]}}, "tls_params.ecdh_curves[0]"),
        ({"tls_params": {"signature_algorithms": ["ed25519"]}}, "tls_params.signature_algorithms"),
        ({"tls_params": {"tls_maximum_protocol_version": "TLSv1_1"}}, "tls_params.tls_maximum_protocol_version"),
        (
            {"tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_2"}},
            "tls_params.tls_maximum_protocol_version",
        ),
        ({"tls_certificate_sds_secret_configs": [{"name": "a"}]}, "tls_certificate_sds_secret_configs[0].sds_config"),
        (
            {"tls_certificate_sds_secret_configs": [{"name": "a", "sds_config": {"path": "/x"}}]},
            "tls_certificate_sds_secret_configs[0].sds_config.path",
        ),
        (
            {"tls_certificate_sds_secret_configs": [{"name": "", "sds_config": ADS}]},
            "tls_certificate_sds_secret_configs[0].name",
        ),
        (
            {"validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "a"}}]}},
            "validation_context",
        ),
        (
            {
                "validation_context": {
                    **ROOTS,
                    "match_typed_subject_alt_names": [
                        {"san_type": "OTHER_NAME", "oid": "1.2.3", "matcher": {"exact": "a"}}
                    ],
                }
            },
            "validation_context.match_typed_subject_alt_names[0].san_type",
        ),
        (
            {"validation_context": {**ROOTS, "match_typed_subject_alt_names": [{"matcher": {"exact": "a"}}]}},
            "validation_context.match_typed_subject_alt_names[0].san_type",
        ),
        (
            {"validation_context": {**ROOTS, "verify_certificate_hash": ["x" * 64]}},
            "validation_context.verify_certificate_hash[0]",
        ),
        (
            {"validation_context": {**ROOTS, "verify_certificate_spki": ["a" * 43 + "!"]}},
            "validation_context.verify_certificate_spki[0]",
        ),
        ({"validation_context": {**ROOTS, "crl": {"inline_string": "x"}}}, "validation_context.crl"),
        (
            {"validation_context": {**ROOTS, "allow_expired_certificate": True}},
            "validation_context.allow_expired_certificate",
        ),
        (
            {"validation_context": {**ROOTS, "trust_chain_verification": "ACCEPT_UNTRUSTED"}},
            "validation_context.trust_chain_verification",
        ),
        (
            {"validation_context": {**ROOTS, "custom_validator_config": {"name": "x"}}},
            "validation_context.custom_validator_config",
        ),
        ({"validation_context": {"trusted_ca": {"filename": "/x"}}}, "validation_context.trusted_ca.filename"),
        ({"validation_context": {"trusted_ca": {"inline_string": "x"}}}, "validation_context.trusted_ca"),
        (
            {"combined_validation_context": {"default_validation_context": {}}},
            "combined_validation_context.validation_context_sds_secret_config",
        ),
        ({"custom_handshaker": {"name": "x"}}, "custom_handshaker"),
        (
            {"tls_certificate_provider_instance": {"instance_name": ""}},
            "tls_certificate_provider_instance.instance_name",
        ),
    ],
)
def test_what_restricts_peers_is_honoured_or_refused(client, common, path):
    assert f"{COMMON}.{path}" in paths_of(client(common))


@pytest.mark.parametrize("fields", [{"auto_sni_san_validation": True}, {"sni": "x" * 256}])
def test_names_that_cannot_be_honoured_are_refused(client, fields):
    assert paths_of(client(None, **fields)) == [f"{SOCKET}.{next(iter(fields))}"]


def test_server_names_of_endpoints(client):
    found = tls_of(client({"validation_context": ROOTS}, auto_host_sni=True, auto_sni_san_validation=True, sni="x"))
    assert (found.sni_source, found.san_is_sni, found.sni) == (SniSource.HOSTNAME, True, "x")


def test_parameters(client):
    ciphers = ["[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]", "AES128-SHA"]
    params = {"tls_maximum_protocol_version": "TLSv1_2", "cipher_suites": ciphers, "ecdh_curves": ["P-256"]}
    assert tls_of(client({"tls_params": params})).parameters == TlsParameters(
        "TLSv1_2", ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305", "AES128-SHA"), "prime256v1"
    )


def test_system_roots_when_asked_for(client):
    names = {"match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": "a.example"}}]}
    decoded = client({"validation_context": {"system_root_certs": {}, **names}})
    assert tls_of(decoded).trust == SecretRef(inline=TrustedCa(b"", is_system=True))
    assert decoded.unused == ()
    # As for Envoy and gRPC any name will do when none is given; that is told.
    assert len(client({"validation_context": {"system_root_certs": {}}}).unused) == 1
    assert tls_of(client({"validation_context": {**ROOTS, "system_root_certs": {}}})).trust == SecretRef(provider="p")


def test_pins_alone_say_who_the_peer_is(client):
    digest = hashlib.sha256(b"key").digest()
    colons = ":".join(f"{byte:02X}" for byte in digest)
    context = {"verify_certificate_hash": [colons], "verify_certificate_spki": [base64.b64encode(digest).decode()]}
    found = tls_of(client({"validation_context": context}))
    assert (found.trust, found.checks) == (None, PeerChecks((digest,), (digest,)))


def spiffe(packed, **fields):
    validator = packed(f"{TLS}SPIFFECertValidatorConfig", **fields)
    return {"custom_validator_config": {"name": "envoy.tls.cert_validator.spiffe", "typed_config": validator}}


def test_a_bundle_per_trust_domain(client, packed, root_pem):
    bundle = {"inline_string": root_pem.decode()}
    domains = [{"name": "b.example", "trust_bundle": bundle}, {"name": "a.example", "trust_bundle": bundle}]
    found = tls_of(client({"validation_context": spiffe(packed, trust_domains=domains)})).trust.inline
    assert found.bundles == (TrustBundle("a.example", root_pem), TrustBundle("b.example", root_pem))
    assert found.needs_key_usage


def test_a_bundle_map(client, packed, root_pem):
    der = x509.load_pem_x509_certificate(root_pem).public_bytes(Encoding.DER)
    key = {"use": "x509-svid", "kty": "EC", "x5c": [base64.b64encode(der).decode()]}
    text = json.dumps({"trust_domains": {"a.example": {"keys": [key, {"use": "jwt-svid"}]}, "b.example": {"keys": []}}})
    bundles = spiffe(packed, trust_bundles={"inline_string": text})
    found = tls_of(client({"validation_context": bundles})).trust.inline.bundles
    assert [one.trust_domain for one in found] == ["a.example"]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, ""),
        ({"trust_bundles": {"inline_string": "{}"}}, ".trust_bundles"),
        ({"trust_bundles": {"filename": "/x"}}, ".trust_bundles.filename"),
        ({"trust_domains": [{"name": "A", "trust_bundle": {"inline_string": "ROOT"}}]}, ".trust_domains[0].name"),
        (
            {"trust_domains": [{"name": "a", "trust_bundle": {"inline_string": "ROOT"}}] * 2},
            ".trust_domains[1].name",
        ),
        ({"trust_domains": [{"name": "a", "trust_bundle": {}}]}, ".trust_domains[0].trust_bundle.specifier"),
    ],
)
def test_bundles_that_cannot_be_used(client, packed, root_pem, fields, path):
    text = json.dumps(fields).replace('"ROOT"', json.dumps(root_pem.decode()))
    context = spiffe(packed, **json.loads(text))
    place = f"{COMMON}.validation_context.custom_validator_config.typed_config{path}"
    assert place in paths_of(client({"validation_context": context}))


def test_pins_need_roots_in_a_server(server):
    pins = {**CERTIFICATE, "validation_context": {"verify_certificate_hash": ["ab" * 32]}}
    assert paths_of(server(pins)) == [f"{SERVER}.common_tls_context.validation_context"]


def test_two_certificates_are_refused(client):
    both = {**CERTIFICATE, "tls_certificate_provider_instance": {"instance_name": "p"}}
    assert paths_of(client(both)) == [COMMON]


SERVER = "filter_chains[0].transport_socket.typed_config"


@pytest.mark.parametrize(
    ("common", "fields", "path"),
    [
        ({}, {}, "common_tls_context"),
        (CERTIFICATE, {"require_client_certificate": True}, "require_client_certificate"),
        (CERTIFICATE, {"require_sni": True}, "require_sni"),
        (CERTIFICATE, {"ocsp_staple_policy": "MUST_STAPLE"}, "ocsp_staple_policy"),
    ],
)
def test_server_contexts_that_cannot_be_used(server, common, fields, path):
    assert paths_of(server(common, **fields)) == [f"{SERVER}.{path}"]


def test_how_sessions_are_resumed_is_harmless(server):
    decoded = server(CERTIFICATE, disable_stateless_session_resumption=True, session_timeout="1s", require_sni=False)
    assert decoded.errors == ()
    assert len(decoded.unused) == 2


def test_sockets_for_endpoints_by_their_metadata(decode_cluster, packed):
    context = packed(f"{TLS}UpstreamTlsContext", sni="x")
    raw = packed("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")
    matches = [
        {
            "name": "tlsMode-istio",
            "match": {"tlsMode": "istio", "a": {"b": 1}},
            "transport_socket": {"name": "tls", "typed_config": context},
        },
        {"name": "other", "match": {"x": True}, "transport_socket": {"name": "raw", "typed_config": raw}},
        {"name": "tlsMode-disabled", "match": {}, "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}},
    ]
    decoded = decode_cluster(transport_socket_matches=matches)
    assert decoded.errors == ()
    found = decoded.value.socket_matches
    assert [(one.name, dict(one.match), one.tls and one.tls.sni) for one in found] == [
        ("tlsMode-istio", {"tlsMode": "istio", "a": {"b": 1.0}}, "x"),
        ("other", {"x": True}, None),
        ("tlsMode-disabled", {}, None),
    ]


@pytest.mark.parametrize("socket", [{"name": "envoy.transport_sockets.tls"}, {"name": "alts"}])
def test_a_socket_without_configuration_is_refused_unless_it_is_plaintext(decode_cluster, socket):
    assert paths_of(decode_cluster(transport_socket=socket)) == [f"{SOCKET}"]


def test_other_sockets_are_refused_by_name(decode_cluster, packed):
    config = packed(f"{TLS}DownstreamTlsContext")
    decoded = decode_cluster(transport_socket={"name": "tls", "typed_config": config})
    assert decoded.errors[0].startswith(f"{SOCKET}: {TLS}DownstreamTlsContext is not supported")


def test_a_context_that_cannot_be_read_is_not_quoted(decode_cluster, packed):
    value = {"common_tls_context": {"tls_certificates": [{"private_key": {"inline_bytes": "SECRET!"}}]}}
    config = packed("xds.type.v3.TypedStruct", type_url=f"type.googleapis.com/{TLS}UpstreamTlsContext", value=value)
    decoded = decode_cluster(transport_socket={"name": "tls", "typed_config": config})
    assert decoded.errors == (f"{SOCKET}: is not a {TLS}UpstreamTlsContext",)
