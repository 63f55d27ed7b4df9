"""Who is at the other end of an inbound connection, from its verified certificate."""

import ssl
from dataclasses import dataclass
from functools import lru_cache

from meshlib.certificates_library import x509
from meshlib.identity.certificates import names_of
from meshlib.identity.san import PeerNames
from meshlib.identity.spiffe import spiffe_id_of

__all__ = ["ANONYMOUS", "Peer", "peer_of_der", "peer_of_pem"]

NO_NAMES = PeerNames()


@dataclass(frozen=True, slots=True)
class Peer:
    """The caller; only ever made from a certificate that the TLS stack has verified.

    Attributes:
        spiffe_id: The certificate's one valid SPIFFE id; empty when there is none.
        certificate: The names in it.
        is_authenticated: A certificate was shown.
    """

    spiffe_id: str = ""
    certificate: PeerNames = NO_NAMES
    is_authenticated: bool = False

    @property
    def principals(self) -> tuple[str, ...]:
        """What a principal may be matched against: URI SANs, else DNS SANs, else the subject (gRFC A41).

        A certificate whose URIs break the rules for SPIFFE ids has none of them: it is not read as something else.
        """
        names = self.certificate
        if names.uris:
            return names.usable_uris
        return names.dns or ((names.subject,) if names.subject else ())


ANONYMOUS = Peer()


# A connection shows the same certificate for all its requests, and a rotated one is a new key: the bound only matters
# to a server with thousands of callers.
@lru_cache(maxsize=2048)
def peer_of_der(der: bytes) -> Peer:
    """Read the names in a verified certificate."""
    names = names_of(x509.load_der_x509_certificate(der))
    try:
        spiffe_id = str(spiffe_id_of(names.uris))
    except ValueError:
        spiffe_id = ""
    return Peer(spiffe_id, names, True)


@lru_cache(maxsize=2048)
def peer_of_pem(pem: str) -> Peer:
    """Read the names in a verified certificate."""
    return peer_of_der(ssl.PEM_cert_to_DER_cert(pem))
