"""Registrations in JSON: what is accepted, what is refused and how, and the file of leases."""

import stat

import pytest

from xds_server.model import Instance
from xds_server.registrations import describe, load_leases, parse_registration, save_leases
from xds_server.registry import Lease

BODY = {"service": "checkout", "address": "127.0.0.1", "port": 8080}


def test_least_body_gets_the_documented_defaults():
    expected = Instance("a", "checkout", "default", "127.0.0.1", 8080, labels=(("app", "checkout"),))
    assert (expected, 5.0) == parse_registration("a", BODY)


def test_every_field_arrives():
    body = {
        **BODY,
        "namespace": "shop",
        "labels": {"version": "v1", "app": "co"},
        "service_account": "co",
        "service_port": 8000,
        "protocol": "grpc",
        "weight": 3,
        "locality": {"region": "eu", "zone": "eu-1", "sub_zone": "a"},
        "ready": False,
        "ttl_s": 2,
    }
    expected = Instance(
        id="a",
        service="checkout",
        namespace="shop",
        address="127.0.0.1",
        port=8080,
        service_port=8000,
        protocol="grpc",
        labels=(("app", "co"), ("version", "v1")),
        service_account="co",
        weight=3,
        region="eu",
        zone="eu-1",
        sub_zone="a",
        ready=False,
    )
    assert (expected, 2.0) == parse_registration("a", body)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"service": None}, "service is missing"),
        ({"labels": {f"l{number}": "" for number in range(65)}}, "labels has 65 entries"),
        ({"labels": {"version": "v" * 254}}, "labels: 'vvv"),
        ({"labels": {"a\nb": ""}}, "labels: 'a"),
        ({"locality": {"zone": "z" * 254}}, "locality: 'zzz"),
        ({"service": "Check_out"}, "service must be a DNS label"),
        ({"namespace": 7}, "namespace must be a DNS label"),
        ({"service_account": "a b"}, "service_account must be a DNS label"),
        ({"address": "example.com"}, "address must be an IP address"),
        ({"address": None}, "address is missing"),
        ({"address": "fe80::1%eth0"}, "address must be an IP address"),
        ({"address": "fe80::1%a\nb"}, "address must be an IP address"),
        ({"address": "0.0.0.0"}, "address must be one that clients can connect to"),
        ({"address": "::"}, "address must be one that clients can connect to"),
        ({"address": "ff02::1"}, "address must be one that clients can connect to"),
        ({"port": 0}, "port must be an integer from 1 to 65535"),
        ({"port": "80"}, "port must be an integer"),
        ({"port": True}, "port must be an integer"),
        ({"service_port": 70000}, "service_port must be"),
        ({"weight": 0}, "weight must be"),
        ({"protocol": "tcp"}, "protocol must be http or grpc"),
        ({"labels": {"a": 1}}, "labels must be an object of strings"),
        ({"locality": {"planet": "x"}}, "locality has the unknown field 'planet'"),
        ({"ttl_s": 0}, "ttl_s must be from 0.5 to 86400"),
        ({"ttl_s": "5"}, "ttl_s must be a number"),
        ({"ttl_s": float("nan")}, "ttl_s must be from"),
        ({"ttl_s": float("inf")}, "ttl_s must be from"),
        ({"ttl_s": 10**400}, "ttl_s must be from"),
        ({"prot": 1}, "unknown field 'prot'"),
    ],
)
def test_bad_field_is_named(change, said):
    with pytest.raises(ValueError, match=said):
        parse_registration("a", {**BODY, **change})


@pytest.mark.parametrize("body", [[], "x", None])
def test_body_must_be_an_object(body):
    with pytest.raises(ValueError, match="JSON object"):
        parse_registration("a", body)


@pytest.mark.parametrize("instance_id", ["", "a/b", "-a", "a" * 254])
def test_bad_id_is_refused(instance_id):
    with pytest.raises(ValueError, match="id "):
        parse_registration(instance_id, BODY)


def test_description_shows_the_time_that_is_left():
    instance, ttl_s = parse_registration("a", BODY)
    assert 1.5 == describe(Lease(instance, ttl_s, expires_at=11.5), now=10.0)["expires_in_s"]


def test_leases_come_back_from_their_file_which_is_private(tmp_path):
    path = tmp_path / "leases.json"
    body = {**BODY, "service_account": "co", "locality": {"zone": "z"}, "labels": {"version": "v1"}}
    instance, _ = parse_registration("a", body)
    save_leases(path, [Lease(instance, 7.0, expires_at=1.0)])
    assert ((instance, 7.0),) == load_leases(path)
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    assert [path] == list(tmp_path.iterdir())


def test_no_file_means_no_leases(tmp_path):
    assert () == load_leases(tmp_path / "leases.json")


@pytest.mark.parametrize("text", ["", "[]", '{"leases": [{}]}', '{"leases": [{"id": "a"}]}'])
def test_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "leases.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"leases\.json is damaged"):
        load_leases(path)
