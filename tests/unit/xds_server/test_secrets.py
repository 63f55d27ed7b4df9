"""Secrets of identities: one certificate per rotation, shared, replaced in time."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from meshlib.protos import from_any, message_class
from xds_server.ca import CertificateAuthority
from xds_server.identity import Identity
from xds_server.secrets import Secrets

NOW = datetime(2030, 1, 1, tzinfo=UTC)
A, B = Identity("default", "a"), Identity("default", "b")


@pytest.fixture
def secrets() -> Secrets:
    authority = CertificateAuthority.create("cluster.local", NOW)
    return Secrets(authority, ttl=timedelta(seconds=100), rng=random.Random(1), wall_clock=lambda: NOW)


def message(state, name):
    response = message_class("envoy.service.discovery.v3.DiscoveryResponse").FromString(state.resources[name].field)
    return from_any(response.resources[0])


def test_an_identity_has_its_certificate_with_key_and_the_root(secrets):
    state = secrets.acquire(A, 0.0)
    own = message(state, "default").tls_certificate
    leaf = x509.load_pem_x509_certificate(own.certificate_chain.inline_bytes)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ["spiffe://cluster.local/ns/default/sa/a"] == names.get_values_for_type(x509.UniformResourceIdentifier)
    assert own.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY")
    root = x509.load_pem_x509_certificate(message(state, "ROOTCA").validation_context.trusted_ca.inline_bytes)
    leaf.verify_directly_issued_by(root)


def test_streams_of_an_identity_share_a_certificate_and_others_have_their_own(secrets):
    first, second, other = secrets.acquire(A, 0.0), secrets.acquire(A, 1.0), secrets.acquire(B, 1.0)
    assert first is second
    assert first.resources["default"] != other.resources["default"]
    assert first.resources["ROOTCA"] == other.resources["ROOTCA"]


def test_rotation_is_due_at_50_to_60_percent_of_the_lifetime(secrets):
    for index in range(50):
        secrets.acquire(Identity("default", f"a{index}"), 0.0)
    times = [held.rotate_at for held in secrets._held.values()]
    assert 50.0 <= min(times) and max(times) <= 60.0
    assert len(set(times)) > 1
    assert min(times) == secrets.next_rotation()


def test_rotation_replaces_the_certificate_and_keeps_the_root(secrets):
    before = secrets.acquire(A, 0.0)
    assert () == secrets.sweep(49.9)
    ((identity, after),) = secrets.sweep(60.0)
    assert A == identity
    assert before.resources["default"].version != after.resources["default"].version
    assert before.resources["ROOTCA"].version == after.resources["ROOTCA"].version
    assert secrets.acquire(A, 61.0) is after


def test_unused_identity_is_kept_until_its_rotation_and_then_forgotten(secrets):
    first = secrets.acquire(A, 0.0)
    secrets.release(A)
    assert secrets.acquire(A, 10.0) is first
    secrets.release(A)
    assert () == secrets.sweep(60.0)
    assert secrets.next_rotation() is None


def test_a_stream_that_comes_after_the_rotation_was_due_gets_a_new_certificate(secrets):
    first = secrets.acquire(A, 0.0)
    assert secrets.acquire(A, 60.0) is not first


def test_private_key_is_not_shown(secrets):
    assert "PRIVATE" not in repr(secrets.acquire(A, 0.0))


class Wall:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def clocked(wall) -> Secrets:
    authority = CertificateAuthority.create("cluster.local", NOW - timedelta(days=1))
    return Secrets(authority, ttl=timedelta(seconds=100), rng=random.Random(1), wall_clock=wall)


@pytest.mark.parametrize("jump", [timedelta(seconds=70), timedelta(days=30), timedelta(hours=-1)])
def test_wall_clock_that_jumps_does_not_leave_a_stream_with_a_certificate_that_is_not_valid(clocked, wall, jump):
    clocked.acquire(A, 0.0)
    wall.now += jump
    ((identity, state),) = clocked.sweep(1.0)
    leaf = x509.load_pem_x509_certificate(message(state, "default").tls_certificate.certificate_chain.inline_bytes)
    assert A == identity
    assert leaf.not_valid_before_utc <= wall.now < leaf.not_valid_after_utc
    assert () == clocked.sweep(2.0)


def test_small_corrections_of_the_wall_clock_replace_nothing(clocked, wall):
    clocked.acquire(A, 0.0)
    for seconds in (-50, 40):
        wall.now = NOW + timedelta(seconds=seconds)
        assert () == clocked.sweep(1.0)


def test_older_streams_hear_of_a_certificate_that_was_replaced_for_a_new_stream(secrets):
    secrets.acquire(A, 0.0)
    state = secrets.acquire(A, 60.0)
    assert ((A, state),) == secrets.sweep(60.0)
    assert () == secrets.sweep(61.0)
