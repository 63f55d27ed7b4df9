"""What gRPC's own TLS is told, and where it finds certificates."""

import os
from dataclasses import replace
from typing import Any

import pytest

from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import ClientTls, PeerChecks, SanMatcher, SanType, SecretRef, TrustBundle, TrustedCa
from meshlib.protos import from_any
from meshlib.runtime.core import CoreCluster, Slots, is_plain_trust, san_patterns
from meshlib.runtime.core.resources import resources
from meshlib.runtime.core.slots import BUNDLES, CERTIFICATES, SETTLE_S
from meshlib.xds.resources import CDS, EDS, LDS, RDS

ID = "spiffe://cluster.local/ns/default/sa/checkout"


def san(value: str = ID, kind: StringKind = StringKind.EXACT, of: SanType = SanType.URI) -> SanMatcher:
    return SanMatcher(of, StringMatcher(kind, value))


def tls(*sans: SanMatcher, **options: Any) -> ClientTls:
    return ClientTls(SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA"), sans or (san(),), **options)


def core_cluster(name: str = "c1", **changes: Any) -> CoreCluster:
    made = CoreCluster(name, ("spiffe://.*",), "", "certificate-0", "roots-0", "shop", ("10.0.0.1:80", "[::1]:81"))
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        (StringKind.EXACT, "spiffe://a.b/c+d", r"spiffe://a\.b/c\+d"),
        (StringKind.PREFIX, "spiffe://a/", "spiffe://a/.*"),
        (StringKind.SUFFIX, "/sa/x", ".*/sa/x"),
        (StringKind.CONTAINS, "/ns/x/", ".*/ns/x/.*"),
        (StringKind.REGEX, "spiffe://.*/x", "spiffe://.*/x"),
    ],
)
def test_expected_uris_become_regular_expressions(kind: StringKind, value: str, pattern: str) -> None:
    """Core would compare exact names without their letter case."""
    assert (pattern,) == san_patterns(tls(san(value, kind)))


@pytest.mark.parametrize(
    "config",
    [
        ClientTls(None, SecretRef(sds_name="ROOTCA")),
        tls(san("checkout", of=SanType.DNS)),
        tls(san(of=SanType.ANY)),
        tls(san(), san("10.0.0.1", of=SanType.IP)),
        tls(SanMatcher(SanType.URI, StringMatcher(StringKind.EXACT, ID, ignore_case=True))),
        tls(minimum_version="TLSv1_3"),
        tls(checks=PeerChecks(spki_hashes=(b"x",))),
        tls(authority_name="shop"),
    ],
)
def test_what_core_cannot_check_in_full_is_not_given_to_it(config: ClientTls) -> None:
    """Above all the first: without names, anybody with a certificate of the CA would be accepted."""
    assert () == san_patterns(config)


def test_only_a_list_of_roots_is_given_to_core() -> None:
    assert is_plain_trust(TrustedCa(b"roots"))
    for other in (
        None,
        TrustedCa(b""),
        TrustedCa(b"", is_system=True),
        TrustedCa(b"roots\n-----BEGIN X509 CRL-----"),
        TrustedCa(b"roots", bundles=(TrustBundle("a", b"roots"),)),
        TrustedCa(b"roots", checks=PeerChecks(crl_pem=b"x")),
    ):
        assert not is_plain_trust(other)


def test_a_cluster_that_accepts_anybody_cannot_be_made() -> None:
    for wrong in ({"patterns": ()}, {"trust": ""}):
        with pytest.raises(ValueError, match="any peer"):
            core_cluster(**wrong)


def test_endpoints_are_chosen_by_cookie_only() -> None:
    made = resources((core_cluster(), core_cluster("c2", certificate="")))
    cluster = from_any(made[CDS]["c1"])
    assert ["DRAINING"] == [
        cluster.common_lb_config.override_host_status.DESCRIPTOR.fields_by_name["statuses"]
        .enum_type.values_by_number[one]
        .name
        for one in cluster.common_lb_config.override_host_status.statuses
    ]
    assert 2**32 - 1 == cluster.circuit_breakers.thresholds[0].max_requests.value
    context = from_any(cluster.transport_socket.typed_config).common_tls_context
    assert "certificate-0" == context.tls_certificate_provider_instance.instance_name
    assert "roots-0" == context.validation_context.ca_certificate_provider_instance.instance_name
    assert "spiffe://.*" == context.validation_context.match_subject_alt_names[0].safe_regex.regex
    without = from_any(from_any(made[CDS]["c2"]).transport_socket.typed_config).common_tls_context
    assert not without.HasField("tls_certificate_provider_instance")
    (group,) = from_any(made[EDS]["c1"]).endpoints
    assert [("10.0.0.1", 80, "shop", 3), ("::1", 81, "shop", 3)] == [
        (
            one.endpoint.address.socket_address.address,
            one.endpoint.address.socket_address.port_value,
            one.endpoint.hostname,
            one.health_status,
        )
        for one in group.lb_endpoints
    ]
    (host,) = from_any(next(iter(made[RDS].values()))).virtual_hosts
    assert ["c1", "c2"] == [one.name for one in host.routes[0].route.weighted_clusters.clusters]
    assert 1 == len(made[LDS])


def test_places_hold_what_was_put_there_and_are_not_reused_too_soon() -> None:
    slots = Slots()
    try:
        names = []
        for number in range(CERTIFICATES):
            place = slots.certificate(b"chain %d" % number, b"key %d" % number, 10.0)
            assert place is not None
            assert 10.0 == place[1]  # nobody has read from there before
            names.append(place[0])
        assert CERTIFICATES == len(set(names))
        slots.keep(frozenset(names))
        assert slots.certificate(b"new", b"new", 20.0) is None
        assert (names[1], 10.0) == slots.certificate(b"chain 1", b"key 1", 20.0)
        slots.keep(frozenset(names) - {names[2]})
        assert (names[2], 20.0 + SETTLE_S) == slots.certificate(b"new chain", b"new key", 20.0)
        paths = slots.providers[names[2]]
        with open(paths["certificate_file"], "rb") as chain, open(paths["private_key_file"], "rb") as key:
            assert (b"new chain", b"new key") == (chain.read(), key.read())
        assert slots.certificate(b"another", b"key", 21.0) is None  # what is to be named soon is taken
    finally:
        slots.close()
    assert not os.path.exists(paths["certificate_file"])


def test_there_is_a_place_for_each_bundle() -> None:
    slots = Slots()
    try:
        made = [slots.bundle(b"%d" % number, 0.0) for number in range(BUNDLES)]
        assert len({place[0] for place in made if place is not None}) == BUNDLES
    finally:
        slots.close()
