"""Certificates that came from elsewhere, told as the SDS resources that they stand for. Without private keys."""

from typing import Any, Final

from meshlib.model.secret import Secret, TlsCertificate, TrustedCa
from meshlib.protos import message_class
from meshlib.xds.cache import Entry, ResourceState
from meshlib.xds.resources import SDS

__all__ = ["provided_entry"]

_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."
_SPIFFE: Final = f"{_TLS}SPIFFECertValidatorConfig"


def provided_entry(secret: Secret, since: float) -> Entry:
    """Return a secret of a certificate provider as an entry of the cache, for status pages.

    Args:
        since: Monotonic seconds at which it came.
    """
    body: bytes = _message(secret).SerializeToString()
    return Entry(SDS, secret.name, value=secret, body=body, state=ResourceState.ACKED, updated_at=since)


def _message(secret: Secret) -> Any:
    message = message_class(f"{_TLS}Secret")(name=secret.name)
    match secret.value:
        case TlsCertificate(chain_pem=chain):
            message.tls_certificate.certificate_chain.inline_bytes = chain
        case TrustedCa(bundles=None, ca_pem=pem):
            message.validation_context.trusted_ca.inline_bytes = pem
        case TrustedCa(bundles=bundles):
            validator = message_class(_SPIFFE)()
            for bundle in bundles or ():
                domain = validator.trust_domains.add(name=bundle.trust_domain)
                domain.trust_bundle.inline_bytes = bundle.ca_pem
            custom = message.validation_context.custom_validator_config
            custom.name = "envoy.tls.cert_validator.spiffe"
            custom.typed_config.type_url = f"type.googleapis.com/{_SPIFFE}"
            custom.typed_config.value = validator.SerializeToString()
    return message
