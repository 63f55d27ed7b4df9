"""The secure listener's own certificate, replaced well before it expires, at a handshake."""

import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import grpc

from xds_server.ca import BACKDATE, CertificateAuthority, WallClock, utc_now


class ServerCertificate:
    """Issues from the server's own authority; gRPC asks for it at every handshake, from threads of its own.

    Args:
        hosts: Names and addresses by which clients reach the server.
        ttl: Lifetime; half of it after issue there is a new one.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        hosts: Iterable[str],
        *,
        ttl: timedelta = timedelta(hours=24),
        wall_clock: WallClock = utc_now,
    ) -> None:
        self._authority = authority
        self._hosts = tuple(hosts)
        self._ttl = ttl
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._current: grpc.ServerCertificateConfiguration | None = None
        self._issued_at = self._renew_at = datetime.min.replace(tzinfo=UTC)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return the certificate to use now."""
        with self._lock:
            now = self._wall_clock()
            # Before its issue: the clock was set back, and clients would not take it as valid yet.
            if self._current is None or now >= self._renew_at or now < self._issued_at - BACKDATE:
                issued = self._authority.issue_server(self._hosts, self._ttl, now)
                pair = (issued.private_key_pem, issued.certificate_pem)
                self._current = grpc.ssl_server_certificate_configuration([pair])
                self._issued_at, self._renew_at = now, now + self._ttl / 2
            return self._current
