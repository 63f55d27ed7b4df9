"""Renders substitution formats of header values, hosts and paths: `%REQ(x-user)%`, `%ROUTE_NAME%`, `%%`.

What may be written is decided in `meshlib.substitution`, times are written by `meshlib.routing.time_format`. Nothing in a client sets dynamic metadata or filter state, so
these render as what is absent, as they do in an Envoy without a filter that sets them.

Source: Envoy `SubstitutionFormatParser` and its formatters.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import unquote

from meshlib.model.profile import GRPC
from meshlib.model.request import Moment
from meshlib.routing.format_upstream import of_connection, of_endpoint, of_status
from meshlib.routing.scene import VIA_UPSTREAM, Facts, Scene
from meshlib.routing.time_format import compile_time
from meshlib.substitution import Command, header_names, parse_format, path_options

__all__ = ["VIA_UPSTREAM", "Facts", "Formatter", "Scene", "compile_format", "compile_value"]

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_VISIBLE: Final = re.compile(r"%(2[1-9A-Fa-f]|[3-6][0-9A-Fa-f]|7[0-9A-Ea-e])")
"""What `%QUERY_PARAMS(DECODED)%` decodes: neither blanks nor control characters."""
_NUMBERS: Final = frozenset(
    {
        "DURATION",
        "GRPC_STATUS_NUMBER",
        "RESPONSE_CODE",
        "RESPONSE_DURATION",
        "UPSTREAM_LOCAL_PORT",
        "UPSTREAM_REMOTE_PORT",
        "UPSTREAM_REQUEST_ATTEMPT_COUNT",
    }
)
_METADATA_COMMANDS: Final = {"CLUSTER_METADATA": "CLUSTER", "UPSTREAM_METADATA": "UPSTREAM_HOST"}
_LONG_FLAGS: Final = {
    "DC": "DownstreamConnectionTermination", "DI": "DelayInjected", "DO": "DropOverLoad", "FI": "FaultInjected",
    "NC": "NoClusterFound", "NR": "NoRouteFound", "RL": "RateLimited", "SI": "StreamIdleTimeout",
    "UC": "UpstreamConnectionTermination", "UDO": "UnconditionalDropOverload", "UF": "UpstreamConnectionFailure",
    "UH": "NoHealthyUpstream", "UMSDR": "UpstreamMaxStreamDurationReached", "UO": "UpstreamOverflow",
    "UPE": "UpstreamProtocolError", "UR": "UpstreamRemoteReset", "URX": "UpstreamRetryLimitExceeded",
    "UT": "UpstreamRequestTimeout",
}  # fmt: skip


Formatter = Callable[[Scene], str]
_Reader = Callable[[Scene], str | None]
"""None: what it reads is absent."""


def _header_of_request(main: str, alternative: str = "") -> _Reader:
    def read(scene: Scene) -> str | None:
        head = scene.head
        if head is None:
            return None
        values = (head.values(main) if main else ()) or (head.values(alternative) if alternative else ())
        return values[0] if values else None

    return read


def _header_of_response(main: str, alternative: str) -> _Reader:
    if main == ":status":
        return lambda scene: str(scene.line or scene.status) if scene.line or scene.status else None

    def read(scene: Scene) -> str | None:
        response = scene.response
        if response is None:
            return None
        values = response.all(main) or (response.all(alternative) if alternative else ())
        return values[0] if values else None

    return read


def _query_parameter(name: str) -> _Reader:
    """Unlike conditions on queries, this command reads names and values decoded.

    A value with control characters renders as nothing: `%0d%0a` in a query must not become the end of a header.
    """

    def read(scene: Scene) -> str | None:
        if scene.head is None:
            return None
        for pair in scene.head.path.partition("?")[2].split("&"):
            key, _, value = pair.partition("=")
            if unquote(key, "latin-1") == name:
                decoded = unquote(value, "latin-1")
                return None if _CONTROL.search(decoded) else decoded
        return None

    return read


def _query(argument: str) -> _Reader:
    def read(scene: Scene) -> str | None:
        query = "" if scene.head is None else scene.head.path.partition("?")[2]
        if argument == "DECODED":
            query = _VISIBLE.sub(lambda found: chr(int(found[1], 16)), query)
        return query or None

    return read


def _path(argument: str) -> _Reader:
    with_query, which = path_options(argument)

    def read(scene: Scene) -> str | None:
        head = scene.head
        if head is None:
            return None
        path = head.headers.get("x-envoy-original-path") if which != "PATH" else None
        if path is None:
            if which == "ORIG":
                return None
            path = head.path
        return path if with_query else path.partition("?")[0]

    return read


def _render_value(value: object) -> str | None:
    """Text of a metadata value, as Envoy writes it: strings bare, everything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(_plain(value), separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return int(value)
    return value


def _find(metadata: Mapping[str, Mapping[str, object]], keys: list[str]) -> object:
    found: object = metadata
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _metadata_reader(command: Command, facts: Facts) -> Callable[[Scene], object]:
    """Compile what reads a value of metadata, not yet rendered."""
    source, _, path = command.argument.partition(":")
    if command.name in _METADATA_COMMANDS:
        source, path = _METADATA_COMMANDS[command.name], command.argument
    keys = path.split(":")
    if source == "UPSTREAM_HOST":
        return lambda scene: None if scene.endpoint is None else _find(scene.endpoint.metadata, keys)
    if source == "CLUSTER":
        return _cluster_metadata(keys, facts)
    sources = {"LISTENER": facts.listener_metadata, "ROUTE": facts.metadata, "VIRTUAL_HOST": facts.host_metadata}
    found = _find(sources[source], keys) if source in sources else None
    return lambda scene: found


def _cluster_name(facts: Facts) -> str | _Reader | None:
    return (facts.cluster or None) if facts.cluster is not None else _header_of_request(facts.cluster_header)


def _cluster_metadata(keys: list[str], facts: Facts) -> Callable[[Scene], object]:
    """Compile what reads metadata of the route's cluster: clusters change without their routes."""
    facts.met.add("CLUSTER_METADATA")
    named = _cluster_name(facts)

    def read(scene: Scene) -> object:
        moment = None if scene.head is None else scene.head.moment
        name = named(scene) if callable(named) else named
        return None if moment is None or not name else _find(moment.metadata_of(name), keys)

    return read


def _long_flags(scene: Scene) -> str:
    return ",".join(_LONG_FLAGS.get(flag, flag) for flag in scene.flag.split(",")) if scene.flag else "-"


def _protocol(scene: Scene) -> str:
    # There is no connection from our caller: what counts is what the call is.
    return "HTTP/2" if scene.head is not None and scene.head.profile is GRPC else "HTTP/1.1"


def _of_the_moment(read: Callable[[Moment], str]) -> _Reader:
    def of_scene(scene: Scene) -> str | None:
        moment = None if scene.head is None else scene.head.moment
        return None if moment is None else read(moment) or None

    return of_scene


def _response_duration(scene: Scene) -> str | None:
    # What a service answered is written as soon as it has come.
    return _duration(scene) if scene.is_answered else None


_duration: Final = _of_the_moment(lambda moment: str(max(0, moment.now_us - moment.started_us) // 1000))


def _stream_id(scene: Scene) -> str | None:
    head = scene.head
    if head is None:
        return None
    return head.headers.get("x-request-id") or (None if head.moment is None else head.moment.call_id)


def _time(command: Command) -> _Reader:
    write = compile_time(command.argument, is_local=command.name.endswith("_LOCAL"))
    if command.name.startswith("EMIT"):
        return _of_the_moment(lambda moment: write(moment.now_us))
    return _of_the_moment(lambda moment: write(moment.started_us))


def _first(commands: tuple[Command, ...], facts: Facts) -> _Reader:
    readers = tuple(_read_cut(command, facts) for command in commands)
    return lambda scene: next((value for read in readers if (value := read(scene)) is not None), None)


def _read_cut(command: Command, facts: Facts) -> _Reader:
    """Compile a command to what reads its value, as long as it may be."""
    found, length = _compile_command(command, facts), command.length
    if found is None or isinstance(found, str):
        return lambda scene: None if found is None else found[:length]
    return lambda scene: None if (text := found(scene)) is None else text[:length]


def _compile_command(command: Command, facts: Facts) -> str | _Reader | None:
    """Return the text if it is the same for every request, None if it is always absent, else what reads it."""
    argument = command.argument
    facts.met.add(command.name)
    match command.name:
        case "COALESCE":
            return _first(command.choices, facts)
        case "HOSTNAME":
            return _of_the_moment(lambda moment: moment.hostname)
        case "START_TIME" | "START_TIME_LOCAL" | "EMIT_TIME" | "EMIT_TIME_LOCAL":
            return _time(command)
        case "ACCESS_LOG_TYPE":
            return "NotSet"
        case "REQ" | "REQUEST_HEADER":
            return _header_of_request(*header_names(argument))
        case "RESP" | "RESPONSE_HEADER":
            return _header_of_response(*header_names(argument))
        case "ROUTE_NAME":
            return facts.route_name or None
        case "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW":
            return _cluster_name(facts)
        case "LISTENER_NAME":
            return facts.listener or None
        case "DURATION":
            return _duration
        case "RESPONSE_DURATION":
            return _response_duration
        case "STREAM_ID":
            return _stream_id
        case "UNIQUE_ID":
            return _of_the_moment(Moment.new_id)
        case "GRPC_STATUS" | "GRPC_STATUS_NUMBER":
            return of_status(argument if command.name == "GRPC_STATUS" else "NUMBER")
        case "PROTOCOL":
            return _protocol
        case "QUERY_PARAM":
            return _query_parameter(argument)
        case "QUERY_PARAMS":
            return _query(argument)
        case "PATH":
            return _path(argument)
        case "METADATA" | "CLUSTER_METADATA" | "UPSTREAM_METADATA":
            read = _metadata_reader(command, facts)
            return lambda scene: _render_value(read(scene))
        case "LOCAL_REPLY_BODY":
            return lambda scene: scene.body.decode("latin-1")
        case "RESPONSE_CODE":
            return lambda scene: str(scene.status)
        case "RESPONSE_CODE_DETAILS":
            return lambda scene: scene.details or None
        case "RESPONSE_FLAGS":
            return lambda scene: scene.flag or "-"
        case "RESPONSE_FLAGS_LONG":
            return _long_flags
        case "UPSTREAM_REQUEST_ATTEMPT_COUNT":
            return lambda scene: str(scene.attempts)
        case "DYNAMIC_METADATA" | "FILTER_STATE" | "TRAILER" | "RESPONSE_TRAILER":
            return None
        case name if name == "UPSTREAM_PROTOCOL" or name.startswith("UPSTREAM_LOCAL_"):
            return of_connection(name.removeprefix("UPSTREAM_"))
        case name:
            return of_endpoint(name.removeprefix("UPSTREAM_"))


def compile_format(text: str, facts: Facts, *, absent: str = "") -> str | Formatter:
    """Compile a format.

    Args:
        absent: What stands for a value that is not there.

    Returns:
        The text itself when it is the same for every request, else a function.

    Raises:
        ValueError: An unknown command or bad syntax; the text says which.
    """
    parts: list[str | Formatter] = []
    for piece in parse_format(text):
        if isinstance(piece, str):
            parts.append(piece)
            continue
        found = _compile_command(piece, facts)
        if found is None:
            parts.append(absent)
        elif isinstance(found, str):
            parts.append(found[: piece.length])
        else:
            parts.append(_finished(found, piece.length, absent))
    if all(isinstance(part, str) for part in parts):
        return "".join(part for part in parts if isinstance(part, str))
    kept = tuple(part for part in parts if part)
    if len(kept) == 1 and not isinstance(kept[0], str):
        return kept[0]
    return lambda scene: "".join(part if isinstance(part, str) else part(scene) for part in kept)


def compile_value(text: str, facts: Facts, *, absent: str) -> Callable[[Scene], object]:
    """Compile a format whose value goes into JSON: of a single command it has the command's type; None: it is absent.

    Raises:
        ValueError: As for `compile_format`.
    """
    parts = parse_format(text)
    if len(parts) != 1 or isinstance(parts[0], str):
        made = compile_format(text, facts, absent=absent)
        return (lambda scene: made) if isinstance(made, str) else made
    return _compile_typed(parts[0], facts)


def _compile_typed(command: Command, facts: Facts) -> Callable[[Scene], object]:
    length = command.length
    if command.name == "COALESCE":
        readers = tuple(_compile_typed(choice, facts) for choice in command.choices)
        return lambda scene: _cut(next((value for read in readers if (value := read(scene)) is not None), None), length)
    if command.name in ("METADATA", *_METADATA_COMMANDS) and length is None:
        find = _metadata_reader(command, facts)
        return lambda scene: _plain(find(scene))
    read = _read_cut(command, facts)
    if command.name in _NUMBERS:
        return lambda scene: None if (text := read(scene)) is None else int(text)
    return read


def _cut(value: object, length: int | None) -> object:
    return value[:length] if isinstance(value, str) else value


def _finished(read: _Reader, length: int | None, absent: str) -> Formatter:
    def render(scene: Scene) -> str:
        value = read(scene)
        return absent if value is None else value[:length]

    return render
