"""Validation contexts: whose certificates are good, and what a peer's has to fulfil beside that.

They stand in the TLS contexts of clusters and listeners and in secrets alike. What restricts the peers that are
accepted is honoured or the resource is refused.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final

from meshlib.certificates_library import x509
from meshlib.model.secret import NO_CHECKS, PeerChecks, SanMatcher, SanType, TrustBundle, TrustedCa
from meshlib.model.trust_domain import parse_trust_domain
from meshlib.xds.decode_common import any_type, cover, inline_data, join, unpack, wrapped
from meshlib.xds.decode_matcher import string_matcher
from meshlib.xds.problems import Problems
from meshlib.xds.spiffe_bundles import parse_bundle_map

__all__ = ["NO_VALIDATION", "Validation", "validation_context"]

_USED: Final = frozenset(
    {
        "trusted_ca",
        "ca_certificate_provider_instance",
        "system_root_certs",
        "verify_certificate_spki",
        "verify_certificate_hash",
        "match_typed_subject_alt_names",
        "match_subject_alt_names",
        "crl",
        "only_verify_leaf_cert_crl",
        "max_verify_depth",
        "custom_validator_config",
    }
)
_HARMLESS: Final = frozenset({"watched_directory"})
_SPIFFE: Final = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
_SAN_TYPES: Final = {1: SanType.EMAIL, 2: SanType.DNS, 3: SanType.URI, 4: SanType.IP}
_CRL: Final = b"-----BEGIN X509 CRL-----"
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation context.

    Attributes:
        trust: None: it has none of its own.
        provider: Instance of the bootstrap that has the roots, or empty.
    """

    trust: TrustedCa | None = None
    provider: str = ""
    sans: tuple[SanMatcher, ...] = ()
    checks: PeerChecks = NO_CHECKS

    @property
    def has_pins(self) -> bool:
        """The leaf or its key is named."""
        return bool(self.checks.certificate_hashes or self.checks.spki_hashes)


NO_VALIDATION: Final = Validation()


def validation_context(message: Any, path: str, problems: Problems) -> Validation:
    """Decode a CertificateValidationContext."""
    cover(message, path, problems, used=_USED, harmless=_HARMLESS)
    trust: TrustedCa | None = None
    provider = ""
    if message.HasField("trusted_ca"):
        trust = _trusted_ca(message.trusted_ca, join(path, "trusted_ca"), problems)
    if message.HasField("ca_certificate_provider_instance"):
        place = join(path, "ca_certificate_provider_instance")
        if trust is not None:
            problems.error(place, "cannot be given together with trusted_ca")
        provider = provider_name(message.ca_certificate_provider_instance, place, problems)
    sans = _sans(message, path, problems)
    if message.HasField("system_root_certs"):
        trust = _system(trust, provider, bool(sans), join(path, "system_root_certs"), problems)
    checks = PeerChecks(
        _hashes(message, path, problems),
        _spki(message, path, problems),
        _crl(message, path, problems),
        message.only_verify_leaf_cert_crl,
        wrapped(message, "max_verify_depth"),
    )
    if message.HasField("custom_validator_config"):
        place = join(path, "custom_validator_config")
        if trust is not None or provider:
            problems.unused(place, "its trust domains replace the other roots")
        trust = _spiffe(message.custom_validator_config, place, problems)
        provider = ""
        if any(one.san_type not in (SanType.URI, SanType.ANY) for one in sans):
            # Envoy passes over them, and takes any peer when there are no others.
            problems.error(
                join(path, "match_typed_subject_alt_names"),
                "only URI is supported together with custom_validator_config",
            )
        if checks.crl_pem:
            problems.error(join(path, "crl"), "is not supported together with custom_validator_config")
        elif checks.crl_leaf_only:
            problems.unused(join(path, "only_verify_leaf_cert_crl"), "there are no revocation lists")
    return Validation(trust, provider, sans, checks)


def provider_name(message: Any, path: str, problems: Problems) -> str:
    """Return the name of a provider instance. It has to be in the bootstrap; that is checked where that is known."""
    if not message.instance_name:
        problems.error(join(path, "instance_name"), "must not be empty")
    if message.certificate_name:
        problems.unused(join(path, "certificate_name"), "an instance has one certificate and its roots")
    return str(message.instance_name)


def _trusted_ca(source: Any, path: str, problems: Problems) -> TrustedCa:
    return TrustedCa(_bundle(source, path, problems))


def _bundle(source: Any, path: str, problems: Problems) -> bytes:
    bundle = inline_data(source, path, problems)
    if bundle is None:
        return b""
    try:
        x509.load_pem_x509_certificates(bundle)
    except ValueError:
        problems.error(path, "is not a PEM bundle of certificates")
    _check_lists(bundle, path, problems)
    return bundle


def _check_lists(pem: bytes, path: str, problems: Problems) -> int:
    """Check the revocation lists in a file; return how many there are."""
    count = 0
    for part in pem.split(_CRL)[1:]:
        try:
            x509.load_pem_x509_crl(_CRL + part)
        except ValueError:
            problems.error(path, "has a revocation list that cannot be read")
        count += 1
    return count


def _system(trust: TrustedCa | None, provider: str, has_names: bool, path: str, problems: Problems) -> TrustedCa | None:
    if trust is not None or provider:
        problems.unused(path, "the other roots count")
        return trust
    if not has_names:
        problems.unused(path, "is honoured, but no names are demanded: any publicly trusted server would be accepted")
    return TrustedCa(b"", is_system=True)


def _hashes(message: Any, path: str, problems: Problems) -> tuple[bytes, ...]:
    found = []
    for index, text in enumerate(message.verify_certificate_hash):
        plain = text.replace(":", "") if len(text) == 95 else text
        try:
            digest = bytes.fromhex(plain) if plain.isalnum() else b""
        except ValueError:
            digest = b""
        if len(digest) != _DIGEST_BYTES:
            problems.error(f"{join(path, 'verify_certificate_hash')}[{index}]", "is not a SHA-256 in hex")
        found.append(digest)
    return tuple(found)


def _spki(message: Any, path: str, problems: Problems) -> tuple[bytes, ...]:
    found = []
    for index, text in enumerate(message.verify_certificate_spki):
        try:
            digest = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            digest = b""
        if len(digest) != _DIGEST_BYTES:
            problems.error(f"{join(path, 'verify_certificate_spki')}[{index}]", "is not a SHA-256 in base64")
        found.append(digest)
    return tuple(found)


def _crl(message: Any, path: str, problems: Problems) -> bytes:
    if not message.HasField("crl"):
        return b""
    place = join(path, "crl")
    lists = inline_data(message.crl, place, problems) or b""
    if not _check_lists(lists, place, problems):
        problems.error(place, "is not a PEM certificate revocation list")
    return lists


def _spiffe(extension: Any, path: str, problems: Problems) -> TrustedCa:
    place = join(path, "typed_config")
    none = TrustedCa(b"", bundles=(), needs_key_usage=True)
    kind = any_type(extension.typed_config)
    if kind != _SPIFFE:
        problems.error(path, f"{kind or extension.name or 'an empty validator'} is not supported (only {_SPIFFE})")
        return none
    config = unpack(extension.typed_config, place, problems)
    if config is None:
        return none
    cover(config, place, problems, used=frozenset({"trust_domains", "trust_bundles"}), harmless=frozenset())
    found: dict[str, TrustBundle] = {}
    if config.HasField("trust_bundles"):
        where = join(place, "trust_bundles")
        if config.trust_domains:
            problems.unused(join(place, "trust_domains"), "trust_bundles replaces them")
        data = inline_data(config.trust_bundles, where, problems)
        if data is not None:
            try:
                found = {one.trust_domain: one for one in parse_bundle_map(data)}
            except ValueError as error:
                problems.error(where, f"is not a SPIFFE bundle map: {error}")
        return TrustedCa(b"", bundles=tuple(found.values()), needs_key_usage=True)
    for index, item in enumerate(config.trust_domains):
        where = f"{join(place, 'trust_domains')}[{index}]"
        try:
            parse_trust_domain(item.name)
        except ValueError as error:
            problems.error(join(where, "name"), str(error))
        if item.name in found:
            problems.error(join(where, "name"), "the trust domain is given twice")
        bundle = _bundle(item.trust_bundle, join(where, "trust_bundle"), problems)
        if _CRL in bundle:
            problems.error(join(where, "trust_bundle"), "revocation lists are not supported here")
        found[item.name] = TrustBundle(item.name, bundle)
    if not found:
        problems.error(place, "one of trust_domains, trust_bundles is required")
    return TrustedCa(b"", bundles=tuple(found[name] for name in sorted(found)), needs_key_usage=True)


def _sans(message: Any, path: str, problems: Problems) -> tuple[SanMatcher, ...]:
    result = []
    for index, item in enumerate(message.match_typed_subject_alt_names):
        place = f"{join(path, 'match_typed_subject_alt_names')}[{index}]"
        matcher = string_matcher(item.matcher, join(place, "matcher"), problems)
        san_type = _SAN_TYPES.get(item.san_type)
        if san_type is None:
            problems.error(join(place, "san_type"), "is not supported (only EMAIL, DNS, URI and IP_ADDRESS)")
            continue
        if item.oid:
            problems.unused(join(place, "oid"), "is only for OTHER_NAME")
        result.append(SanMatcher(san_type, matcher))
    if result:
        # The typed form replaces the deprecated one; with both Envoy takes the typed.
        if message.match_subject_alt_names:
            problems.unused(join(path, "match_subject_alt_names"))
        return tuple(result)
    for index, item in enumerate(message.match_subject_alt_names):
        place = f"{join(path, 'match_subject_alt_names')}[{index}]"
        result.append(SanMatcher(SanType.ANY, string_matcher(item, place, problems)))
    return tuple(result)
