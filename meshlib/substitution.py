"""Substitution formats such as `%REQ(x-user)%` or `%METADATA(ROUTE:com.example:team)%`: what may be written.

Decoders ask whether a format is one, routing renders it; both read it here. Supported are the commands that mean
something in a client. A command that Envoy does not know is refused as Envoy refuses it; one that Envoy knows and a
client has no answer to (times of day, its own connection, the environment) is refused by name.

Source: Envoy `SubstitutionFormatParser`; which commands take an argument or a length was asked of Envoy 1.40.
"""

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["COMMANDS", "Command", "check_format", "header_names", "parse_format", "path_options"]

_HEADER: Final = "header"
_NEEDED: Final = "needed"
_OPTIONAL: Final = "optional"
_NOTHING: Final = "nothing"

COMMANDS: Final = {
    "DYNAMIC_METADATA": _NEEDED,
    "FILTER_STATE": _NEEDED,
    "LOCAL_REPLY_BODY": _NOTHING,
    "METADATA": _NEEDED,
    "PATH": _OPTIONAL,
    "PROTOCOL": _NOTHING,
    "QUERY_PARAM": _NEEDED,
    "QUERY_PARAMS": _OPTIONAL,
    "REQ": _HEADER,
    "REQUEST_HEADER": _HEADER,
    "RESP": _HEADER,
    "RESPONSE_CODE": _NOTHING,
    "RESPONSE_CODE_DETAILS": _OPTIONAL,
    "RESPONSE_FLAGS": _NOTHING,
    "RESPONSE_FLAGS_LONG": _NOTHING,
    "RESPONSE_HEADER": _HEADER,
    "RESPONSE_TRAILER": _HEADER,
    "ROUTE_NAME": _NOTHING,
    "TRAILER": _HEADER,
    "UPSTREAM_CLUSTER": _NOTHING,
    "UPSTREAM_CLUSTER_RAW": _NOTHING,
    "UPSTREAM_HOST": _NOTHING,
    "UPSTREAM_HOST_NAME": _NOTHING,
    "UPSTREAM_HOST_NAME_WITHOUT_PORT": _NOTHING,
    "UPSTREAM_METADATA": _NEEDED,
    "UPSTREAM_REMOTE_ADDRESS": _NOTHING,
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": _NOTHING,
    "UPSTREAM_REMOTE_PORT": _NOTHING,
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": _NOTHING,
}
"""What is rendered, and what each says of its argument."""

_COMMAND: Final = re.compile(r"%(?P<name>[A-Z0-9_]+)(?:\((?P<argument>[^)]*)\))?(?::(?P<length>[0-9]+))?%")
_HEADER_NAME: Final = re.compile(r":?[A-Za-z0-9!#$%&'*+.^_`|~-]*")
_PATH_QUERY: Final = frozenset({"", "WQ", "NQ"})
_PATH_WHICH: Final = frozenset({"", "ORIG", "PATH", "ORIG_OR_PATH"})
_QUERY_FORMS: Final = frozenset({"", "ORIG", "DECODED"})
_METADATA_OF: Final = ("DYNAMIC", "ROUTE", "UPSTREAM_HOST", "VIRTUAL_HOST")
_WITHOUT_LENGTH: Final = frozenset({"RESPONSE_CODE_DETAILS", "UPSTREAM_METADATA"})
MAX_LENGTH: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Command:
    """Attributes:
    argument: Empty: none was given.
    length: At most so many characters; None: all.
    """

    name: str
    argument: str = ""
    length: int | None = None


def parse_format(text: str) -> tuple[str | Command, ...]:
    """Split a format into texts and commands; `%%` is a per cent sign.

    Raises:
        ValueError: An unknown command or bad syntax; the text says which.
    """
    parts: list[str | Command] = []
    position = 0
    while (percent := text.find("%", position)) >= 0:
        parts.append(text[position:percent])
        if text.startswith("%%", percent):
            parts.append("%")
            position = percent + 2
            continue
        found = _COMMAND.match(text, percent)
        if found is None:
            raise ValueError(f"bad substitution format at {text[percent:]!r}")
        position = found.end()
        length = found["length"]
        command = Command(
            found["name"], found["argument"] or "", None if length is None else min(int(length), MAX_LENGTH)
        )
        _check(command)
        parts.append(command)
    parts.append(text[position:])
    return tuple(part for part in parts if part != "")


def check_format(text: str) -> str:
    """Return what is wrong with a format, or the empty string."""
    try:
        parse_format(text)
    except ValueError as error:
        return str(error)
    return ""


def header_names(argument: str) -> tuple[str, str]:
    """Split `X?ALT` of a header command; names in lower case, empty where none is given."""
    main, _, alternative = argument.partition("?")
    return main.lower(), alternative.lower()


def path_options(argument: str) -> tuple[bool, str]:
    """Return whether `%PATH(...)%` wants the query, and which path: `ORIG`, `PATH` or `ORIG_OR_PATH`."""
    query, _, which = argument.partition(":")
    return query != "NQ", which or "ORIG_OR_PATH"


def _check(command: Command) -> None:
    name, argument = command.name, command.argument
    rule = COMMANDS.get(name)
    if rule is None:
        raise ValueError(f"%{name}% is not supported (supported: {', '.join(COMMANDS)})")
    if rule == _NOTHING and (argument or command.length is not None):
        raise ValueError(f"%{name}% takes neither an argument nor a length")
    if rule in (_NEEDED, _HEADER) and not argument:
        raise ValueError(f"%{name}% needs {'a header name' if rule == _HEADER else 'an argument'} in parentheses")
    if rule == _HEADER:
        if argument.count("?") > 1:
            raise ValueError(f"%{name}% takes one alternative, not {argument!r}")
        if not all(_HEADER_NAME.fullmatch(part) for part in argument.split("?")):
            raise ValueError(f"%{name}% needs names of headers, not {argument!r}")
    if name in _WITHOUT_LENGTH and command.length is not None:
        raise ValueError(f"%{name}% takes no length")
    _check_options(name, argument, argument.split(":"))


def _check_options(name: str, argument: str, options: list[str]) -> None:
    match name:
        case "PATH" if options[0] not in _PATH_QUERY or (len(options) > 1 and options[1] not in _PATH_WHICH):
            raise ValueError("%PATH% takes WQ or NQ, then ORIG, PATH or ORIG_OR_PATH")
        case "QUERY_PARAMS" if argument not in _QUERY_FORMS:
            raise ValueError("%QUERY_PARAMS% takes ORIG or DECODED")
        case "METADATA" if options[0] not in _METADATA_OF:
            raise ValueError(f"%METADATA% of {options[0]} is not supported (supported: {', '.join(_METADATA_OF)})")
        case "FILTER_STATE":
            key, form, *rest = (*options, "PLAIN") if len(options) == 1 else options
            if not key or form not in ("PLAIN", "TYPED", "FIELD") or len(rest) != (1 if form == "FIELD" else 0):
                raise ValueError("%FILTER_STATE% takes a key, then PLAIN, TYPED or FIELD:name")
