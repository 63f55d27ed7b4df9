"""Leases, with a clock that the test moves."""

import dataclasses

import pytest

from xds_server.model import Instance
from xds_server.registry import Registry


def instance(instance_id: str, service: str = "checkout", port: int = 80) -> Instance:
    return Instance(instance_id, service, "default", "127.0.0.1", port)


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_registration_is_a_change_and_renewal_is_not(registry):
    assert registry.put(instance("a"), 5.0, 0.0)
    assert not registry.put(instance("a"), 5.0, 3.0)
    assert 8.0 == registry.next_expiry()


def test_changed_instance_is_a_change(registry):
    registry.put(instance("a"), 5.0, 0.0)
    assert registry.put(dataclasses.replace(instance("a"), weight=2), 5.0, 1.0)


def test_lifetime_must_be_positive(registry):
    with pytest.raises(ValueError, match="ttl_s"):
        registry.put(instance("a"), 0.0, 0.0)


def test_instances_come_by_id_whatever_the_order_of_registration(registry):
    for each in "cab":
        registry.put(instance(each), 5.0, 0.0)
    assert ["a", "b", "c"] == [each.id for each in registry.instances()]


def test_removal_says_whether_there_was_anything(registry):
    registry.put(instance("a"), 5.0, 0.0)
    assert registry.remove("a")
    assert not registry.remove("a")


def test_one_of_three_that_is_not_renewed_expires(registry):
    for each, renewed in (("a", 0.0), ("b", 4.0), ("c", 4.0)):
        registry.put(instance(each), 5.0, renewed)
    assert () == registry.sweep(4.9).expired
    assert [instance("a")] == list(registry.sweep(5.0).expired)
    assert ["b", "c"] == [each.id for each in registry.instances()]


def test_single_instance_of_a_service_expires_at_once(registry):
    registry.put(instance("a"), 5.0, 0.0)
    assert [instance("a")] == list(registry.sweep(5.0).expired)


def test_mass_expiry_is_held_for_one_lifetime_and_then_happens(registry):
    for each in "abc":
        registry.put(instance(each), 5.0, 0.0)
    sweep = registry.sweep(5.0)
    assert ((), 3) == (sweep.expired, len(sweep.held))
    assert 10.0 == registry.next_expiry()
    assert () == registry.sweep(9.9).expired
    assert 3 == len(registry.sweep(10.0).expired)


def test_half_of_a_service_is_no_mass_expiry(registry):
    registry.put(instance("a"), 5.0, 0.0)
    registry.put(instance("b"), 5.0, 4.0)
    assert [instance("a")] == list(registry.sweep(5.0).expired)


def test_mass_expiry_is_seen_when_leases_end_one_after_the_other(registry):
    """Renewals that stop arriving end the leases at different moments within one lifetime."""
    for index, each in enumerate("abc"):
        registry.put(instance(each), 5.0, float(index))
    assert 1 == len(registry.sweep(5.0).expired)
    sweep = registry.sweep(6.0)
    assert ((), 1) == (sweep.expired, len(sweep.held))


def test_renewal_after_a_hold_earns_a_new_hold(registry):
    for each in "ab":
        registry.put(instance(each), 5.0, 0.0)
    registry.sweep(5.0)
    for each in "ab":
        registry.put(instance(each), 5.0, 6.0)
    assert 2 == len(registry.sweep(11.0).held)


def test_other_services_are_not_held(registry):
    for each in "ab":
        registry.put(instance(each), 5.0, 0.0)
    registry.put(instance("x", "cart"), 5.0, 0.0)
    assert [instance("x", "cart")] == list(registry.sweep(5.0).expired)


def test_after_a_restart_every_lease_starts_anew(registry):
    registry.restore([(instance("a"), 5.0), (instance("b"), 9.0)], 100.0)
    assert [105.0, 109.0] == [lease.expires_at for lease in registry.leases()]


def test_instances_are_found_by_their_address_until_they_leave_or_move(registry):
    registry.put(instance("a"), 5.0, 0.0)
    registry.put(instance("b", service="cart"), 5.0, 0.0)
    assert ["a", "b"] == [each.id for each in registry.at("127.0.0.1", 80)]
    registry.put(instance("a", port=81), 5.0, 1.0)
    registry.remove("b")
    assert ((), ["a"]) == (registry.at("127.0.0.1", 80), [each.id for each in registry.at("127.0.0.1", 81)])
    registry.sweep(6.0)
    assert () == registry.at("127.0.0.1", 81)
    assert {} == registry._at
