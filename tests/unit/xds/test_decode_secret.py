import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import PeerChecks, SanMatcher, SanType, Secret, TlsCertificate, TrustedCa


@pytest.fixture
def certificate(decode):
    def run(chain, key, **fields):
        data = {
            "certificate_chain": {"inline_string": chain.decode()},
            "private_key": {"inline_string": key.decode()},
            **fields,
        }
        return decode("SDS", {"name": "default", "tls_certificate": data})

    return run


def test_a_certificate_with_its_key(certificate, issued):
    _, chain, key = issued
    assert certificate(chain, key).value == Secret("default", TlsCertificate(chain, key))


def test_roots(decode, root_pem):
    context = {"trusted_ca": {"inline_string": root_pem.decode()}}
    assert decode("SDS", {"name": "ROOTCA", "validation_context": context}).value == Secret(
        "ROOTCA", TrustedCa(root_pem)
    )


def test_a_key_of_another_certificate_is_refused(certificate, issued):
    other = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert("x").private_key_pem.bytes()
    decoded = certificate(issued[1], other)
    assert decoded.errors == ("tls_certificate.private_key: is not the key of the certificate",)
    assert decoded.name == "default"


def test_no_error_quotes_a_key(certificate, issued):
    _, chain, key = issued
    lines = key.decode().splitlines()[1:-1]
    encrypted = load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    # A key where a certificate should be, a damaged one and an encrypted one.
    for decoded in (certificate(key, key), certificate(chain, key[:-60]), certificate(chain, encrypted)):
        assert decoded.value is None
        assert not any(line in repr(decoded) for line in lines)


def test_secrets_are_not_shown(certificate, issued):
    _, chain, key = issued
    shown = repr(certificate(chain, key))
    assert "default" in shown
    assert "BEGIN" not in shown


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        ({"name": "a"}, ["type"]),
        ({"tls_certificate": {}}, ["name", "tls_certificate.certificate_chain", "tls_certificate.private_key"]),
        ({"name": "a", "generic_secret": {}}, ["generic_secret"]),
        ({"name": "a", "session_ticket_keys": {"keys": [{"inline_string": "x"}]}}, ["session_ticket_keys"]),
        ({"name": "a", "validation_context": {}}, ["validation_context.trusted_ca"]),
        ({"name": "a", "validation_context": {"trusted_ca": {}}}, ["validation_context.trusted_ca.specifier"]),
        ({"name": "a", "validation_context": {"trusted_ca": {"inline_string": ""}}}, ["validation_context.trusted_ca"]),
        (
            {"name": "a", "validation_context": {"trusted_ca": {"environment_variable": "X"}}},
            ["validation_context.trusted_ca.environment_variable"],
        ),
        (
            {
                "name": "a",
                "tls_certificate": {"certificate_chain": {"inline_string": ""}, "private_key": {"inline_string": ""}},
            },
            ["tls_certificate.certificate_chain", "tls_certificate.private_key"],
        ),
    ],
)
def test_secrets_that_cannot_be_used(decode, data, paths):
    decoded = decode("SDS", data)
    assert decoded.value is None
    assert set(paths) <= {error.partition(": ")[0] for error in decoded.errors}


@pytest.mark.parametrize("name", ["password", "pkcs12"])
def test_other_forms_of_keys_are_refused(certificate, issued, name):
    decoded = certificate(issued[1], issued[2], **{name: {"inline_string": "x"}})
    assert decoded.errors == (f"tls_certificate.{name}: is not supported",)


def test_conditions_inside_a_secret_go_with_its_roots(decode, root_pem):
    context = {
        "trusted_ca": {"inline_string": root_pem.decode()},
        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": "a"}}],
        "verify_certificate_hash": ["ab" * 32],
        "max_verify_depth": 1,
    }
    decoded = decode("SDS", {"name": "ROOTCA", "validation_context": context})
    assert decoded.errors == ()
    matcher = SanMatcher(SanType.URI, StringMatcher(StringKind.EXACT, "a"))
    checks = PeerChecks(certificate_hashes=(b"\xab" * 32,), max_depth=1)
    assert decoded.value == Secret("ROOTCA", TrustedCa(root_pem, sans=(matcher,), checks=checks))


def test_pins_may_stand_for_roots(decode):
    decoded = decode("SDS", {"name": "ROOTCA", "validation_context": {"verify_certificate_hash": ["ab" * 32]}})
    assert decoded.value.value == TrustedCa(b"", checks=PeerChecks(certificate_hashes=(b"\xab" * 32,)))


@pytest.mark.parametrize(
    ("condition", "path"),
    [
        ({"crl": {"inline_string": "x"}}, "crl"),
        ({"allow_expired_certificate": True}, "allow_expired_certificate"),
        ({"ca_certificate_provider_instance": {"instance_name": "p"}}, "ca_certificate_provider_instance"),
    ],
)
def test_conditions_inside_a_secret_that_cannot_be_honoured(decode, root_pem, condition, path):
    context = {"trusted_ca": {"inline_string": root_pem.decode()}, **condition}
    decoded = decode("SDS", {"name": "ROOTCA", "validation_context": context})
    assert f"validation_context.{path}" in {error.partition(": ")[0] for error in decoded.errors}
