"""Certificate providers: files as secrets, pairs that match, errors that name the file and show no key."""

from pathlib import Path

import pytest
import trustme

from meshlib.errors import ConfigError
from meshlib.model.secret import TlsCertificate, TrustedCa
from meshlib.runtime.certificate_files import read_provider
from meshlib.runtime.certificates import describe
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


def test_bundle_maps_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="spiffe_bundle_map_file is not supported"):
        read_provider("default", FileWatcherConfig(spiffe_bundle_map_file="/x"), {})


def test_a_certificate_says_how_long_it_is_good(authority: trustme.CA) -> None:
    leaf = authority.issue_cert("spiffe.test")
    facts = describe(leaf.cert_chain_pems[0].bytes())
    assert facts is not None
    assert facts.starts_at < facts.expires_at
    assert facts.spiffe_id == ""
    assert describe(b"nothing") is None
