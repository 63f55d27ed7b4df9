"""SPIFFE trust bundles: which roots speak for which trust domain.

A bundle map is a JSON object `{"trust_domains": {"example.org": {"keys": [{"use": "x509-svid", "kty": "EC", "x5c": [...]}]}}}`:
each domain's value is a SPIFFE bundle, a JWK set in which each X.509 key carries one certificate. Keys with another use
(`jwt-svid`) have nothing to do with TLS and are skipped.

Source: SPIFFE_Trust_Domain_and_Bundle.md, section 4; gRFC A87.
"""

import base64
import binascii
import json
from collections.abc import Iterable
from typing import Any, Final

from meshlib.certificates_library import serialization, x509
from meshlib.model.secret import TrustBundle
from meshlib.model.trust_domain import parse_trust_domain

__all__ = ["MAX_CERTIFICATES", "bundle_of", "parse_bundle_map"]

MAX_CERTIFICATES: Final = 10_000
"""In one map: a federation of hundreds of domains with a few roots each."""
_X509_USE: Final = "x509-svid"
_KEY_TYPES: Final = ("RSA", "EC")


def parse_bundle_map(text: bytes | str) -> tuple[TrustBundle, ...]:
    """Read a bundle map.

    Returns:
        The domains by name. One without any X.509 key is left out: nobody can be verified for it.

    Raises:
        ValueError: Not a bundle map; the text says where it is wrong.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from error
    domains = data.get("trust_domains") if isinstance(data, dict) else None
    if not isinstance(domains, dict):
        raise ValueError("trust_domains: an object is required")
    count = 0
    found: list[TrustBundle] = []
    for name in sorted(domains):
        place = f"trust_domains[{name!r}]"
        try:
            parse_trust_domain(name)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        bundle = domains[name]
        certificates = _certificates(bundle, place)
        count += len(certificates)
        if count > MAX_CERTIFICATES:
            raise ValueError(f"trust_domains: more than {MAX_CERTIFICATES} certificates")
        if certificates:
            found.append(bundle_of(name, certificates))
    return tuple(found)


def bundle_of(trust_domain: str, certificates: "Iterable[x509.Certificate]") -> TrustBundle:
    """Return the bundle of a domain."""
    return TrustBundle(trust_domain, b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is given twice: which of two bundles counts must not depend on who reads them."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _certificates(bundle: object, place: str) -> "list[x509.Certificate]":
    if not isinstance(bundle, dict):
        raise ValueError(f"{place}: an object is required")
    keys = bundle.get("keys", [])
    if not isinstance(keys, list):
        raise ValueError(f"{place}.keys: a list is required")
    found = []
    for index, key in enumerate(keys):
        where = f"{place}.keys[{index}]"
        if not isinstance(key, dict):
            raise ValueError(f"{where}: an object is required")
        if key.get("use") != _X509_USE:
            continue
        if key.get("kty") not in _KEY_TYPES:
            raise ValueError(f"{where}.kty: must be RSA or EC")
        chain = key.get("x5c")
        if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
            raise ValueError(f"{where}.x5c: must hold exactly one certificate")
        try:
            found.append(x509.load_der_x509_certificate(base64.b64decode(chain[0], validate=True)))
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"{where}.x5c[0]: not a certificate in base64 DER") from error
    return found
