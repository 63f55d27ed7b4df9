"""Certificates in use: what they say, and when somebody is told that they should have been replaced."""

import datetime
import logging
from dataclasses import replace

import pytest
from peers.authority import Authority

from meshlib.events import CertificateExpiring, CertificateRotated
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.model.secret import ClientTls, Secret, SecretRef, TlsCertificate, TrustedCa
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.runtime.certificates import CertificateWatch, certificates_in_use, describe

ORDERS = "spiffe://a.example/ns/default/sa/orders"
ROOT = Authority()
HOUR = datetime.timedelta(hours=1)
LEAF = ROOT.issue(ORDERS, dns=["orders.example"], starts=-HOUR, ends=2 * HOUR)
STARTS = LEAF.certificate.not_valid_before_utc.timestamp()
ENDS = LEAF.certificate.not_valid_after_utc.timestamp()


def snapshot(*secrets: Secret, **clusters: ClusterConfig) -> Snapshot:
    return Snapshot(secrets={one.name: one for one in secrets}, clusters=clusters)


def test_what_a_certificate_says():
    facts = describe(LEAF.chain_pem)
    assert (ORDERS, (ORDERS, "orders.example"), "CN=root") == (facts.spiffe_id, facts.names, facts.issuer)
    assert (STARTS, ENDS, ENDS - 3600) == (facts.starts_at, facts.expires_at, facts.warn_at)
    assert describe(b"nothing") is None


def test_sources_are_named_and_inline_ones_are_found():
    tls = ClientTls(SecretRef(inline=LEAF.value), SecretRef(inline=ROOT.trusted))
    config = ClusterConfig(Cluster("c", EdsDiscovery("c"), tls=tls), ClusterLoadAssignment("c"))
    bundles = TrustedCa(b"", bundles=(ROOT.bundle("a.example"), Authority().bundle("b.example")))
    found = list(certificates_in_use(snapshot(LEAF.secret(), Secret("provider:p:ca", bundles), c=config)))
    assert [
        ("default", "certificate", "sds", 1),
        ("provider:p:ca", "roots", "provider p", 2),
        ("cluster c", "certificate", "resource", 1),
        ("cluster c", "roots", "resource", 1),
    ] == [(one.name, one.kind, one.source, len(one.certificates)) for one in found]
    assert ["a.example", "b.example"] == [one.trust_domain for one in found[1].certificates]


def test_somebody_is_told_once_at_a_third_of_the_lifetime_and_once_at_the_end(caplog):
    watch = CertificateWatch()
    assert () == watch.update(snapshot(LEAF.secret(), ROOT.secret()), 1.0)
    assert () == watch.sweep(1.0, ENDS - 3601)
    with caplog.at_level(logging.WARNING):
        assert (CertificateExpiring("default", "certificate", ORDERS, ENDS, 3599.0),) == watch.sweep(2.0, ENDS - 3599)
        assert () == watch.sweep(3.0, ENDS - 10)
        (event,) = watch.sweep(4.0, ENDS + 5)
        assert -5.0 == event.left_s
        assert () == watch.sweep(5.0, ENDS + 6)
    assert ["WARNING", "ERROR"] == [record.levelname for record in caplog.records]
    assert all(ORDERS in record.getMessage() for record in caplog.records)


def test_a_certificate_that_is_replaced_in_time_is_news_and_no_warning():
    watch = CertificateWatch()
    watch.update(snapshot(LEAF.secret()), 1.0)
    later = ROOT.issue(ORDERS, starts=HOUR, ends=10 * HOUR)
    (event,) = watch.update(snapshot(later.secret()), 2.0)
    assert isinstance(event, CertificateRotated)
    assert {("default", "certificate"): 2.0} == watch.since
    assert () == watch.sweep(3.0, ENDS - 10)


def test_the_same_secrets_cost_nothing_and_keep_their_age():
    watch, first = CertificateWatch(), snapshot(LEAF.secret())
    watch.update(first, 1.0)
    assert () == watch.update(replace(first, number=2), 5.0)
    assert () == watch.update(snapshot(LEAF.secret()), 6.0)
    assert {("default", "certificate"): 1.0} == watch.since


def test_a_bundle_is_as_good_as_its_longest_lived_root():
    old = Authority("old", not_after=-HOUR)
    watch = CertificateWatch()
    watch.update(snapshot(Secret("ROOTCA", TrustedCa(old.pem + ROOT.pem))), 1.0)
    assert () == watch.sweep(1.0, STARTS)
    watch.update(snapshot(Secret("ROOTCA", TrustedCa(old.pem))), 2.0)
    (event,) = watch.sweep(2.0, STARTS + 7200)
    assert ("roots", True) == (event.kind, event.left_s < 0)


def test_what_stands_in_resources_is_found_within_a_minute():
    watch = CertificateWatch()
    tls = ClientTls(SecretRef(inline=LEAF.value), None)
    config = ClusterConfig(Cluster("c", EdsDiscovery("c"), tls=tls), ClusterLoadAssignment("c"))
    watch.update(Snapshot(), 0.0)
    watch.sweep(0.0, ENDS - 10)
    watch.update(Snapshot(clusters={"c": config}), 1.0)
    (event,) = watch.sweep(61.0, ENDS - 10)
    assert "cluster c" == event.name


@pytest.mark.parametrize("chain", [b"", b"nothing"])
def test_what_cannot_be_read_is_shown_and_does_not_matter(chain):
    watch = CertificateWatch()
    watch.update(snapshot(Secret("default", TlsCertificate(chain, b""))), 1.0)
    assert () == watch.sweep(1.0, ENDS)
