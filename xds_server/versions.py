"""Versions are hashes of content, so equal content has an equal version in every replica and after every restart."""

import hashlib
from collections.abc import Iterable

# 128 bits: two different contents with one version would leave a client on the old one, silently.
_DIGEST_BYTES = 16


def resource_version(serialised: bytes) -> str:
    """Return the version of one resource, lower-case hex.

    Args:
        serialised: Its deterministic serialisation, type URL included.
    """
    return hashlib.blake2b(serialised, digest_size=_DIGEST_BYTES).hexdigest()


def type_version(resources: Iterable[tuple[str, str]]) -> str:
    """Return the version of a set of resources of one type.

    Args:
        resources: Pairs of name and version, in any order. The empty set has a version too, so that a client can
            acknowledge "nothing".
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name, version in sorted(resources):
        encoded = name.encode()
        # The length keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(encoded).to_bytes(4, "big") + encoded + version.encode())
    return digest.hexdigest()
