"""SPIFFE ids: `spiffe://trust-domain/path`.

Read strictly: an id is a name in rules, so that two spellings of one id, or one spelling read as two, would be a hole.

Source: SPIFFE-ID.md, sections 2.1 to 2.3; X509-SVID.md, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from meshlib.model.trust_domain import parse_trust_domain

__all__ = ["MAX_LENGTH", "SCHEME", "SpiffeId", "parse_spiffe_id", "spiffe_id_of"]

SCHEME = "spiffe://"
MAX_LENGTH = 2048
_SEGMENT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """Attributes:
    path: With its leading slash; empty for the id of the trust domain itself.
    """

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"

    def _part(self, key: str, index: int) -> str:
        parts = self.path.split("/")
        return (
            parts[index + 1] if len(parts) == 5 and (parts[1], parts[3]) == ("ns", "sa") and parts[index] == key else ""
        )

    @property
    def namespace(self) -> str:
        """`NS` of `/ns/NS/sa/SA` (Istio's form), or empty."""
        return self._part("ns", 1)

    @property
    def service_account(self) -> str:
        """`SA` of `/ns/NS/sa/SA` (Istio's form), or empty."""
        return self._part("sa", 3)


def parse_spiffe_id(text: str) -> SpiffeId:
    """Read a SPIFFE id.

    Raises:
        ValueError: Not a SPIFFE id; the text says why.
    """

    def wrong(why: str) -> ValueError:
        return ValueError(f"not a SPIFFE id: {why}: {text[:200]!r}")

    if not text.startswith(SCHEME):
        raise wrong(f"it does not start with {SCHEME}")
    if len(text) > MAX_LENGTH:
        raise wrong(f"it is longer than {MAX_LENGTH} bytes")
    trust_domain, slash, rest = text[len(SCHEME) :].partition("/")
    try:
        parse_trust_domain(trust_domain)
    except ValueError as error:
        raise wrong(str(error)) from None
    if not slash:
        return SpiffeId(trust_domain, "")
    for segment in rest.split("/"):
        if not segment:
            raise wrong("a path segment is empty")
        if segment in (".", ".."):
            raise wrong("a path has no dot segments")
        if not _SEGMENT.issuperset(segment):
            raise wrong("a path has only letters, digits, '.', '-' and '_'")
    return SpiffeId(trust_domain, "/" + rest)


def spiffe_id_of(uri_sans: Sequence[str]) -> SpiffeId:
    """Return the SPIFFE id of a certificate.

    Args:
        uri_sans: All its URI subject alternative names.

    Raises:
        ValueError: There is not exactly one, or it is not the id of a workload (an id with a path).
    """
    if len(uri_sans) != 1:
        raise ValueError(f"a SPIFFE certificate has exactly one URI name, this one has {len(uri_sans)}")
    found = parse_spiffe_id(uri_sans[0])
    if not found.path:
        raise ValueError(f"{found} names a trust domain, not a workload")
    return found
