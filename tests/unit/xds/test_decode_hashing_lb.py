"""Ring hash and Maglev in a cluster's own fields and as extensions."""

import pytest

from meshlib.balancing.maglev import MAX_SLOTS
from meshlib.balancing.ring_hash import MAX_POINTS
from meshlib.model.cluster import Maglev, RingHash, RingHashFunction
from meshlib.model.route import HashPolicy
from meshlib.xds.decode_hashing_lb import MAX_MIN_RING_SIZE, MAX_TABLE_SIZE

POLICIES = "envoy.extensions.load_balancing_policies."
MURMUR = RingHashFunction.MURMUR_HASH_2


def value_of(decoded):
    assert decoded.errors == ()
    return decoded.value


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lb_policy": "RING_HASH"}, RingHash()),
        ({"lb_policy": "MAGLEV"}, Maglev()),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 101}}, Maglev(101)),
        (
            {
                "lb_policy": "RING_HASH",
                "ring_hash_lb_config": {
                    "minimum_ring_size": 7,
                    "maximum_ring_size": 9,
                    "hash_function": "MURMUR_HASH_2",
                },
            },
            RingHash(7, 9, MURMUR),
        ),
    ],
)
def test_fields_of_the_cluster(decode_cluster, fields, expected):
    decoded = decode_cluster(**fields)
    assert value_of(decoded).lb_policy == expected
    assert decoded.unused == ()


def test_hostnames_of_dns_clusters(decode):
    fields = {
        "name": "c",
        "lb_policy": "MAGLEV",
        "common_lb_config": {"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}},
        "load_assignment": {"cluster_name": "c"},
    }
    assert value_of(decode("CDS", {**fields, "type": "STRICT_DNS"})).lb_policy == Maglev(uses_hostname=True)
    (error,) = decode("CDS", {**fields, "type": "STATIC"}).errors
    assert error.startswith("common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing: ")


@pytest.fixture
def decode_extension(decode_cluster, packed):
    def decode(name, **fields):
        config = {"name": "p", "typed_config": packed(f"{POLICIES}{name}", **fields)}
        return decode_cluster(load_balancing_policy={"policies": [{"typed_extension_config": config}]})

    return decode


def test_extensions(decode_extension):
    hashing = {"use_hostname_for_hashing": True, "hash_policy": [{"header": {"header_name": "X-U"}}]}
    policies = (HashPolicy("header", "x-u"),)
    ring = value_of(
        decode_extension(
            "ring_hash.v3.RingHash",
            hash_function="MURMUR_HASH_2",
            minimum_ring_size=2,
            consistent_hashing_lb_config=hashing,
            locality_weighted_lb_config={},
        )
    )
    assert ring.lb_policy == RingHash(2, function=MURMUR, uses_hostname=True, hash_policies=policies)
    assert ring.locality_weighted
    table = value_of(decode_extension("maglev.v3.Maglev", table_size=11, consistent_hashing_lb_config=hashing))
    assert (table.lb_policy, table.locality_weighted) == (Maglev(11, True, policies), False)


def test_the_deprecated_fields_of_the_extension_count_without_the_newer_message(decode_extension):
    old = {"use_hostname_for_hashing": True}
    assert value_of(decode_extension("ring_hash.v3.RingHash", **old)).lb_policy.uses_hostname
    both = decode_extension("ring_hash.v3.RingHash", consistent_hashing_lb_config={}, **old)
    assert not value_of(both).lb_policy.uses_hostname


RING, TABLE = "ring_hash_lb_config", "maglev_lb_config"


@pytest.mark.parametrize(
    ("policy", "fields", "path"),
    [
        ("RING_HASH", {RING: {"minimum_ring_size": 0}}, f"{RING}.minimum_ring_size"),
        ("RING_HASH", {RING: {"minimum_ring_size": MAX_MIN_RING_SIZE + 1}}, f"{RING}.minimum_ring_size"),
        ("RING_HASH", {RING: {"maximum_ring_size": 1023}}, f"{RING}.maximum_ring_size"),
        ("RING_HASH", {RING: {"maximum_ring_size": 8388609}}, f"{RING}.maximum_ring_size"),
        ("MAGLEV", {TABLE: {"table_size": 100}}, f"{TABLE}.table_size"),
        ("MAGLEV", {TABLE: {"table_size": 1}}, f"{TABLE}.table_size"),
        ("MAGLEV", {TABLE: {"table_size": 131101}}, f"{TABLE}.table_size"),
        (
            "MAGLEV",
            {"common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 99}}},
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(decode_cluster, policy, fields, path):
    decoded = decode_cluster(lb_policy=policy, **fields)
    assert [path] == [error.partition(": ")[0] for error in decoded.errors]


def test_a_cookie_that_is_made_up_cannot_be_a_clusters_own(decode_extension):
    hashing = {"hash_policy": [{"cookie": {"name": "c", "ttl": "1s"}}]}
    (error,) = decode_extension("maglev.v3.Maglev", consistent_hashing_lb_config=hashing).errors
    assert "ttl" in error


def test_limits_are_those_of_the_pickers():
    assert (MAX_POINTS, MAX_SLOTS) == (MAX_MIN_RING_SIZE, MAX_TABLE_SIZE)


def test_options_of_hashing_are_unused_with_other_policies(decode_cluster):
    common = {"consistent_hashing_lb_config": {}}
    assert "common_lb_config.consistent_hashing_lb_config" in decode_cluster(common_lb_config=common).unused
