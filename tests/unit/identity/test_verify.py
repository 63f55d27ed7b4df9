"""Why a peer is refused, in words that say what to mend."""

from peers.authority import Authority

from meshlib.identity.verify import compile_peer_rule, leaf_facts
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import ClientTls, SanMatcher, SanType, SecretRef, TrustedCa

ID = "spiffe://a.example/ns/default/sa/a"
ROOT = Authority("root")


def refusal(*ids: str) -> str:
    trust = TrustedCa(ROOT.pem)
    expected = SanMatcher(SanType.URI, StringMatcher(StringKind.EXACT, ID))
    tls = ClientTls(None, SecretRef(inline=trust), sans=(expected,))
    return compile_peer_rule(tls, trust).refusal(leaf_facts(ROOT.issue(*ids).der), None, 0.0)


def test_the_expected_id_is_accepted():
    assert "" == refusal(ID)


def test_another_id_is_named_beside_the_expected_one():
    other = "spiffe://b.example/ns/default/sa/a"
    assert f'the peer is {other}, expected URI exact "{ID}"' == refusal(other)


def test_the_expected_id_beside_another_says_why_it_does_not_count():
    """It read: the peer is A, B, expected A."""
    text = refusal(ID, "spiffe://a.example/x")
    assert f'expected URI exact "{ID}": a SPIFFE certificate has exactly one URI name, this one has 2' in text
