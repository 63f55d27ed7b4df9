"""Certificates: what is in them, and the files of the authority."""

import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from xds_server.ca import BACKDATE, CertificateAuthority
from xds_server.identity import Identity

NOW = datetime(2030, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
IDENTITY = Identity("shop", "checkout")


@pytest.fixture
def authority() -> CertificateAuthority:
    return CertificateAuthority.create("cluster.local", NOW)


def load(issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate_pem)


def test_root_is_a_self_signed_authority_on_p256(authority):
    root = x509.load_pem_x509_certificate(authority.root_pem)
    root.verify_directly_issued_by(root)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = root.extensions.get_extension_for_class(x509.KeyUsage)
    assert (True, 0, True) == (constraints.value.ca, constraints.value.path_length, constraints.critical)
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign
    assert isinstance(root.public_key().curve, ec.SECP256R1)


def test_svid_has_one_uri_and_no_subject(authority):
    leaf = load(authority.issue_svid(IDENTITY, timedelta(hours=1), NOW))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/shop/sa/checkout")] == list(names.value)
    assert names.critical
    assert 0 == len(list(leaf.subject))


def test_svid_serves_both_ends_and_signs_nothing(authority):
    leaf = load(authority.issue_svid(IDENTITY, timedelta(hours=1), NOW))
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} == set(extended)
    assert usage.critical and usage.value.digital_signature
    assert not usage.value.key_cert_sign and not usage.value.crl_sign
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_svid_is_signed_by_the_root_and_belongs_to_its_key(authority):
    issued = authority.issue_svid(IDENTITY, timedelta(hours=1), NOW)
    leaf = load(issued)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.root_pem))
    key = serialization.load_pem_private_key(issued.private_key_pem, None)
    assert leaf.public_key() == key.public_key()


def test_no_lifetime_is_too_long_and_none_outlives_the_root(authority):
    root = x509.load_pem_x509_certificate(authority.root_pem)
    for ttl in (timedelta(days=36500), timedelta.max):
        assert root.not_valid_after_utc == authority.issue_svid(IDENTITY, ttl, NOW).not_after


def test_lifetime_counts_from_now_rounded_up_and_starts_earlier_for_slow_clocks(authority):
    issued = authority.issue_svid(IDENTITY, timedelta(seconds=2), NOW)
    leaf = load(issued)
    assert NOW.replace(second=3, microsecond=0) == leaf.not_valid_after_utc == issued.not_after
    assert (NOW - BACKDATE).replace(microsecond=0) == leaf.not_valid_before_utc


def test_leaf_does_not_outlive_the_root(authority):
    root = x509.load_pem_x509_certificate(authority.root_pem)
    issued = authority.issue_svid(IDENTITY, timedelta(days=36_500), NOW)
    assert root.not_valid_after_utc == issued.not_after


def test_lifetime_must_be_positive(authority):
    with pytest.raises(ValueError, match="positive"):
        authority.issue_svid(IDENTITY, timedelta(0), NOW)


def test_server_certificate_names_hosts_and_addresses_once(authority):
    leaf = load(authority.issue_server(["localhost", "127.0.0.1", "::1", "localhost"], timedelta(days=1), NOW))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ["localhost"] == names.get_values_for_type(x509.DNSName)
    assert ["127.0.0.1", "::1"] == [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    extended = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [ExtendedKeyUsageOID.SERVER_AUTH] == list(extended)


def test_key_is_not_shown(authority):
    issued = authority.issue_svid(IDENTITY, timedelta(hours=1), NOW)
    assert "PRIVATE" not in repr(issued)


def test_files_are_made_once_and_only_the_certificate_is_public(tmp_path):
    first = CertificateAuthority.open(tmp_path, "cluster.local", NOW)
    second = CertificateAuthority.open(tmp_path, "cluster.local", NOW + timedelta(days=1))
    assert first.root_pem == second.root_pem == (tmp_path / "ca" / "root.pem").read_bytes()
    assert 0o644 == stat.S_IMODE((tmp_path / "ca" / "root.pem").stat().st_mode)
    assert 0o600 == stat.S_IMODE((tmp_path / "ca" / "root.key").stat().st_mode)


def test_certificate_without_its_key_is_not_replaced(tmp_path):
    CertificateAuthority.open(tmp_path, "cluster.local", NOW)
    (tmp_path / "ca" / "root.key").unlink()
    with pytest.raises(ValueError, match=r"root\.key is not"):
        CertificateAuthority.open(tmp_path, "cluster.local", NOW)


def test_files_of_another_authority_are_refused(tmp_path):
    CertificateAuthority.open(tmp_path / "one", "cluster.local", NOW)
    CertificateAuthority.open(tmp_path / "two", "cluster.local", NOW)
    (tmp_path / "one/ca/root.key").write_bytes((tmp_path / "two/ca/root.key").read_bytes())
    with pytest.raises(ValueError, match="do not belong together"):
        CertificateAuthority.open(tmp_path / "one", "cluster.local", NOW)


def test_another_trust_domain_is_refused(tmp_path):
    CertificateAuthority.open(tmp_path, "cluster.local", NOW)
    with pytest.raises(ValueError, match=r"'cluster\.local', not 'prod\.example'"):
        CertificateAuthority.open(tmp_path, "prod.example", NOW)


@pytest.mark.parametrize("name", ["root.key", "root.pem"])
def test_damaged_file_is_named(tmp_path, name):
    CertificateAuthority.open(tmp_path, "cluster.local", NOW)
    (tmp_path / "ca" / name).write_text("x")
    with pytest.raises(ValueError, match=name):
        CertificateAuthority.open(tmp_path, "cluster.local", NOW)
