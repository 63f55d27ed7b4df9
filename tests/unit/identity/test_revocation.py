"""Lists of some issuers: what they revoke is refused, and nobody else is."""

import datetime
import time

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_crl
from peers.authority import Authority, Leaf

from meshlib.identity.revocation import RevocationLists, check_lists
from meshlib.identity.verify import compile_peer_rule, leaf_facts
from meshlib.model.secret import ClientTls, PeerChecks, SecretRef, TrustedCa

ID = "spiffe://a.example/ns/default/sa/a"
ROOT = Authority("root")
BETWEEN = Authority("between", parent=ROOT)
GOOD, BAD = ROOT.issue(ID), ROOT.issue(ID)
FAR = BETWEEN.issue(ID)
NOW = time.time()


def der(pem: bytes) -> bytes:
    return load_pem_x509_crl(pem).public_bytes(Encoding.DER)


def chain(leaf: Leaf, *issuers: Authority) -> tuple[bytes, ...]:
    return (leaf.der, *(one.certificate.public_bytes(Encoding.DER) for one in issuers))


def test_what_is_revoked_is_refused_and_what_is_not_is_not() -> None:
    lists = RevocationLists([der(ROOT.revoke(BAD))])
    assert f"{BAD.certificate.serial_number:x}" in lists.refusal(chain(BAD, ROOT), NOW)
    assert "" == lists.refusal(chain(GOOD, ROOT), NOW)


def test_an_issuer_without_a_list_is_not_asked_for_one() -> None:
    lists = RevocationLists([der(Authority("other").revoke())])
    assert "" == lists.refusal(chain(GOOD, ROOT), NOW)
    assert "" == RevocationLists([der(ROOT.revoke(BAD))]).refusal(chain(FAR, BETWEEN, ROOT), NOW)


def test_an_issuer_in_the_middle_may_be_revoked() -> None:
    lists = RevocationLists([der(ROOT.revoke(BETWEEN))])
    assert "revoked" in lists.refusal(chain(FAR, BETWEEN, ROOT), NOW)


def test_a_list_by_somebody_else_of_the_same_name_does_not_count() -> None:
    """Neither against good ones, nor in place of the right one."""
    impostor = Authority("root")
    assert "" == RevocationLists([der(impostor.revoke(GOOD))]).refusal(chain(GOOD, ROOT), NOW)
    both = RevocationLists([der(impostor.revoke()), der(ROOT.revoke(BAD))])
    assert "revoked" in both.refusal(chain(BAD, ROOT), NOW)


def test_a_list_that_is_out_of_date_lets_nobody_of_its_issuer_in() -> None:
    now = time.time()  # not that of the start of the tests, which may be long ago
    lists = RevocationLists([der(ROOT.revoke(ends=datetime.timedelta(minutes=5)))])
    assert "" == lists.refusal(chain(GOOD, ROOT), now)
    assert "out of date" in lists.refusal(chain(GOOD, ROOT), now + 600)


def test_lists_are_read_before_they_are_kept() -> None:
    one, other = der(ROOT.revoke(BAD)), der(BETWEEN.revoke())
    assert check_lists([one, other, one]) == check_lists([other, one])
    with pytest.raises(ValueError, match="cannot be read"):
        check_lists([b"junk"])


def test_the_rule_of_a_peer_asks_them() -> None:
    trust = TrustedCa(ROOT.pem, checks=PeerChecks(issuer_crls=(der(ROOT.revoke(BAD)),)))
    rule = compile_peer_rule(ClientTls(None, SecretRef(inline=trust)), trust)
    for leaf, is_refused in ((GOOD, False), (BAD, True)):
        facts = leaf_facts(leaf.der)
        assert rule.needs_chain(facts)
        assert is_refused is bool(rule.refusal(facts, lambda leaf=leaf: chain(leaf, ROOT), NOW))  # type: ignore[misc]
