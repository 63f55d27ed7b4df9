"""Header mutations of routes, virtual hosts, route configurations and weighted clusters."""

import re
from typing import Any, Final

from meshlib.model.route import AppendAction, HeaderAdd, HeaderMutation
from meshlib.xds.decode_common import cover, join
from meshlib.xds.problems import Problems

__all__ = ["COMMANDS", "MUTATION_FIELDS", "format_fault", "header_mutation"]

MUTATION_FIELDS: Final = frozenset(
    {"request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove"}
)

# What the router can render. The folder that renders is not known here, so the list stands twice; a test holds them
# together.
_PLAIN: Final = frozenset({"PROTOCOL", "ROUTE_NAME", "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW"})
_HEADER_OPERATORS: Final = frozenset({"REQ", "REQUEST_HEADER", "RESP", "RESPONSE_HEADER"})
COMMANDS: Final = _PLAIN | _HEADER_OPERATORS | {"QUERY_PARAM"}

_COMMAND = re.compile(r"%([A-Z0-9_]+)(?:\(([^)]*)\))?(?::([0-9]+))?%")


def header_mutation(message: Any, path: str, problems: Problems) -> HeaderMutation:
    """Decode the four header fields that a route, virtual host, route configuration and weighted cluster share."""
    return HeaderMutation(
        request_remove=_removals(message, "request_headers_to_remove", path, problems),
        request_add=_additions(message, "request_headers_to_add", path, problems),
        response_remove=_removals(message, "response_headers_to_remove", path, problems),
        response_add=_additions(message, "response_headers_to_add", path, problems),
    )


def format_fault(text: str) -> str:
    """Return why a substitution format such as `%REQ(x-user)%` cannot be rendered, or the empty string."""
    position = 0
    while (position := text.find("%", position)) >= 0:
        if text.startswith("%%", position):
            position += 2
            continue
        command = _COMMAND.match(text, position)
        if command is None:
            return f"has a bad substitution format at {text[position:]!r}"
        name, argument, _ = command.groups()
        if name not in COMMANDS:
            return f"%{name}% is not supported"
        if name in _PLAIN and argument is not None:
            return f"%{name}% takes no argument"
        if name in _HEADER_OPERATORS and not (argument or "").partition("?")[0]:
            return f"%{name}% needs a header name in parentheses"
        if name == "QUERY_PARAM" and not argument:
            return "%QUERY_PARAM% needs a name in parentheses"
        position = command.end()
    return ""


def _removals(message: Any, name: str, path: str, problems: Problems) -> tuple[str, ...]:
    for index, header in enumerate(getattr(message, name)):
        _check_name(header, f"{join(path, name)}[{index}]", problems)
    return tuple(header.lower() for header in getattr(message, name))


def _additions(message: Any, name: str, path: str, problems: Problems) -> tuple[HeaderAdd, ...]:
    return tuple(
        _addition(option, f"{join(path, name)}[{index}]", problems)
        for index, option in enumerate(getattr(message, name))
    )


def _addition(option: Any, path: str, problems: Problems) -> HeaderAdd:
    used = frozenset({"header", "append", "append_action", "keep_empty_value"})
    cover(option, path, problems, used=used, harmless=frozenset())
    header = option.header
    _check_name(header.key, join(path, "header.key"), problems)
    value: str = header.value
    if header.raw_value:
        if value:
            problems.error(join(path, "header.raw_value"), "cannot be given together with value")
        # Header values are bytes; strings stand for them as Latin-1.
        value = header.raw_value.decode("latin-1")
    if fault := format_fault(value):
        problems.error(join(path, "header.value"), fault)
    action = AppendAction.APPEND_IF_EXISTS_OR_ADD
    try:
        action = AppendAction(option.append_action)
    except ValueError:
        problems.error(join(path, "append_action"), f"unknown value {option.append_action}")
    if option.HasField("append"):
        if action is not AppendAction.APPEND_IF_EXISTS_OR_ADD:
            problems.error(join(path, "append"), "cannot be given together with append_action")
        elif not option.append.value:
            action = AppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    return HeaderAdd(header.key.lower(), value, action, option.keep_empty_value)


def _check_name(name: str, path: str, problems: Problems) -> None:
    """Routing decides on the pseudo headers and the host, so Envoy lets no mutation touch them."""
    if name.startswith(":") or name.lower() == "host":
        problems.error(path, f"{name!r} may not be changed")
