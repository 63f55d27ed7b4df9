"""What the rich resources of `xds_corpus.py` are made of."""

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Json = dict[str, Any]

TYPE = "type.googleapis.com/"
TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."
FILTER = TYPE + "envoy.extensions.filters.http."
POLICY = TYPE + "envoy.extensions.load_balancing_policies."
HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ADS: Json = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "3s"}
SHARE: Json = {"numerator": 5, "denominator": "TEN_THOUSAND"}
RUNTIME_SHARE: Json = {"default_value": SHARE, "runtime_key": "key"}
TEXT: Json = {"exact": "a", "ignore_case": True}
REGEX: Json = {"regex": "/(a)", "google_re2": {"max_program_size": 90}}
HEADERS: list[Json] = [
    {"name": "x-a", "string_match": TEXT},
    {"name": "x-b", "range_match": {"start": 1, "end": 7}},
    {"name": "x-c", "safe_regex_match": REGEX},
]
QUERY: list[Json] = [{"name": "q", "string_match": {"prefix": "a"}}]
ADDITION: Json = {"header": {"key": "x-a", "value": "1"}, "append_action": "ADD_IF_ABSENT", "keep_empty_value": True}
MUTATIONS: list[Json] = [
    {"append": ADDITION},
    {"remove_on_match": {"key_matcher": {"prefix": "x-"}}},
    {"remove": "x-z"},
]


@cache
def pem() -> tuple[str, str]:
    """Return a certificate that is its own root, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


def address(host: str = "127.0.0.1", port: int = 80) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def named(kind: str, **fields: Any) -> Json:
    """Return a TypedExtensionConfig."""
    return {"name": "n", "typed_config": {"@type": TYPE + kind, **fields}}


def listed(kind: str, **fields: Any) -> Json:
    """Return a LoadBalancingPolicy of one."""
    return {"policies": [{"typed_extension_config": {"name": "p", "typed_config": {"@type": POLICY + kind, **fields}}}]}
