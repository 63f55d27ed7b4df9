"""YAML (of which JSON is a subset) to `Document`s that know the line and column of every field.

The parser's node tree is walked rather than its finished data, because only nodes know where they stand. The walk is
bounded: an alias is expanded where it is used, so a few lines of aliases of aliases could otherwise become billions.
"""

from dataclasses import dataclass, field
from typing import Any

import yaml

from xds_server.codes import INVALID_YAML, YAML_DUPLICATE_KEY, YAML_TOO_LARGE
from xds_server.model import Document, Finding, Position, Severity
from xds_server.text import one_line

# A mesh of 1,000 services in one file has some 100,000 nodes; a document beyond this is a mistake or an attack.
MAX_NODES = 1_000_000
MAX_DEPTH = 100

# The parser's composer calls itself for each level, in C and without a limit: 100,000 brackets end the process.
COMPOSER_DEPTH = 500

FieldPath = tuple[str | int, ...]

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _TooLargeError(Exception):
    """A document beyond `MAX_NODES` or `MAX_DEPTH`; its argument is the node where that showed."""


@dataclass(slots=True)
class _Walk:
    """The state of turning one node tree into data and positions."""

    file: str
    constructor: Any
    positions: dict[FieldPath, Position] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    nodes: int = 0

    def place(self, node: Any) -> Position:
        return Position(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def value(self, node: Any, path: FieldPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _TooLargeError(node)
        self.positions.setdefault(path, self.place(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if node.tag == "tag:yaml.org,2002:timestamp":
            return node.value  # JSON, and so every API of Kubernetes, has no dates: 2024-01-01 is a string
        return self.constructor.construct_object(node)

    def mapping(self, node: Any, path: FieldPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.complain(key_node, INVALID_YAML, "a field's name must be a plain scalar")
                continue
            # The text as written: `on:` or `80:` as a name is the string, as in JSON.
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.complain(key_node, INVALID_YAML, "merge keys (<<) are not supported; write the fields out")
                continue
            if key in result:
                first = self.positions[(*path, key)]
                self.complain(key_node, YAML_DUPLICATE_KEY, f"field {key!r} is given twice, first in line {first.line}")
                continue
            # A field's place is where its name stands: that is what has to be edited, even when its value is absent.
            self.positions[(*path, key)] = self.place(key_node)
            result[key] = self.value(value_node, (*path, key))
        return result

    def complain(self, node: Any, code: str, message: str) -> None:
        self.findings.append(Finding(Severity.ERROR, code, message, self.place(node)))


def parse(text: str, file: str) -> tuple[tuple[Document, ...], tuple[Finding, ...]]:
    """Parse every document of a text.

    Args:
        text: YAML or JSON, one or more documents. Empty documents are left out.
        file: The name that positions carry.

    Returns:
        The documents before the first syntax error, and what is wrong with the text. Never raises on any text.
    """
    documents: list[Document] = []
    findings: list[Finding] = []
    if (deep := _too_deep(text)) is not None:
        message = f"nested more than {COMPOSER_DEPTH} levels deep"
        place = Position(file, deep.line + 1, deep.column + 1)
        return (), (Finding(Severity.ERROR, YAML_TOO_LARGE, message, place),)
    loader = _Loader("")
    try:
        nodes = yaml.compose_all(text, Loader=_Loader)
        for node in nodes:
            walk = _Walk(file, loader)
            try:
                content = walk.value(node, ())
            except _TooLargeError as error:
                place = walk.place(error.args[0])
                message = f"document has more than {MAX_NODES} fields or {MAX_DEPTH} levels once aliases are expanded"
                findings.append(Finding(Severity.ERROR, YAML_TOO_LARGE, message, place))
                continue
            except (yaml.YAMLError, ValueError) as error:
                findings.append(
                    Finding(
                        Severity.ERROR, INVALID_YAML, f"value cannot be read: {one_line(str(error))}", walk.place(node)
                    )
                )
                continue
            findings += walk.findings
            if isinstance(content, dict):
                documents.append(Document(content, walk.positions))
            elif content is not None:
                findings.append(
                    Finding(Severity.ERROR, INVALID_YAML, "a document must be a mapping of fields", walk.place(node))
                )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Position(file, mark.line + 1, mark.column + 1) if mark else Position(file, 1, 1)
        message = " ".join(part for part in (error.problem, error.context) if part)
        findings.append(Finding(Severity.ERROR, INVALID_YAML, f"YAML syntax: {message}", place))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        findings.append(Finding(Severity.ERROR, INVALID_YAML, f"YAML syntax: {error}", Position(file, 1, 1)))
    finally:
        loader.dispose()
    return tuple(documents), tuple(findings)


def _too_deep(text: str) -> Any:
    """Return the mark where a text goes below `COMPOSER_DEPTH`, or None. Costs a sixth of reading it."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > COMPOSER_DEPTH:
                    return event.start_mark
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except (yaml.YAMLError, ValueError) as error:
        # libyaml from 0.2.6 on has a limit of its own, and looks ahead: it is met before the events that would show ours.
        if isinstance(error, yaml.MarkedYAMLError) and "nesting depth" in (error.problem or ""):
            return error.problem_mark
        # Of anything else: reading it comes to the same place, and reports it.
    return None
