"""Addresses to listen on and to announce."""

import pytest

from meshlib.servers.addresses import advertised, join, plain_ip


@pytest.mark.parametrize(
    ("listening", "advertise", "announced"),
    [
        ("127.0.0.1:80", None, "127.0.0.1:80"),
        ("[::1]:80", None, "[::1]:80"),
        ("0.0.0.0:80", "10.0.0.1", "10.0.0.1:80"),
        ("[::]:80", "2001:db8::1", "[2001:db8::1]:80"),
        ("0.0.0.0:80", "10.0.0.1:8080", "10.0.0.1:8080"),
        ("0.0.0.0:80", "[2001:db8::1]:8080", "[2001:db8::1]:8080"),
        ("0.0.0.0:80", "[2001:db8::1]", "[2001:db8::1]:80"),
    ],
)
def test_address_to_announce(listening: str, advertise: str | None, announced: str) -> None:
    assert announced == advertised(listening, advertise)


@pytest.mark.parametrize(
    ("listening", "advertise", "text"),
    [
        ("0.0.0.0:80", None, "say with `advertise`"),
        ("[::]:80", None, "say with `advertise`"),
        ("10.0.0.1:80", "0.0.0.0", "must be an IP address"),
        ("10.0.0.1:80", "10.0.0.1:x", "must be an IP address"),
        ("10.0.0.1:80", "10.0.0.1:0", "must be an IP address"),
        ("10.0.0.1:80", "", "must be an IP address"),
    ],
)
def test_what_clients_could_not_use_is_not_announced(listening: str, advertise: str | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        advertised(listening, advertise)


def test_mapped_and_scoped_addresses_have_their_plain_form() -> None:
    assert ["10.0.0.1", "fe80::1", "::1", "10.0.0.1", "x:y"] == [
        plain_ip(host) for host in ("::ffff:10.0.0.1", "fe80::1%eth0", "::1", "10.0.0.1", "x:y")
    ]
    assert ["[::1]:80", "10.0.0.1:80"] == [join("::1", 80), join("10.0.0.1", 80)]
