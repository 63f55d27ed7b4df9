"""Certificate providers of the bootstrap (`file_watcher`, A29): files as secrets, read again from time to time."""

from collections.abc import Mapping
from pathlib import Path

from meshlib.certificates_library import serialization, x509
from meshlib.errors import ConfigError
from meshlib.model.secret import Secret, TlsCertificate, TrustedCa
from meshlib.xds.bootstrap import FileWatcherConfig
from meshlib.xds.follow_resources import provider_secret_names
from meshlib.xds.spiffe_bundles import parse_bundle_map

__all__ = ["check_pair", "read_provider"]


def read_provider(instance: str, config: FileWatcherConfig, previous: Mapping[str, Secret]) -> Mapping[str, Secret]:
    """Read the files of one provider instance.

    Args:
        instance: Names the secrets, see `provider_secret_names`.
        config: Where the files are.
        previous: Of the same instance; a secret whose files did not change stays the same object.

    Raises:
        ConfigError: A file cannot be read or used; whoever asks keeps what there was.
    """
    certificate_name, roots_name = provider_secret_names(instance)
    found: dict[str, Secret] = {}
    if config.certificate_file:
        chain = _read(instance, config.certificate_file)
        pair = TlsCertificate(chain, _read(instance, config.private_key_file))
        place = f"certificate provider {instance!r}: {config.certificate_file}, {config.private_key_file}"
        check_pair(place, pair.chain_pem, pair.key_pem)
        found[certificate_name] = Secret(certificate_name, pair)
    if config.spiffe_bundle_map_file:
        # "If set, takes precedence over ca_certificate_file" (A87).
        try:
            bundles = parse_bundle_map(_read(instance, config.spiffe_bundle_map_file))
        except ValueError as error:
            raise ConfigError(
                f"certificate provider {instance!r}: {config.spiffe_bundle_map_file} is not a SPIFFE bundle map: {error}"
            ) from error
        found[roots_name] = Secret(roots_name, TrustedCa(b"", bundles=bundles))
    elif config.ca_certificate_file:
        roots = _read(instance, config.ca_certificate_file)
        try:
            x509.load_pem_x509_certificates(roots)
        except ValueError as error:
            raise ConfigError(
                f"certificate provider {instance!r}: {config.ca_certificate_file} holds no PEM certificates: {error}"
            ) from error
        found[roots_name] = Secret(roots_name, TrustedCa(roots))
    return {name: previous[name] if previous.get(name) == secret else secret for name, secret in found.items()}


def _read(instance: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"certificate provider {instance!r}: {path}: {error.strerror or error}") from error


def check_pair(place: str, chain_pem: bytes, key_pem: bytes) -> None:
    """Refuse a certificate and a key that do not belong together: one of the two files was caught half-way.

    Raises:
        ConfigError: Begins with `place`.
    """
    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        # The library's text may quote the input, and that is a key.
        raise ConfigError(f"{place}: not a PEM certificate and an unencrypted PEM key") from None
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise ConfigError(f"{place}: the key is not the certificate's")
