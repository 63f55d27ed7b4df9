"""Substitution formats of header values: `%REQ(x-user)%`, `%ROUTE_NAME%`, `%%`.

Supported are the commands that have a meaning in a client before an endpoint is chosen. Any other command is an error
when the configuration is compiled; `check_format` lets the decoder say so with the field's path.

Source: Envoy `SubstitutionFormatParser`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from meshlib.model.request import Headers, RequestHead

__all__ = ["COMMANDS", "Facts", "Formatter", "check_format", "compile_format"]

Formatter = Callable[[RequestHead | None, Headers | None], str]
"""Renders a value for a request head and, on the way back, response headers. What is absent renders as nothing."""

COMMANDS = (
    "PROTOCOL",
    "QUERY_PARAM",
    "REQ",
    "REQUEST_HEADER",
    "RESP",
    "RESPONSE_HEADER",
    "ROUTE_NAME",
    "UPSTREAM_CLUSTER",
    "UPSTREAM_CLUSTER_RAW",
)
_COMMAND = re.compile(r"%(?P<name>[A-Z0-9_]+)(?:\((?P<args>[^)]*)\))?(?::(?P<length>[0-9]+))?%")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_WITHOUT_ARGUMENT = frozenset({"PROTOCOL", "ROUTE_NAME", "UPSTREAM_CLUSTER", "UPSTREAM_CLUSTER_RAW"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a route is compiled.

    Attributes:
        cluster: None: the request names it (`cluster_header`).
        cluster_header: That header.
    """

    route_name: str = ""
    cluster: str | None = ""
    cluster_header: str = ""


def _names(name: str, args: str | None) -> tuple[str, str]:
    """Split `X?ALT` of a header command."""
    main, _, alternative = (args or "").partition("?")
    if not main:
        raise ValueError(f"%{name}% needs a header name in parentheses")
    return main.lower(), alternative.lower()


def _header_of_request(main: str, alternative: str) -> Formatter:
    def render(head: RequestHead | None, response: Headers | None) -> str:
        if head is None:
            return ""
        values = head.values(main) or (head.values(alternative) if alternative else ())
        return values[0] if values else ""

    return render


def _header_of_response(main: str, alternative: str) -> Formatter:
    def render(head: RequestHead | None, response: Headers | None) -> str:
        if response is None:
            return ""
        values = response.all(main) or (response.all(alternative) if alternative else ())
        return values[0] if values else ""

    return render


def _query_parameter(name: str) -> Formatter:
    """Unlike conditions on queries, this command reads names and values decoded.

    A value with control characters renders as nothing: `%0d%0a` in a query must not become the end of a header.
    """

    def render(head: RequestHead | None, response: Headers | None) -> str:
        if head is None:
            return ""
        for pair in head.path.partition("?")[2].split("&"):
            key, _, value = pair.partition("=")
            if unquote(key, "latin-1") == name:
                decoded = unquote(value, "latin-1")
                return "" if _CONTROL.search(decoded) else decoded
        return ""

    return render


def _compile_command(name: str, args: str | None, facts: Facts) -> str | Formatter:
    if name in _WITHOUT_ARGUMENT and args is not None:
        raise ValueError(f"%{name}% takes no argument")
    match name:
        case "REQ" | "REQUEST_HEADER":
            return _header_of_request(*_names(name, args))
        case "RESP" | "RESPONSE_HEADER":
            return _header_of_response(*_names(name, args))
        case "ROUTE_NAME":
            return facts.route_name
        case "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW":
            return facts.cluster if facts.cluster is not None else _header_of_request(facts.cluster_header, "")
        case "PROTOCOL":
            # There is no connection from our caller: what counts is what the call is.
            return lambda head, response: "HTTP/2" if head is not None and head.is_grpc else "HTTP/1.1"
        case "QUERY_PARAM":
            if not args:
                raise ValueError("%QUERY_PARAM% needs a name in parentheses")
            return _query_parameter(args)
        case _:
            raise ValueError(f"%{name}% is not supported (supported: {', '.join(COMMANDS)})")


def compile_format(text: str, facts: Facts) -> str | Formatter:
    """Compile a format.

    Returns:
        The text itself when it is the same for every request, else a function.

    Raises:
        ValueError: An unknown command or bad syntax; the text says which.
    """
    parts: list[str | Formatter] = []
    position = 0
    while (percent := text.find("%", position)) >= 0:
        parts.append(text[position:percent])
        if text.startswith("%%", percent):
            parts.append("%")
            position = percent + 2
            continue
        command = _COMMAND.match(text, percent)
        if command is None:
            raise ValueError(f"bad substitution format at {text[percent:]!r}")
        position = command.end()
        part = _compile_command(command["name"], command["args"], facts)
        if command["length"] is not None:
            part = _cut(part, int(command["length"]))
        parts.append(part)
    parts.append(text[position:])
    if all(isinstance(part, str) for part in parts):
        return "".join(part for part in parts if isinstance(part, str))
    kept = tuple(part for part in parts if part)
    if len(kept) == 1 and not isinstance(kept[0], str):
        return kept[0]
    return lambda head, response: "".join(part if isinstance(part, str) else part(head, response) for part in kept)


def _cut(part: str | Formatter, length: int) -> str | Formatter:
    if isinstance(part, str):
        return part[:length]
    return lambda head, response: part(head, response)[:length]


def check_format(text: str) -> str | None:
    """Return what is wrong with a format, or None when it can be compiled."""
    try:
        compile_format(text, Facts())
    except ValueError as error:
        return str(error)
    return None
