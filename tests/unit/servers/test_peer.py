"""Names in a caller's certificate."""

from dataclasses import replace

from meshlib.identity.san import PeerNames
from meshlib.servers.peer import ANONYMOUS, Peer, peer_of_pem


def test_one_spiffe_uri_is_the_identity(gateway_pem: str) -> None:
    peer = peer_of_pem(gateway_pem)
    assert "spiffe://cluster.local/ns/default/sa/gateway" == peer.spiffe_id
    assert (peer.spiffe_id,) == peer.principals
    assert peer.is_authenticated


def test_two_spiffe_uris_are_no_identity(two_ids_pem: str) -> None:
    peer = peer_of_pem(two_ids_pem)
    assert "" == peer.spiffe_id
    assert () == peer.principals
    assert peer.is_authenticated


def test_broken_uris_are_not_made_up_for_by_other_names() -> None:
    names = PeerNames(uris=("spiffe://a/x", "spiffe://a/y"), dns=("gateway",), subject="CN=gateway")
    assert () == Peer("", names, True).principals
    assert ("gateway",) == Peer("", replace(names, uris=()), True).principals


def test_nobody_has_no_names() -> None:
    assert ("", (), False) == (ANONYMOUS.spiffe_id, ANONYMOUS.principals, ANONYMOUS.is_authenticated)
