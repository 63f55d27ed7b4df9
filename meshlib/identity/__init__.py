"""Decides who a peer is and what it may do: SPIFFE ids, names in certificates, authorization rules."""

from meshlib.identity.authorization import Authorizer, AuthzRequest, AuthzResult, ShadowResult, compile_rbac
from meshlib.identity.certificates import CertificateInfo, check_certificate, is_expired, key_matches, parse_chain
from meshlib.identity.san import PeerNames, compile_sans, match_san
from meshlib.identity.spiffe import SpiffeId, parse_spiffe_id, spiffe_id_of

__all__ = [
    "Authorizer",
    "AuthzRequest",
    "AuthzResult",
    "CertificateInfo",
    "PeerNames",
    "ShadowResult",
    "SpiffeId",
    "check_certificate",
    "compile_rbac",
    "compile_sans",
    "is_expired",
    "key_matches",
    "match_san",
    "parse_chain",
    "parse_spiffe_id",
    "spiffe_id_of",
]
