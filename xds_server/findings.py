"""Findings as JSON data."""

from typing import Any

from xds_server.model import Finding


def finding_to_dict(finding: Finding) -> dict[str, Any]:
    """Return a finding's fields; file, line and column are null when it has no place."""
    position = finding.position
    return {
        "severity": str(finding.severity),
        "code": finding.code,
        "message": finding.message,
        "file": position.file if position else None,
        "line": position.line if position else None,
        "column": position.column if position else None,
    }
