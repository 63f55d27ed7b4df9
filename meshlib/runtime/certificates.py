"""Which certificates are in use, what they say about themselves, and when they have to be replaced."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from meshlib.events import CertificateExpiring, CertificateRotated, Event
from meshlib.identity.certificates import CertificateInfo, parse_chain
from meshlib.model.secret import SecretRef, TlsCertificate, TrustedCa
from meshlib.model.snapshot import ClusterConfig, InboundConfig, Snapshot
from meshlib.xds.follow_resources import PROVIDER_PREFIX

__all__ = [
    "CertificateFacts",
    "CertificateInUse",
    "CertificateWatch",
    "certificates_in_use",
    "describe",
    "facts_of",
    "source_of",
]

_LOG = logging.getLogger(__name__)

WALK_S: Final = 60.0
WARNING_SHARE: Final = 1 / 3
"""Of the lifetime: whoever renews does so at a half, at the latest at two thirds (SPIRE, istiod, cert-manager)."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """Attributes:
    names: All alternative names.
    spiffe_id: First URI name, or empty.
    starts_at: Seconds since the epoch.
    expires_at: Seconds since the epoch.
    trust_domain: Of roots that speak for one SPIFFE trust domain, or empty.
    """

    spiffe_id: str
    subject: str
    starts_at: float
    expires_at: float
    names: tuple[str, ...] = ()
    issuer: str = ""
    trust_domain: str = ""

    @property
    def warn_at(self) -> float:
        """From then on it should have been replaced; seconds since the epoch."""
        return self.expires_at - max(0.0, self.expires_at - self.starts_at) * WARNING_SHARE


@dataclass(frozen=True, slots=True)
class CertificateInUse:
    """One certificate, or a bundle of roots.

    Attributes:
        name: Of the secret; of what stands in a resource itself, where.
        kind: `certificate` or `roots`.
        source: `sds`, `provider NAME` or `resource`.
        certificates: The certificate itself; of a bundle all roots.
    """

    name: str
    kind: str
    source: str
    value: TlsCertificate | TrustedCa
    certificates: tuple[CertificateFacts, ...]

    @property
    def facts(self) -> CertificateFacts | None:
        """Of a bundle the root that lives longest: as long as that is good, the bundle may be. None: unreadable."""
        return max(self.certificates, key=lambda one: one.expires_at, default=None)


def describe(chain_pem: bytes) -> CertificateFacts | None:
    """Return what the first certificate of a chain says; None when it cannot be read."""
    found = _facts(chain_pem)
    return found[0] if found else None


@lru_cache(maxsize=256)
def _facts(pem: bytes, trust_domain: str = "") -> tuple[CertificateFacts, ...]:
    try:
        return tuple(_of(one, trust_domain) for one in parse_chain(pem))
    except ValueError:
        return ()


def _of(info: CertificateInfo, trust_domain: str) -> CertificateFacts:
    names = info.names
    return CertificateFacts(
        names.uris[0] if names.uris else "",
        names.subject,
        info.not_before,
        info.not_after,
        (*names.uris, *names.dns, *names.ips, *names.emails),
        info.issuer,
        trust_domain,
    )


def facts_of(value: TlsCertificate | TrustedCa) -> tuple[CertificateFacts, ...]:
    """Return what a certificate, or each root of a bundle, says."""
    match value:
        case TlsCertificate(chain_pem=chain):
            return _facts(chain)[:1]
        case TrustedCa(bundles=None, ca_pem=pem):
            return _facts(pem) if pem else ()
        case TrustedCa(bundles=bundles):
            return tuple(one for bundle in bundles or () for one in _facts(bundle.ca_pem, bundle.trust_domain))


def certificates_in_use(snapshot: Snapshot) -> Iterator[CertificateInUse]:
    """Yield the certificates and bundles of a configuration: secrets by name, then what stands in resources."""
    for name, secret in sorted(snapshot.secrets.items()):
        yield _in_use(name, source_of(name), secret.value)
    for place, reference in _references(snapshot):
        if reference is not None and reference.inline is not None:
            yield _in_use(place, "resource", reference.inline)


def source_of(name: str) -> str:
    """Return where a secret comes from, by its name."""
    is_provided = name.startswith(PROVIDER_PREFIX)
    return "provider " + name.removeprefix(PROVIDER_PREFIX).rpartition(":")[0] if is_provided else "sds"


def _references(snapshot: Snapshot) -> Iterator[tuple[str, SecretRef | None]]:
    for name, config in sorted(snapshot.clusters.items()):
        if isinstance(config, ClusterConfig):
            cluster = config.cluster
            places = [(f"cluster {name}", cluster.tls)]
            places += [(f"cluster {name}, {match.name}", match.tls) for match in cluster.socket_matches]
            for place, tls in places:
                if tls is not None:
                    yield place, tls.certificate
                    yield place, tls.trust
    for name, inbound in sorted(snapshot.inbound.items()):
        if isinstance(inbound, InboundConfig) and inbound.listener.tls is not None:
            yield f"listener {name}", inbound.listener.tls.certificate
            yield f"listener {name}", inbound.listener.tls.trust


def _in_use(name: str, source: str, value: TlsCertificate | TrustedCa) -> CertificateInUse:
    kind = "certificate" if isinstance(value, TlsCertificate) else "roots"
    return CertificateInUse(name, kind, source, value, facts_of(value))


class CertificateWatch:
    """Tells when certificates are replaced, and when they should have been. Used on the control thread.

    Attributes:
        since: By name and kind, the monotonic time at which what is in use came; replaced, not changed.
    """

    def __init__(self) -> None:
        self.since: Mapping[tuple[str, str], float] = {}
        self._snapshot = Snapshot()
        self._known: dict[tuple[str, str], CertificateInUse] = {}
        # What was said about each: nothing, that it ends soon, that it has ended.
        self._told: dict[tuple[str, str], int] = {}
        self._next_look = 0.0
        self._next_walk = 0.0

    def update(self, snapshot: Snapshot, now: float) -> tuple[Event, ...]:
        """Take over a configuration. Costs nothing while its secrets are the same.

        Args:
            now: Monotonic seconds.
        """
        before, self._snapshot = self._snapshot, snapshot
        return () if snapshot.secrets is before.secrets else self._walk(now)

    def _walk(self, now: float) -> tuple[Event, ...]:
        events: list[Event] = []
        known, since, told = {}, {}, {}
        for one in certificates_in_use(self._snapshot):
            key = (one.name, one.kind)
            known[key] = one
            before = self._known.get(key)
            if before is not None and before.value == one.value:
                since[key] = self.since[key]
                told[key] = self._told.get(key, 0)
                continue
            since[key] = now
            facts = one.facts
            if before is not None and one.kind == "certificate" and facts is not None:
                events.append(CertificateRotated(one.name, facts.spiffe_id, facts.expires_at))
        self._known, self.since, self._told = known, since, told
        self._next_look = 0.0
        return tuple(events)

    def sweep(self, now: float, wall_now: float) -> tuple[Event, ...]:
        """Look at the clock; costs nothing until something is due.

        Args:
            now: Monotonic seconds.
            wall_now: Seconds since the epoch.
        """
        events: list[Event] = []
        if now >= self._next_walk:
            # What stands in resources themselves is looked for from time to time: an update must not cost a walk.
            self._next_walk = now + WALK_S
            events += self._walk(now)
        if wall_now < self._next_look:
            return tuple(events)
        self._next_look = float("inf")
        for key, one in self._known.items():
            facts = one.facts
            if facts is None:
                continue
            stage = (wall_now >= facts.warn_at) + (wall_now > facts.expires_at)
            if stage > self._told.get(key, 0):
                self._told[key] = stage
                events.append(self._tell(one, facts, wall_now))
            if stage < 2:
                self._next_look = min(self._next_look, facts.expires_at + 0.001 if stage else facts.warn_at)
        return tuple(events)

    def _tell(self, one: CertificateInUse, facts: CertificateFacts, wall_now: float) -> CertificateExpiring:
        left_s = facts.expires_at - wall_now
        whose = f" of {facts.spiffe_id}" if facts.spiffe_id and one.kind == "certificate" else ""
        if left_s < 0:
            _LOG.error("%s %s%s (%s) has expired and is not used any more", one.kind, one.name, whose, one.source)
        else:
            text = "%s %s%s (%s) expires in %.0f s, two thirds of its lifetime are over, and it has not been replaced"
            _LOG.warning(text, one.kind, one.name, whose, one.source, left_s)
        return CertificateExpiring(one.name, one.kind, facts.spiffe_id, facts.expires_at, left_s)
