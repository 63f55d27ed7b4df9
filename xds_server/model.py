"""What the server's parts hand to each other: documents and instances in, resources and findings out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from google.protobuf.message import Message


class Profile(StrEnum):
    """Which dialect of xDS a client is sent; decided from its node."""

    ENVOY = "envoy"
    GRPC = "grpc"
    MESHLIB = "meshlib"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client is, as far as that decides what it is sent.

    Attributes:
        locality: Region, zone and sub-zone; empty ones are not known.
        labels: Of its network and cluster, sorted.
    """

    locality: tuple[str, str, str] = ("", "", "")
    labels: tuple[tuple[str, str], ...] = ()


NOWHERE = Place()
LOCALITY_LABELS = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone")
"""Labels that say the same as a locality."""
PLACE_LABELS = ("topology.istio.io/cluster", "topology.istio.io/network")
"""Further labels by which clients are told apart, sorted; each other one would make more kinds of clients."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in an input file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One complaint about the input. Errors stop a publish; warnings and infos are reported.

    Attributes:
        code: Stable identifier: Istio's where its meaning is the same (`IST0101`), else ours (`MESH0001`).
        message: What is wrong and what to do about it.
    """

    severity: Severity
    code: str
    message: str
    position: Position | None = None

    def __str__(self) -> str:
        where = f"{self.position}: " if self.position else ""
        return f"{where}{self.severity}: {self.message} [{self.code}]"


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML or JSON document with the position of every field.

    Attributes:
        content: The parsed document.
        positions: Position of each field, keyed by its path: `("spec", "http", 0, "fault")`; `()` is the document.
    """

    content: Mapping[str, Any]
    positions: Mapping[tuple[str | int, ...], Position] = field(repr=False)

    def position(self, *path: str | int) -> Position | None:
        """Return the position of a field, or of its nearest known parent."""
        for end in range(len(path), -1, -1):
            if (found := self.positions.get(path[:end])) is not None:
                return found
        return None


@dataclass(frozen=True, slots=True)
class Instance:
    """One running copy of a service, from a registration.

    Attributes:
        id: Chosen by whoever registered it; unique.
        address: IP address that it listens on.
        port: Port that it listens on.
        service_port: Port that clients name; cluster names carry it.
        labels: Sorted pairs; subsets and selectors match them. `app` defaults to the service's name.
        service_account: Its identity within the namespace; empty: it has none.
        weight: Load-balancing weight, at least 1.
        ready: Clients may choose it; before that it only learns what applies to it.
    """

    id: str
    service: str
    namespace: str
    address: str
    port: int
    service_port: int = 80
    protocol: str = "http"
    labels: tuple[tuple[str, str], ...] = ()
    service_account: str = ""
    weight: int = 1
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    ready: bool = True


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one kind of client is to be sent.

    Attributes:
        resources: By type URL, then name. Messages of the pool in `meshlib.protos`.
        findings: In the order of the input files; with an error among them the rest must not be published.
        depends_on_place: Clients of another place are to be sent something else.
    """

    resources: Mapping[str, Mapping[str, Message]]
    findings: tuple[Finding, ...] = ()
    depends_on_place: bool = False
