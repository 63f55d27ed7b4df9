"""Certificates of the clients' identities, as SDS secrets: `default`, the identity's own, and `ROOTCA`.

An identity's certificate is issued once per rotation, when a stream of that identity first needs it, and shared by
all of its streams. It is replaced when 50 to 60 % of its lifetime has passed; the share is drawn per certificate, so
that identities which started together do not rotate together for ever.

Certificates carry calendar time and rotations are planned in monotonic time. The two part when the wall clock is set, or
when the machine slept: what is then too old, or not valid yet, is replaced at the next look.
"""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta

from meshlib.protos import message_class
from xds_server.ca import BACKDATE, CertificateAuthority, WallClock, utc_now
from xds_server.identity import Identity
from xds_server.snapshot import Resource, TypeState

OWN_CERTIFICATE = "default"
TRUST_BUNDLE = "ROOTCA"
SECRET_NAMES = frozenset({OWN_CERTIFICATE, TRUST_BUNDLE})

_SECRET = "envoy.extensions.transport_sockets.tls.v3.Secret"
_EARLIEST, _LATEST = 0.5, 0.6


@dataclass(slots=True)
class _Held:
    """Attributes:
    rotate_at: Monotonic seconds.
    issued: Calendar time.
    old_from: Calendar time from which it is to be replaced.
    """

    state: TypeState
    rotate_at: float
    issued: datetime
    old_from: datetime
    users: int = 0

    def is_due(self, now: float, wall: datetime) -> bool:
        return now >= self.rotate_at or wall >= self.old_from or wall < self.issued - BACKDATE


class Secrets:
    """The secrets of all identities that have a stream. `now` is monotonic seconds throughout.

    Args:
        ttl: Lifetime of a certificate.
    """

    def __init__(
        self,
        authority: CertificateAuthority,
        *,
        ttl: timedelta,
        rng: random.Random | None = None,
        wall_clock: WallClock = utc_now,
    ) -> None:
        self._authority = authority
        self._ttl = ttl
        self._rng = rng or random.Random()
        self._wall_clock = wall_clock
        self._held: dict[Identity, _Held] = {}
        # Replaced for a new stream; the older streams of the identity have yet to be told.
        self._untold: set[Identity] = set()

    def acquire(self, identity: Identity, now: float) -> TypeState:
        """Return the secrets of an identity for a new stream; pair it with `release`."""
        held = self._held.get(identity)
        if held is None:
            held = self._issue(identity, now, users=0)
        elif held.is_due(now, self._wall_clock()):
            if held.users:
                self._untold.add(identity)
            held = self._issue(identity, now, users=held.users)
        held.users += 1
        return held.state

    def release(self, identity: Identity) -> None:
        """A stream of the identity has ended. Its certificate is kept until its rotation, for a stream that returns."""
        self._held[identity].users -= 1

    def sweep(self, now: float) -> tuple[tuple[Identity, TypeState], ...]:
        """Re-issue what is due and forget what nobody uses; returns the new secrets."""
        renewed: list[tuple[Identity, TypeState]] = []
        wall = self._wall_clock()
        untold, self._untold = self._untold, set()
        for identity, held in list(self._held.items()):
            if not held.is_due(now, wall):
                if identity in untold:
                    renewed.append((identity, held.state))
                continue
            if held.users == 0:
                del self._held[identity]
            else:
                renewed.append((identity, self._issue(identity, now, users=held.users).state))
        return tuple(renewed)

    def next_rotation(self) -> float | None:
        return min((held.rotate_at for held in self._held.values()), default=None)

    def _issue(self, identity: Identity, now: float, *, users: int) -> _Held:
        wall = self._wall_clock()
        issued = self._authority.issue_svid(identity, self._ttl, wall)
        own = message_class(_SECRET)(name=OWN_CERTIFICATE)
        own.tls_certificate.certificate_chain.inline_bytes = issued.certificate_pem
        own.tls_certificate.private_key.inline_bytes = issued.private_key_pem
        roots = message_class(_SECRET)(name=TRUST_BUNDLE)
        roots.validation_context.trusted_ca.inline_bytes = self._authority.root_pem
        state = TypeState.of([Resource.of(OWN_CERTIFICATE, own), Resource.of(TRUST_BUNDLE, roots)])
        share = self._rng.uniform(_EARLIEST, _LATEST)
        held = _Held(state, now + self._ttl.total_seconds() * share, wall, wall + self._ttl * share, users)
        self._held[identity] = held
        return held
