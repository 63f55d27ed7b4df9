"""Where a fact of an explanation comes from: the resource, and the document that its author wrote."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Fact", "fact"]

ORIGIN = "meshlib"
"""The namespace of filter metadata in which a management server says what a resource was made from. `xds-server` does."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Attributes:
    type: `LDS`, `RDS`, `CDS` or `EDS`; `virtual host` or `route` for a part of a resource.
    version: Of the resource; empty for parts, and where none is known.
    config: What it was made from, as its author calls it, e.g. `VirtualService default/shop`; or empty.
    source: `file:line` there; or empty.
    """

    type: str
    name: str
    version: str = ""
    config: str = ""
    source: str = ""

    @property
    def label(self) -> str:
        """Type and name."""
        return f"{self.type} {self.name}"

    def __str__(self) -> str:
        made = " ".join(part for part in (self.config, f"({self.source})" if self.source else "") if part)
        version = f" version {self.version}" if self.version else ""
        return f"{self.label}{version}{f' from {made}' if made else ''}"


def fact(kind: str, name: str, version: str = "", metadata: Mapping[str, Mapping[str, object]] | None = None) -> Fact:
    """Make a fact; what the metadata says of its origin is taken as it is, cut to a line."""
    origin = (metadata or {}).get(ORIGIN, {})
    return Fact(kind, name, version, _text(origin.get("config")), _text(origin.get("source")))


def _text(value: object) -> str:
    return value.partition("\n")[0][:200] if isinstance(value, str) else ""
