"""The management server's own certificate, by the wall clock."""

from datetime import UTC, datetime, timedelta

import pytest

from xds_server.ca import CertificateAuthority
from xds_server.server_certificate import ServerCertificate

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def made_at() -> list[datetime]:
    """When certificates were issued."""
    return []


@pytest.fixture
def wall() -> list[datetime]:
    return [NOW]


@pytest.fixture
def certificate(made_at, wall) -> ServerCertificate:
    class Authority(CertificateAuthority):
        def issue_server(self, hosts, ttl, now):
            made_at.append(now)
            return super().issue_server(hosts, ttl, now)

    return ServerCertificate(
        Authority.create("cluster.local", NOW), ("localhost",), ttl=DAY, wall_clock=lambda: wall[0]
    )


@pytest.mark.parametrize(
    ("offset", "is_new"),
    [
        (timedelta(hours=11), False),
        (timedelta(hours=12), True),
        (timedelta(seconds=-30), False),
        (timedelta(minutes=-5), True),  # the clock was set back: it would not be valid yet
        (timedelta(days=300), True),
    ],
)
def test_it_is_replaced_when_it_is_half_over_or_not_valid_yet(certificate, made_at, wall, offset, is_new):
    first = certificate.configuration()
    wall[0] = NOW + offset
    assert is_new == (certificate.configuration() is not first)
    assert made_at == ([NOW, wall[0]] if is_new else [NOW])
