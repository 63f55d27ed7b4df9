"""Certificate providers: files as secrets, pairs that match, errors that name the file and show no key."""

from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from peers.authority import Authority, bundle_map

from meshlib.errors import ConfigError
from meshlib.model.secret import TlsCertificate, TrustedCa
from meshlib.runtime.certificate_files import read_provider
from meshlib.xds.bootstrap import FileWatcherConfig


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write(directory: Path, authority: trustme.CA, name: str = "spiffe.test") -> FileWatcherConfig:
    leaf = authority.issue_cert(name)
    leaf.private_key_pem.write_to_path(directory / "key.pem")
    (directory / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return FileWatcherConfig(str(directory / "cert.pem"), str(directory / "key.pem"), str(directory / "ca.pem"))


def test_files_become_secrets_and_stay_the_same_objects(tmp_path: Path, authority: trustme.CA) -> None:
    config = write(tmp_path, authority)
    found = read_provider("default", config, {})
    assert sorted(found) == ["provider:default:ca", "provider:default:certificate"]
    assert isinstance(found["provider:default:certificate"].value, TlsCertificate)
    assert found["provider:default:ca"].value == TrustedCa((tmp_path / "ca.pem").read_bytes())
    again = read_provider("default", config, found)
    assert all(again[name] is found[name] for name in found)


def test_a_pair_caught_half_way_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    config = write(tmp_path, authority)
    authority.issue_cert("other.test").private_key_pem.write_to_path(tmp_path / "key.pem")
    with pytest.raises(ConfigError, match=r"provider 'default': .*cert\.pem.*the key is not the certificate's"):
        read_provider("default", config, {})


def test_a_broken_key_is_refused_and_not_shown(tmp_path: Path, authority: trustme.CA) -> None:
    config = write(tmp_path, authority)
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConfigError, match="not a PEM certificate and an unencrypted PEM key") as caught:
        read_provider("default", config, {})
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_missing_file_and_broken_roots_are_named(tmp_path: Path, authority: trustme.CA) -> None:
    config = write(tmp_path, authority)
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match=r"ca\.pem holds no PEM certificates"):
        read_provider("default", config, {})
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"ca\.pem: No such file"):
        read_provider("default", config, {})


def test_a_bundle_map_counts_instead_of_the_roots(tmp_path: Path, authority: trustme.CA) -> None:
    roots = {name: Authority(name) for name in ("a.example", "b.example")}
    path = tmp_path / "bundles.json"
    path.write_text(bundle_map({name: [one] for name, one in roots.items()}))
    config = replace(write(tmp_path, authority), spiffe_bundle_map_file=str(path))
    found = read_provider("default", config, {})["provider:default:ca"].value
    assert TrustedCa(b"", bundles=tuple(one.bundle(name) for name, one in roots.items())) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "trust_domains"),
        ('{"trust_domains": {"A": {}}}', "'A'"),
        ('{"trust_domains": {"a": {}, "a": {}}}', "twice"),
        ('{"trust_domains": {"a": []}}', "'a'"),
        ('{"trust_domains": {"a": {"keys": 1}}}', "keys"),
        ('{"trust_domains": {"a": {"keys": [1]}}}', r"keys\[0\]"),
        ('{"trust_domains": {"a": {"keys": [{"use": "x509-svid", "kty": "OKP"}]}}}', "kty"),
        ('{"trust_domains": {"a": {"keys": [{"use": "x509-svid", "kty": "EC"}]}}}', "x5c"),
        ('{"trust_domains": {"a": {"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["", ""]}]}}}', "exactly one"),
        ('{"trust_domains": {"a": {"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["AAAA"]}]}}}', "base64 DER"),
    ],
)
def test_bundle_maps_that_cannot_be_used_say_where(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "bundles.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)bundles.json.*{reason}"):
        read_provider("default", FileWatcherConfig(spiffe_bundle_map_file=str(path)), {})
