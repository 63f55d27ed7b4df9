"""Revocation lists of some issuers: what they revoke is refused, and who has no list is not asked for one.

Where a validation context names lists, the TLS library looks at them, and a certificate whose issuer has no list is refused
(OpenSSL, Envoy). A SPIFFE Workload API sends the lists that its agent happens to have, of any trust domain; the same rule
would refuse everybody else. So these are looked at here, with the chain that was found: its issuers have signed them.

Source: SPIFFE_Workload_API.md, section 5.2.1 (`crl`); RFC 5280, section 6.3.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterable

from meshlib.certificates_library import exceptions, serialization, x509

__all__ = ["RevocationLists", "check_lists"]

MAX_ISSUERS = 64
"""Whose lists are kept with their signatures checked."""


class RevocationLists:
    """Lists in DER, compiled."""

    def __init__(self, lists: Iterable[bytes]) -> None:
        """
        Raises:
            ValueError: One cannot be read.
        """
        self._by_name: dict[x509.Name, list[x509.CertificateRevocationList]] = {}
        for der in lists:
            one = _read(der)
            self._by_name.setdefault(one.issuer, []).append(one)
        # By the certificate of the issuer. Written by several threads: what one overwrites was the same.
        self._signed: OrderedDict[bytes, tuple[x509.CertificateRevocationList, ...]] = OrderedDict()

    def refusal(self, chain: tuple[bytes, ...], now: float) -> str:
        """Return why a chain is refused, or the empty string.

        Args:
            chain: Verified, as DER, the leaf first.
            now: Seconds since the epoch.
        """
        for der, issuer_der in itertools.pairwise(chain):
            certificate = x509.load_der_x509_certificate(der)
            candidates = self._by_name.get(certificate.issuer)
            if not candidates:
                continue
            for one in self._of(issuer_der, candidates):
                number = certificate.serial_number
                if one.get_revoked_certificate_by_serial_number(number) is not None:
                    return f"certificate {number:x} in its chain has been revoked"
                if one.next_update_utc is not None and one.next_update_utc.timestamp() < now:
                    return "the revocation list of an issuer in its chain is out of date"
        return ""

    def _of(
        self, issuer_der: bytes, candidates: "list[x509.CertificateRevocationList]"
    ) -> "tuple[x509.CertificateRevocationList, ...]":
        """Return those that this issuer has signed: another may have its name."""
        found = self._signed.get(issuer_der)
        if found is None:
            key = x509.load_der_x509_certificate(issuer_der).public_key()
            found = tuple(one for one in candidates if _is_signed(one, key))
            self._signed[issuer_der] = found
            while len(self._signed) > MAX_ISSUERS:
                self._signed.popitem(last=False)
        return found


def _is_signed(one: "x509.CertificateRevocationList", key: object) -> bool:
    try:
        return one.is_signature_valid(key)  # type: ignore[arg-type]  # of a kind that cannot sign: TypeError
    except (TypeError, ValueError, exceptions.InvalidSignature):
        return False


def _read(der: bytes) -> "x509.CertificateRevocationList":
    try:
        return x509.load_der_x509_crl(der)
    except ValueError as error:
        raise ValueError(f"a revocation list cannot be read: {error}") from error


def check_lists(lists: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return lists in DER as they are kept.

    Raises:
        ValueError: One cannot be read.
    """
    return tuple(sorted({_read(der).public_bytes(serialization.Encoding.DER) for der in lists}))
