"""Transport sockets: TLS contexts of clients and servers, for clients with SDS and for gRPC's certificate providers."""

from collections.abc import Iterable

from xds_server.model import Profile
from xds_server.translate.messages import Json, ads, typed

_TLS = "envoy.extensions.transport_sockets.tls.v3"
# Names of the secrets, and of the providers in gRPC's bootstrap: Istio's.
CERTIFICATE = "default"
ROOTS = "ROOTCA"

RAW_BUFFER: Json = {
    "name": "envoy.transport_sockets.raw_buffer",
    "typed_config": typed("envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"),
}

TLS_INSPECTOR: Json = {
    "name": "envoy.filters.listener.tls_inspector",
    "typed_config": typed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"),
}


def spiffe_id(trust_domain: str, namespace: str, service_account: str) -> str:
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def client_mutual(
    profile: Profile, identities: Iterable[str], namespace: str, trust_domain: str, sni: str, *, http2: bool
) -> Json:
    """Return the transport socket of a client within the mesh.

    Args:
        identities: SPIFFE IDs that the server may have. None known: any of the service's namespace, never just any.
    """
    known = sorted(set(identities))
    if not known:
        names: list[Json] = [{"prefix": f"spiffe://{trust_domain}/ns/{namespace}/"}]
    else:
        names = [{"exact": identity} for identity in known]
    if profile is Profile.GRPC:
        return _socket("UpstreamTlsContext", {"common_tls_context": _providers({"match_subject_alt_names": names})})
    common = _sds({"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": name} for name in names]})
    if profile is Profile.ENVOY:
        # As a client Envoy stops at TLS 1.2 unless told otherwise; servers of meshlib start at 1.3.
        common["tls_params"] = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}
    if http2:
        common["alpn_protocols"] = ["h2"]
    return _socket("UpstreamTlsContext", {"common_tls_context": common, "sni": sni})


def client_simple(ca_file: str, sni: str, names: Iterable[str]) -> Json:
    """Return the transport socket of a client that checks the server and shows no certificate itself.

    Args:
        ca_file: PEM file of trusted roots; empty: the system's.
        names: DNS names or URIs that the server may have; empty: the SNI.
    """
    allowed = list(names) or ([sni] if sni else [])
    matchers = [{"san_type": "URI" if "://" in name else "DNS", "matcher": {"exact": name}} for name in allowed]
    validation: Json = {"match_typed_subject_alt_names": matchers} if matchers else {}
    if ca_file:
        validation["trusted_ca"] = {"filename": ca_file}
    else:
        validation["system_root_certs"] = {}
    context: Json = {"common_tls_context": {"validation_context": validation}}
    return _socket("UpstreamTlsContext", context | ({"sni": sni} if sni else {}))


def server_mutual(profile: Profile, trust_domain: str) -> Json:
    """Return the transport socket of a server that demands a certificate of the trust domain."""
    if profile is Profile.GRPC:  # which refuses names to check on the server's side
        common = _providers({})
    else:
        matcher = {"prefix": f"spiffe://{trust_domain}/"}
        common = _sds({"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": matcher}]})
        common["tls_params"] = {
            "tls_minimum_protocol_version": "TLSv1_3" if profile is Profile.MESHLIB else "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
        }
    return _socket("DownstreamTlsContext", {"require_client_certificate": True, "common_tls_context": common})


def _sds(validation: Json) -> Json:
    return {
        "tls_certificate_sds_secret_configs": [{"name": CERTIFICATE, "sds_config": ads()}],
        "combined_validation_context": {
            "default_validation_context": validation,
            "validation_context_sds_secret_config": {"name": ROOTS, "sds_config": ads()},
        },
    }


def _providers(validation: Json) -> Json:
    roots = {"ca_certificate_provider_instance": {"instance_name": CERTIFICATE, "certificate_name": ROOTS}}
    return {
        "tls_certificate_provider_instance": {"instance_name": CERTIFICATE, "certificate_name": CERTIFICATE},
        "combined_validation_context": {"default_validation_context": validation | roots},
    }


def _socket(context: str, value: Json) -> Json:
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed(f"{_TLS}.{context}", value)}
