"""Substitution formats such as `%REQ(x-user)%` or `%METADATA(ROUTE:com.example:team)%`: what may be written.

Decoders ask whether a format is one, routing renders it; both read it here. Supported are the commands that mean
something in a client. A command that Envoy does not know is refused as Envoy refuses it; one that Envoy knows and a
client has no answer to (bytes on the wire, its caller's connection) is refused by name, and so is `ENVIRONMENT`: in a
process that is the application's, whose secrets are not the management server's to send anywhere.

Source: Envoy `SubstitutionFormatParser`; which commands take an argument or a length was asked of Envoy 1.40.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

__all__ = [
    "COMMANDS",
    "OF_THE_MOMENT",
    "Command",
    "check_format",
    "header_names",
    "parse_format",
    "path_options",
]

_HEADER: Final = "header"
_NEEDED: Final = "needed"
_OPTIONAL: Final = "optional"
_NOTHING: Final = "nothing"

COMMANDS: Final = {
    "ACCESS_LOG_TYPE": _NOTHING,
    "CLUSTER_METADATA": _NEEDED,
    "COALESCE": _NEEDED,
    "DURATION": _NOTHING,
    "DYNAMIC_METADATA": _NEEDED,
    "EMIT_TIME": _OPTIONAL,
    "EMIT_TIME_LOCAL": _OPTIONAL,
    "FILTER_STATE": _NEEDED,
    "GRPC_STATUS": _OPTIONAL,
    "GRPC_STATUS_NUMBER": _NOTHING,
    "HOSTNAME": _NOTHING,
    "LISTENER_NAME": _NOTHING,
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
    "RESPONSE_DURATION": _NOTHING,
    "RESPONSE_FLAGS": _NOTHING,
    "RESPONSE_FLAGS_LONG": _NOTHING,
    "RESPONSE_HEADER": _HEADER,
    "RESPONSE_TRAILER": _HEADER,
    "ROUTE_NAME": _NOTHING,
    "START_TIME": _OPTIONAL,
    "START_TIME_LOCAL": _OPTIONAL,
    "STREAM_ID": _NOTHING,
    "TRAILER": _HEADER,
    "UNIQUE_ID": _NOTHING,
    "UPSTREAM_CLUSTER": _NOTHING,
    "UPSTREAM_CLUSTER_RAW": _NOTHING,
    "UPSTREAM_HOST": _NOTHING,
    "UPSTREAM_HOSTS_ATTEMPTED": _NOTHING,
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT": _NOTHING,
    "UPSTREAM_HOST_NAMES_ATTEMPTED": _NOTHING,
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT": _NOTHING,
    "UPSTREAM_HOST_NAME": _NOTHING,
    "UPSTREAM_HOST_NAME_WITHOUT_PORT": _NOTHING,
    "UPSTREAM_LOCAL_ADDRESS": _NOTHING,
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": _OPTIONAL,
    "UPSTREAM_LOCAL_PORT": _NOTHING,
    "UPSTREAM_METADATA": _NEEDED,
    "UPSTREAM_PROTOCOL": _NOTHING,
    "UPSTREAM_REMOTE_ADDRESS": _NOTHING,
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": _NOTHING,
    "UPSTREAM_REMOTE_PORT": _NOTHING,
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": _NOTHING,
}
"""What is rendered, and what each says of its argument."""

_TIMES: Final = frozenset({"EMIT_TIME", "EMIT_TIME_LOCAL", "START_TIME", "START_TIME_LOCAL"})
OF_THE_MOMENT: Final = _TIMES | {
    "CHANCE",
    "CLUSTER_METADATA",
    "DURATION",
    "HOSTNAME",
    "RESPONSE_DURATION",
    "STREAM_ID",
    "UNIQUE_ID",
}
"""What speaks of the clock, of this machine, of chance, or of clusters as they are now. `CHANCE` is no command, but
conditions are of it; `METADATA(CLUSTER:...)` counts as `CLUSTER_METADATA`."""

_COMMAND: Final = re.compile(r"%(?P<name>[A-Z0-9_]+)(?:\((?P<argument>[^)]*)\))?(?::(?P<length>[0-9]+))?%")
_HEADER_NAME: Final = re.compile(r":?[A-Za-z0-9!#$%&'*+.^_`|~-]*")
_PATH_QUERY: Final = frozenset({"", "WQ", "NQ"})
_PATH_WHICH: Final = frozenset({"", "ORIG", "PATH", "ORIG_OR_PATH"})
_QUERY_FORMS: Final = frozenset({"", "ORIG", "DECODED"})
_METADATA_OF: Final = (
    "CLUSTER",
    "DYNAMIC",
    "LISTENER",
    "LISTENER_FILTER_CHAIN",
    "ROUTE",
    "UPSTREAM_HOST",
    "VIRTUAL_HOST",
)
_STATUS_FORMS: Final = frozenset({"", "CAMEL_STRING", "SNAKE_STRING", "NUMBER"})
_WITHOUT_LENGTH: Final = _TIMES | {
    "CLUSTER_METADATA",
    "GRPC_STATUS",
    "RESPONSE_CODE_DETAILS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_METADATA",
}
# Flags and widths of glibc, which Envoy hands on to it.
_FLAGS: Final = re.compile(r"%(?:[1-9]?f|s|%|(?P<flag>[-_0^#1-9]))")
# As Envoy looks for them, which is not quite as it reads formats of times.
_NEW_LINE: Final = re.compile(r"\n|%[-_0^#]*[1-9]*[EO]?n")
MAX_LENGTH: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Command:
    """Attributes:
    argument: Empty: none was given.
    length: At most so many characters; None: all.
    choices: Of `COALESCE`: the first that has a value counts.
    """

    name: str
    argument: str = ""
    length: int | None = None
    choices: "tuple[Command, ...]" = ()


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
        length = None if found["length"] is None else min(int(found["length"]), MAX_LENGTH)
        parts.append(_command(found["name"], found["argument"] or "", length))
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


def _command(name: str, argument: str, length: int | None) -> Command:
    command = Command(name, argument, length)
    _check(command)
    return Command(name, argument, length, _choices(argument)) if name == "COALESCE" else command


def _choices(argument: str) -> tuple[Command, ...]:
    """Read the JSON in `%COALESCE({"operators": ["ROUTE_NAME", {"command": "REQ", "param": "x", "max_length": 9}]})%`."""
    try:
        read = json.loads(argument, parse_constant=_not_a_number, parse_int=_whole_number)
        argument.encode()
        json.dumps(read, ensure_ascii=False).encode()  # half of a character is none
    except (ValueError, RecursionError) as error:
        raise ValueError(f"%COALESCE% needs JSON: {error}") from error
    operators = read.get("operators") if isinstance(read, dict) else None
    if not isinstance(operators, list) or not operators:
        raise ValueError("%COALESCE% needs a JSON object with a list of operators that is not empty")
    return tuple(map(_choice, operators))


def _choice(entry: object) -> Command:
    if isinstance(entry, str):
        return _command(entry, "", None)
    if not isinstance(entry, dict):
        raise ValueError("an operator of %COALESCE% is the name of a command, or an object with one")
    name, argument, length = entry.get("command"), entry.get("param", ""), entry.get("max_length", MAX_LENGTH)
    if not isinstance(name, str):
        raise ValueError("an operator of %COALESCE% needs a command")
    if not isinstance(argument, str):
        raise ValueError("param of an operator of %COALESCE% must be a string")
    if not isinstance(length, int) or isinstance(length, bool) or length <= 0:
        raise ValueError("max_length of an operator of %COALESCE% must be a whole number above 0")
    return _command(name, argument, min(length, MAX_LENGTH) if "max_length" in entry else None)


def _not_a_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _whole_number(text: str) -> int | float:
    """As Envoy reads it: what does not fit into 64 bits is no whole number, and of the last bit nothing is known."""
    number = int(text)
    if 2**63 <= number < 2**64:
        raise ValueError(f"{text} is too large")
    return number if -(2**63) <= number < 2**63 else float(text)


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
        case "GRPC_STATUS" if argument not in _STATUS_FORMS:
            raise ValueError("%GRPC_STATUS% takes CAMEL_STRING, SNAKE_STRING or NUMBER")
        case "METADATA" if options[0] not in _METADATA_OF:
            raise ValueError(f"%METADATA% of {options[0]} is not supported (supported: {', '.join(_METADATA_OF)})")
        case _ if name in _TIMES:
            if _NEW_LINE.search(argument):
                raise ValueError(f"%{name}% has a line break")
            if any(found["flag"] for found in _FLAGS.finditer(argument)):
                raise ValueError(f"%{name}% takes no flags or widths of fields: {argument!r}")
        case "FILTER_STATE":
            key, form, *rest = (*options, "PLAIN") if len(options) == 1 else options
            if not key or form not in ("PLAIN", "TYPED", "FIELD") or len(rest) != (1 if form == "FIELD" else 0):
                raise ValueError("%FILTER_STATE% takes a key, then PLAIN, TYPED or FIELD:name")
