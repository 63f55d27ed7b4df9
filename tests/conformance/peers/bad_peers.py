"""Peers that must be refused before they are sent anything, each with the TLS settings that refuse it."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509

from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import PeerChecks, SanMatcher, SanType, TrustedCa
from peers.authority import Authority, Leaf

CHECKOUT = "spiffe://a.example/ns/default/sa/checkout"
ORDERS = "spiffe://a.example/ns/default/sa/orders"
ROOT, FOREIGN = Authority("root"), Authority("root")
MIDDLE = Authority("middle", parent=ROOT)
HALF_AN_HOUR = datetime.timedelta(minutes=30)
GOOD = ROOT.issue(CHECKOUT)
OURS = ROOT.issue(ORDERS)
_REVOKED = ROOT.issue(CHECKOUT)
_FEDERATION = TrustedCa(b"", bundles=(ROOT.bundle("a.example"), FOREIGN.bundle("b.example")))
_CONSTRAINED = Authority("constrained", parent=ROOT, permitted=[x509.UniformResourceIdentifier("b.example")])
_SHORT = Authority("below", parent=Authority("short", parent=ROOT, path_length=0))


def named(uri: str = CHECKOUT) -> tuple[SanMatcher, ...]:
    return (SanMatcher(SanType.URI, StringMatcher(StringKind.EXACT, uri)),)


@dataclass(frozen=True, slots=True)
class BadPeer:
    """Attributes:
    fields: More of ClientTls or ServerTls than the expected name.
    only_ssl: grpcio's server cannot be told to refuse it in the handshake.
    """

    leaf: Leaf
    trust: TrustedCa = ROOT.trusted
    fields: Mapping[str, Any] = field(default_factory=dict)
    only_ssl: bool = False


BAD_PEERS = {
    "expired": BadPeer(ROOT.issue(CHECKOUT, ends=-HALF_AN_HOUR)),
    "not yet valid": BadPeer(ROOT.issue(CHECKOUT, starts=HALF_AN_HOUR)),
    "wrong name": BadPeer(ROOT.issue(CHECKOUT + "2")),
    "wrong trust domain": BadPeer(ROOT.issue(CHECKOUT.replace("a.example", "b.example"))),
    "trust domain of another CA": BadPeer(FOREIGN.issue(CHECKOUT), _FEDERATION, only_ssl=True),
    "other CA": BadPeer(FOREIGN.issue(CHECKOUT)),
    "revoked": BadPeer(_REVOKED, fields={"checks": PeerChecks(crl_pem=ROOT.revoke(_REVOKED))}, only_ssl=True),
    "wrong pin": BadPeer(ROOT.issue(CHECKOUT), fields={"checks": PeerChecks((GOOD.certificate_hash,))}, only_ssl=True),
    "wrong key pin": BadPeer(ROOT.issue(CHECKOUT), fields={"checks": PeerChecks((), (GOOD.spki_hash,))}, only_ssl=True),
    "name not permitted": BadPeer(_CONSTRAINED.issue(CHECKOUT)),
    "chain longer than its CA allows": BadPeer(_SHORT.issue(CHECKOUT)),
    "chain longer than we allow": BadPeer(
        MIDDLE.issue(CHECKOUT), fields={"checks": PeerChecks(max_depth=1)}, only_ssl=True
    ),
}
