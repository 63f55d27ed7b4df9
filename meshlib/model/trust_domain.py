"""Names of SPIFFE trust domains. Source: SPIFFE-ID.md, section 2.1."""

from typing import Final

__all__ = ["MAX_TRUST_DOMAIN", "parse_trust_domain"]

MAX_TRUST_DOMAIN: Final = 255
_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")


def parse_trust_domain(name: str) -> str:
    """Return the name of a trust domain as it is.

    Raises:
        ValueError: Not one; the text says why.
    """
    if not name:
        raise ValueError("the trust domain is empty")
    if len(name) > MAX_TRUST_DOMAIN:
        raise ValueError(f"the trust domain is longer than {MAX_TRUST_DOMAIN} bytes")
    if not _CHARACTERS.issuperset(name):
        raise ValueError("a trust domain has only a-z, 0-9, '.', '-' and '_'")
    return name
