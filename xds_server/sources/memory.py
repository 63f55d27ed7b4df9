"""Documents given in code: YAML text or parsed data, for tests and for programs that embed the server."""

from collections.abc import Mapping, Sequence
from typing import Any

from xds_server.model import Document, Finding, Position
from xds_server.sources.yaml_text import parse


def from_text(text: str, name: str = "<memory>") -> tuple[tuple[Document, ...], tuple[Finding, ...]]:
    """Parse YAML or JSON text as `sources.files` would, with `name` in place of the file's name."""
    return parse(text, name)


def from_data(documents: Sequence[Mapping[str, Any]], name: str = "<memory>") -> tuple[Document, ...]:
    """Wrap parsed documents. They have no places of their own, so each is "on the line" of its index, from 1."""
    return tuple(
        Document(content=content, positions={(): Position(name, index, 1)})
        for index, content in enumerate(documents, start=1)
    )
