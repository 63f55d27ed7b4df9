"""The certificates of a process, or of files: whose they are, who issued them, and how long they are good. No keys."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from meshlib.errors import ConfigError
from meshlib.model.secret import TlsCertificate, TrustedCa
from meshlib.ports import Clock
from meshlib.protos import message_class
from meshlib.runtime.certificates import (
    CertificateFacts,
    CertificateInUse,
    certificates_in_use,
    facts_of,
    source_of,
)
from meshlib.runtime.clock import wall
from meshlib.runtime.control import ControlPlane
from meshlib.xds.decode_validation import validation_context
from meshlib.xds.problems import Problems
from meshlib.xds.resources import SDS
from meshlib.xds.spiffe_bundles import parse_bundle_map

__all__ = [
    "CERTIFICATE_EXPIRY",
    "CERTIFICATE_EXPIRY_HELP",
    "CERTIFICATE_LABELS",
    "CertificateStatus",
    "certificate_statuses",
    "certificates_of_client_status",
    "certificates_of_file",
]

SECRET_TYPE: Final = "envoy.extensions.transport_sockets.tls.v3.Secret"
CERTIFICATE_EXPIRY: Final = "meshlib_certificate_expiry_timestamp_seconds"
CERTIFICATE_EXPIRY_HELP: Final = "When certificates and the longest-lived roots of bundles end, in seconds since 1970."
CERTIFICATE_LABELS: Final = ("name", "kind", "source", "spiffe_id")


@dataclass(frozen=True, slots=True)
class CertificateStatus:
    """A certificate, or a bundle of roots.

    Attributes:
        name: Of the secret; of what stands in a resource itself, where; of a file its path.
        kind: `certificate` or `roots`.
        spiffe_id: Of the certificate, or empty.
        expires_in_s: Of the certificate, or of the root that lives longest; negative: it has expired. None: unreadable.
        source: `sds`, `provider NAME`, `resource` or `file`.
        names: All names of the certificate.
        age_s: Since it came; None: not known.
        expires_at: Seconds since the epoch.
        is_due: Two thirds of its lifetime are over, and it has not been replaced.
        certificates: How many roots there are; 1 for a certificate.
        trust_domains: That the roots speak for, each for itself.
    """

    name: str
    kind: str
    spiffe_id: str = ""
    expires_in_s: float | None = None
    source: str = ""
    names: tuple[str, ...] = ()
    subject: str = ""
    issuer: str = ""
    age_s: float | None = None
    expires_at: float | None = None
    is_due: bool = False
    certificates: int = 0
    trust_domains: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        who = ", ".join(self.names) or self.subject
        if self.kind == "roots":
            domains = f" of {', '.join(self.trust_domains)}" if self.trust_domains else f" ({who})" if who else ""
            who = f"{self.certificates} root{'' if self.certificates == 1 else 's'}{domains}"
        parts = [f"{self.kind} {self.name}: {who or 'unreadable'}"]
        if self.kind == "certificate" and self.issuer:
            parts.append(f"issued by {self.issuer}")
        if self.expires_in_s is not None:
            due = ", should have been replaced" if self.is_due and self.expires_in_s >= 0 else ""
            left = _span(abs(self.expires_in_s))
            parts.append(f"expired {left} ago" if self.expires_in_s < 0 else f"expires in {left}{due}")
        parts.append(f"from {self.source}" + ("" if self.age_s is None else f", here for {_span(self.age_s)}"))
        return ", ".join(parts)


class Source(Protocol):
    """The part of a mesh that this is made of."""

    clock: Clock


def certificate_statuses(mesh: Source, control: ControlPlane | None) -> tuple[CertificateStatus, ...]:
    """Return the certificates and roots in use; starts nothing."""
    if control is None:
        return ()
    since, now = control.certificates_since, mesh.clock()
    return tuple(
        _status(one, now - since[one.name, one.kind] if (one.name, one.kind) in since else None)
        for one in certificates_in_use(control.snapshot)
    )


def certificates_of_file(path: Path) -> tuple[CertificateStatus, ...]:
    """Return what is in a PEM file (each certificate for itself) or a SPIFFE bundle map.

    Raises:
        ConfigError: The file cannot be read, or holds neither.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    if content.lstrip()[:1] == b"{":
        try:
            value = TrustedCa(b"", bundles=parse_bundle_map(content))
        except ValueError as error:
            raise ConfigError(f"{path}: not a SPIFFE bundle map: {error}") from error
        return (_status(CertificateInUse(str(path), "roots", "file", value, facts_of(value)), None),)
    value = TrustedCa(content)
    found = facts_of(value)
    if not found:
        raise ConfigError(f"{path}: holds no PEM certificates")
    return tuple(_status(CertificateInUse(str(path), "certificate", "file", value, (one,)), None) for one in found)


def certificates_of_client_status(response: Any) -> tuple[CertificateStatus, ...]:
    """Return the secrets in a `ClientStatusResponse` (of meshlib's own protobuf pool): another process's, by CSDS."""
    found = []
    for config in response.config:
        for one in config.generic_xds_configs:
            if one.type_url == SDS and one.HasField("xds_config"):
                age_s = wall() - one.last_updated.ToNanoseconds() / 1e9 if one.HasField("last_updated") else None
                found.append(_status(_shown(one), age_s))
    return tuple(found)


def _shown(one: Any) -> CertificateInUse:
    """Read a secret whose key has been taken out."""
    message = message_class(SECRET_TYPE).FromString(one.xds_config.value)
    value: TlsCertificate | TrustedCa
    if message.HasField("tls_certificate"):
        kind, chain = "certificate", message.tls_certificate.certificate_chain
        value = TlsCertificate(chain.inline_bytes or chain.inline_string.encode(), b"")
    else:
        kind, value = "roots", validation_context(message.validation_context, "", Problems()).trust or TrustedCa(b"")
    return CertificateInUse(one.name, kind, source_of(one.name), value, facts_of(value))


def _status(one: CertificateInUse, age_s: float | None) -> CertificateStatus:
    facts, now = one.facts, wall()
    if facts is None:
        return CertificateStatus(one.name, one.kind, source=one.source, age_s=age_s)
    is_own = one.kind == "certificate"
    return CertificateStatus(
        name=one.name,
        kind=one.kind,
        spiffe_id=facts.spiffe_id if is_own else "",
        expires_in_s=facts.expires_at - now,
        source=one.source,
        names=facts.names,
        subject=facts.subject,
        issuer=facts.issuer,
        age_s=age_s,
        expires_at=facts.expires_at,
        is_due=now >= facts.warn_at,
        certificates=len(one.certificates),
        trust_domains=_domains(one.certificates),
    )


def _domains(certificates: Iterable[CertificateFacts]) -> tuple[str, ...]:
    return tuple(sorted({one.trust_domain for one in certificates if one.trust_domain}))


def _span(seconds: float) -> str:
    """Say a time for people."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
