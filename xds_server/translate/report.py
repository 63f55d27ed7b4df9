"""Where findings are collected while documents are read and translated."""

from dataclasses import dataclass, field

from xds_server.codes import PROFILE_DROPS_FEATURE
from xds_server.model import Finding, Position, Profile, Severity


def _order(finding: Finding) -> tuple[bool, str, int, int, str, str]:
    place = finding.position
    if place is None:  # about no document: after all that are
        return (True, "", 0, 0, finding.code, finding.message)
    return (False, place.file, place.line, place.column, finding.code, finding.message)


@dataclass(slots=True)
class Report:
    """Findings so far; a repeated one counts once."""

    _findings: dict[Finding, None] = field(default_factory=dict)
    _dropped: set[str] = field(default_factory=set)

    def error(self, code: str, message: str, position: Position | None = None) -> None:
        self._findings[Finding(Severity.ERROR, code, message, position)] = None

    def warning(self, code: str, message: str, position: Position | None = None) -> None:
        self._findings[Finding(Severity.WARNING, code, message, position)] = None

    def info(self, code: str, message: str, position: Position | None = None) -> None:
        self._findings[Finding(Severity.INFO, code, message, position)] = None

    def dropped(self, profile: str, feature: str, instead: str, position: Position | None = None) -> None:
        """Note, once per feature, that clients of a profile do something else than the documents say."""
        if feature not in self._dropped:
            self._dropped.add(feature)
            self.info(PROFILE_DROPS_FEATURE, f"profile {profile}: {feature}: {instead}", position)

    def dropped_by_grpc_calls(self, feature: str, instead: str, position: Position | None = None) -> None:
        """Note that meshlib's gRPC calls to a gRPC service do something else; its HTTP clients do as the documents say."""
        self.dropped(Profile.MESHLIB, f"{feature} of a gRPC service", f"in gRPC calls {instead}", position)

    def add(self, findings: "tuple[Finding, ...]") -> None:
        self._findings.update(dict.fromkeys(findings))

    def findings(self) -> tuple[Finding, ...]:
        """Return all findings by file, line and column."""
        return tuple(sorted(self._findings, key=_order))
