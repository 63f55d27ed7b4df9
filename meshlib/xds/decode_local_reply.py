"""`local_reply_config` of a connection manager: how answers of the mesh itself are rewritten."""

from dataclasses import replace
from typing import Any, Final

from meshlib.model.local_reply import (
    AllOf,
    AnyOf,
    BodyFormat,
    Comparison,
    GrpcStatusIs,
    HasFlag,
    JsonObject,
    JsonValue,
    ReplyMapper,
    ReplyRules,
    ReplyTest,
    RequestHas,
    Sampled,
    StatusIs,
    TookMs,
)
from meshlib.model.matcher import RuntimeKeys
from meshlib.substitution import check_format
from meshlib.xds.decode_common import cover, inline_data, join, wrapped
from meshlib.xds.decode_headers import header_additions
from meshlib.xds.decode_matcher import fraction, header_matcher, runtime_keys
from meshlib.xds.problems import Problems

__all__ = ["body_format", "reply_rules"]

NOTHING: Final[frozenset[str]] = frozenset()
_TEXT, _JSON = "text/plain", "application/json"
_MAPPER: Final = frozenset({"filter", "status_code", "body", "body_format_override", "headers_to_add"})
_FORMAT: Final = frozenset({"text_format", "json_format", "text_format_source", "omit_empty_values", "content_type"})


_NOT_SET: Final = 0  # AccessLogType
ALWAYS: Final = AllOf()
NEVER: Final = AnyOf(())


def reply_rules(message: Any, path: str, problems: Problems, *, is_traced: bool) -> ReplyRules:
    """Decode a LocalReplyConfig.

    Args:
        is_traced: The connection manager traces, which a proxy would do by itself.
    """
    cover(message, path, problems, used=frozenset({"mappers", "body_format"}), harmless=NOTHING)
    mappers = tuple(
        _mapper(mapper, f"{join(path, 'mappers')}[{number}]", problems, is_traced)
        for number, mapper in enumerate(message.mappers)
    )
    common = None
    if message.HasField("body_format"):
        common = body_format(message.body_format, join(path, "body_format"), problems)
    return ReplyRules(mappers, common)


def _mapper(message: Any, path: str, problems: Problems, is_traced: bool) -> ReplyMapper:
    cover(message, path, problems, used=_MAPPER, harmless=NOTHING)
    special = None
    if message.HasField("body_format_override"):
        special = body_format(message.body_format_override, join(path, "body_format_override"), problems)
    return ReplyMapper(
        test=_test(message.filter, join(path, "filter"), problems, is_traced),
        status=wrapped(message, "status_code"),
        body=inline_data(message.body, join(path, "body"), problems) if message.HasField("body") else None,
        headers=header_additions(message, "headers_to_add", path, problems),
        body_format=special,
    )


def _test(message: Any, path: str, problems: Problems, is_traced: bool) -> ReplyTest:
    """Decode an AccessLogFilter."""
    kind = message.WhichOneof("filter_specifier")
    place = join(path, str(kind or "filter_specifier"))
    found: Any = getattr(message, kind) if kind else None
    match kind:
        case "status_code_filter":
            return StatusIs(*_comparison(found.comparison, join(place, "comparison"), problems))
        case "duration_filter":
            return TookMs(*_comparison(found.comparison, join(place, "comparison"), problems))
        case "response_flag_filter":
            return HasFlag(frozenset(found.flags))
        case "header_filter":
            return RequestHas(header_matcher(found.header, join(place, "header"), problems))
        case "runtime_filter":
            share = fraction(found.percent_sampled, join(place, "percent_sampled"), problems)
            return Sampled(replace(share, runtime_key=found.runtime_key), found.use_independent_randomness)
        case "grpc_status_filter":
            return GrpcStatusIs(frozenset(found.statuses), found.exclude)
        case "metadata_filter":
            # No filter of a client sets dynamic metadata, so that a key is never found.
            keeps = wrapped(found, "match_if_key_not_found")
            return ALWAYS if keeps is None or keeps else NEVER
        case "log_type_filter":
            is_among = _NOT_SET in found.types  # nothing is being logged while an answer is made
            return ALWAYS if is_among is not found.exclude else NEVER
        case "traceable_filter":
            if is_traced:
                problems.error(place, "is not supported beside tracing")
            return NEVER
        case "not_health_check_filter":
            return ALWAYS  # what an application sends is no health check
        case "and_filter" | "or_filter":
            tests = tuple(
                _test(one, f"{join(place, 'filters')}[{number}]", problems, is_traced)
                for number, one in enumerate(found.filters)
            )
            return AllOf(tests) if kind == "and_filter" else AnyOf(tests)
        case None:
            problems.error(place, "is required")
        case _:
            problems.error(place, "is not supported")
    return ALWAYS


def _comparison(message: Any, path: str, problems: Problems) -> tuple[Comparison, int, RuntimeKeys]:
    try:
        comparison = Comparison(message.op)
    except ValueError:
        problems.error(join(path, "op"), f"unknown value {message.op}")
        comparison = Comparison.EQ
    return comparison, message.value.default_value, runtime_keys(message, value="value")


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
