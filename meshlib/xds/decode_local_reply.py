"""`local_reply_config` of a connection manager: how answers of the mesh itself are rewritten."""

from typing import Any, Final

from meshlib.model.local_reply import (
    AllOf,
    AnyOf,
    BodyFormat,
    Comparison,
    HasFlag,
    JsonObject,
    JsonValue,
    ReplyMapper,
    ReplyRules,
    ReplyTest,
    RequestHas,
    StatusIs,
)
from meshlib.substitution import check_format
from meshlib.xds.decode_common import cover, inline_data, join, wrapped
from meshlib.xds.decode_headers import header_additions
from meshlib.xds.decode_matcher import header_matcher
from meshlib.xds.problems import Problems

__all__ = ["body_format", "reply_rules"]

NOTHING: Final[frozenset[str]] = frozenset()
_TEXT, _JSON = "text/plain", "application/json"
_MAPPER: Final = frozenset({"filter", "status_code", "body", "body_format_override", "headers_to_add"})
_FORMAT: Final = frozenset({"text_format", "json_format", "text_format_source", "omit_empty_values", "content_type"})


def reply_rules(message: Any, path: str, problems: Problems) -> ReplyRules:
    """Decode a LocalReplyConfig."""
    cover(message, path, problems, used=frozenset({"mappers", "body_format"}), harmless=NOTHING)
    mappers = tuple(
        _mapper(mapper, f"{join(path, 'mappers')}[{number}]", problems) for number, mapper in enumerate(message.mappers)
    )
    common = None
    if message.HasField("body_format"):
        common = body_format(message.body_format, join(path, "body_format"), problems)
    return ReplyRules(mappers, common)


def _mapper(message: Any, path: str, problems: Problems) -> ReplyMapper:
    cover(message, path, problems, used=_MAPPER, harmless=NOTHING)
    special = None
    if message.HasField("body_format_override"):
        special = body_format(message.body_format_override, join(path, "body_format_override"), problems)
    return ReplyMapper(
        test=_test(message.filter, join(path, "filter"), problems),
        status=wrapped(message, "status_code"),
        body=inline_data(message.body, join(path, "body"), problems) if message.HasField("body") else None,
        headers=header_additions(message, "headers_to_add", path, problems),
        body_format=special,
    )


def _test(message: Any, path: str, problems: Problems) -> ReplyTest:
    """Decode an AccessLogFilter."""
    kind = message.WhichOneof("filter_specifier")
    place = join(path, str(kind or "filter_specifier"))
    found: Any = getattr(message, kind) if kind else None
    match kind:
        case "status_code_filter":
            return _status(found.comparison, join(place, "comparison"), problems)
        case "response_flag_filter":
            return HasFlag(frozenset(found.flags))
        case "header_filter":
            return RequestHas(header_matcher(found.header, join(place, "header"), problems))
        case "not_health_check_filter":
            return AllOf()  # what an application sends is no health check
        case "and_filter" | "or_filter":
            tests = tuple(
                _test(one, f"{join(place, 'filters')}[{number}]", problems) for number, one in enumerate(found.filters)
            )
            return AllOf(tests) if kind == "and_filter" else AnyOf(tests)
        case None:
            problems.error(place, "is required")
        case _:
            problems.error(place, "is not supported")
    return AllOf()


def _status(message: Any, path: str, problems: Problems) -> ReplyTest:
    if message.value.runtime_key:
        problems.unused(join(path, "value.runtime_key"))
    try:
        comparison = Comparison(message.op)
    except ValueError:
        problems.error(join(path, "op"), f"unknown value {message.op}")
        comparison = Comparison.EQ
    return StatusIs(comparison, message.value.default_value)


def body_format(message: Any, path: str, problems: Problems) -> BodyFormat:
    """Decode a SubstitutionFormatString."""
    cover(message, path, problems, used=_FORMAT, harmless=NOTHING)
    kind = message.WhichOneof("format")
    place = join(path, str(kind))
    content_type, omits = message.content_type, bool(message.omit_empty_values)
    if kind == "json_format":
        fields = _json_object(message.json_format, place, problems)
        return BodyFormat(None, fields, content_type or _JSON, omits)
    text = message.text_format
    if kind == "text_format_source":
        text = (inline_data(message.text_format_source, place, problems) or b"").decode(errors="replace")
    if fault := check_format(text):
        problems.error(place, fault)
        text = ""
    return BodyFormat(text, None, content_type or _TEXT, omits)


def _json_object(message: Any, path: str, problems: Problems) -> JsonObject:
    return JsonObject(
        tuple((name, _json(message.fields[name], join(path, name), problems)) for name in sorted(message.fields))
    )


def _json(message: Any, path: str, problems: Problems) -> JsonValue:
    match message.WhichOneof("kind"):
        case "string_value":
            if fault := check_format(message.string_value):
                problems.error(path, fault)
                return ""
            return str(message.string_value)
        case "number_value":
            return float(message.number_value)
        case "bool_value":
            return bool(message.bool_value)
        case "struct_value":
            return _json_object(message.struct_value, path, problems)
        case "list_value":
            values = enumerate(message.list_value.values)
            return tuple(_json(value, f"{path}[{number}]", problems) for number, value in values)
        case _:
            return None
