"""What the decoders of all resource types share: coverage of fields, durations, wrapped values, `Any`, metadata.

Decoders work on messages of the private pool, which have no static types: a message is `Any` here, and the values that
come out are typed.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from meshlib.model.endpoint import NO_METADATA
from meshlib.protos import from_any, from_dict
from meshlib.xds.constraints import check_constraints
from meshlib.xds.problems import Problems

__all__ = [
    "FILTER_CONFIG_TYPE",
    "FilterOverride",
    "any_type",
    "check_durations",
    "check_source",
    "cover",
    "duration",
    "freeze",
    "inline_data",
    "is_discovered_by_ads",
    "is_typed_struct",
    "join",
    "metadata",
    "override_configs",
    "pass_over",
    "plain",
    "read_metadata",
    "report_unknown",
    "struct",
    "unpack",
    "unpack_extension",
    "wrapped",
]

FILTER_CONFIG_TYPE: Final = "envoy.config.route.v3.FilterConfig"
MAX_DURATION_S: Final = 9_223_372_035
"""What Envoy takes, so that it has room in 64 bits as nanoseconds; a `google.protobuf.Duration` could be longer."""

_TYPED_STRUCTS: Final = frozenset({"xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"})

_SOURCES: Final = frozenset({"path", "path_config_source", "api_config_source", "ads", "self", "resource_api_version"})
_NOTHING: Final[frozenset[str]] = frozenset()
_V3: Final = frozenset({0, 2})
"""Of `ApiVersion`: left to us, and the only one that there is."""
_DURATION: Final = "google.protobuf.Duration"
_WITH_KEYS: Final = "envoy.extensions.transport_sockets."


def join(path: str, name: str) -> str:
    """Return the path of a field below another."""
    return f"{path}.{name}" if path else name


def cover(
    message: Any,
    path: str,
    problems: Problems,
    *,
    used: frozenset[str],
    harmless: frozenset[str] | None = None,
    refused: frozenset[str] | None = None,
    strict: bool = False,
) -> None:
    """Account for every field that is set, so that none is ignored in silence.

    Exactly one of `harmless` and `refused` is given. With `harmless`, a field that is neither used nor harmless is an
    error; with `refused`, only those are errors and every other field is reported as unused.

    Args:
        message: The message.
        path: Its field path.
        problems: Takes errors and unused fields.
        used: Fields that the decoder reads.
        harmless: Fields without an effect on any decision.
        refused: Fields with an effect that the model cannot express.
        strict: A field that this version of the protos does not know is an error too (a condition that is not
            understood would otherwise hold always).
    """
    for field, _ in message.ListFields():
        name = field.name
        if name in used:
            continue
        if name in harmless if harmless is not None else name not in (refused or ()):
            problems.unused(join(path, name))
            check_durations(message, field, path, problems)
        else:
            problems.error(join(path, name), "is not supported")
    unknown = UnknownFieldSet(message)
    report = problems.error if strict else problems.unused
    for index in range(len(unknown)):
        report(join(path, f"<field {unknown[index].field_number}>"), "is not known to this version")


def report_unknown(message: Any, path: str, problems: Problems) -> None:
    """Report as unused the fields that this version of the protos does not know, wherever in a message they stand."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    if known.ByteSize() != message.ByteSize():  # it takes long to look, and there mostly are none
        _report_unknown(message, path, problems)


def _report_unknown(message: Any, path: str, problems: Problems) -> None:
    unknown = UnknownFieldSet(message)
    for index in range(len(unknown)):
        problems.unused(join(path, f"<field {unknown[index].field_number}>"), "is not known to this version")
    for field, value in message.ListFields():
        place = join(path, field.name)
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    _report_unknown(value[key], f'{place}["{key}"]', problems)
        elif field.is_repeated:
            for index, item in enumerate(value):
                _report_unknown(item, f"{place}[{index}]", problems)
        else:
            _report_unknown(value, place, problems)


def pass_over(message: Any, path: str, problems: Problems) -> None:
    """Report every field of a message as unused: that it is there counts, what it says does not."""
    cover(message, path, problems, used=_NOTHING, refused=_NOTHING)


def duration(message: Any, name: str, path: str, problems: Problems) -> float | None:
    """Return the seconds of a Duration field, or None if it is absent.

    Out of range (negative, more than 292 years, more than 999,999,999 nanoseconds) is an error.
    """
    if not message.HasField(name):
        return None
    value = getattr(message, name)
    if not (0 <= value.seconds <= MAX_DURATION_S and 0 <= value.nanos < 1_000_000_000):
        problems.error(join(path, name), f"is not a duration between 0 and {MAX_DURATION_S} s")
        return 0.0
    return float(value.seconds + value.nanos / 1e9)


def check_durations(message: Any, field: FieldDescriptor, path: str, problems: Problems) -> None:
    """Report the durations out of range in a field without effect: they are refused for all that."""
    kind = field.message_type
    if kind is None or field.is_repeated or not kind.full_name.startswith((_DURATION, "envoy.")):
        return
    if kind.full_name == _DURATION:
        duration(message, field.name, path, problems)
        return
    below = getattr(message, field.name)
    for inner, _ in below.ListFields():
        check_durations(below, inner, join(path, field.name), problems)


def wrapped(message: Any, name: str) -> Any:
    """Return the value of a wrapper field (`UInt32Value`, `BoolValue`, ...), or None if it is absent."""
    return getattr(message, name).value if message.HasField(name) else None


def any_type(packed: Any) -> str:
    """Return the full message name that an `Any` holds; of a TypedStruct, that of the message inside."""
    name = str(packed.type_url.rpartition("/")[2])
    if name in _TYPED_STRUCTS:
        try:
            return str(from_any(packed).type_url.rpartition("/")[2])
        except (DecodeError, KeyError):
            return name
    return name


def is_typed_struct(packed: Any) -> bool:
    """Whether an `Any` holds JSON that stands for a message."""
    return packed.type_url.rpartition("/")[2] in _TYPED_STRUCTS


def unpack(packed: Any, path: str, problems: Problems) -> Any:
    """Return the message that an `Any` holds, checked against its constraints, or None after an error.

    A TypedStruct (JSON instead of bytes) is turned into the message that it stands for.
    """
    if not packed.type_url:
        problems.error(path, "is an Any without a type_url")
        return None
    try:
        message = from_any(packed)
        if message.DESCRIPTOR.full_name in _TYPED_STRUCTS:
            message = _of_struct(message)
    except KeyError:
        problems.error(path, f"unknown type {any_type(packed)}")
        return None
    except DecodeError:
        problems.error(path, f"its bytes are not a {any_type(packed)}")
        return None
    except (ValueError, RecursionError) as error:
        kind = any_type(packed)
        # The parser may quote what it could not read, which must not be a key.
        reason = "" if kind.startswith(_WITH_KEYS) else f": {str(error).partition(chr(10))[0]}"
        problems.error(path, f"is not a {kind}{reason}")
        return None
    check_constraints(message, path, problems)
    report_unknown(message, path, problems)
    return message


def _of_struct(typed_struct: Any) -> Any:
    """Return the message that a TypedStruct stands for.

    Raises:
        ValueError: Its JSON is not such a message.
    """
    from google.protobuf.json_format import ParseError  # 2 MB, which a configuration without TypedStructs does without

    try:
        return from_dict(typed_struct.type_url.rpartition("/")[2], plain(typed_struct.value))
    except ParseError as error:
        raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True)
class FilterOverride:
    """What a level says of one filter.

    Attributes:
        path: Of `config`.
        config: An `Any`; of a wrapping FilterConfig what it holds.
        kind: Message name of `config`; empty: it holds nothing.
        is_disabled: The filter is switched off.
        is_optional: A filter that is not known may be passed over.
        is_wrapped: A FilterConfig says it.
    """

    name: str
    path: str
    config: Any
    kind: str
    is_disabled: bool = False
    is_optional: bool = False
    is_wrapped: bool = False


def override_configs(
    configs: Mapping[str, Any], path: str, problems: Problems | None = None
) -> Iterator[FilterOverride]:
    """Yield what `typed_per_filter_config` says of each filter, by name.

    Args:
        configs: By the name of the filter in the filter chain.
        path: Path of the map.
        problems: Takes what is wrong with wrapping FilterConfigs; None: that is told by another who reads the entries.
    """
    for name in sorted(configs):
        place, config = f'{path}["{name}"]', configs[name]
        kind = any_type(config)
        if kind != FILTER_CONFIG_TYPE:
            yield FilterOverride(name, place, config, kind)
            continue
        wrapper = unpack(config, place, Problems() if problems is None else problems)
        if wrapper is not None:
            inner = any_type(wrapper.config)
            yield FilterOverride(
                name, join(place, "config"), wrapper.config, inner, wrapper.disabled, wrapper.is_optional, True
            )


def unpack_extension(extension: Any, path: str, problems: Problems) -> Any:
    """Return the message of a TypedExtensionConfig, or None after an error."""
    if not extension.HasField("typed_config"):
        problems.error(join(path, "typed_config"), "is required")
        return None
    return unpack(extension.typed_config, join(path, "typed_config"), problems)


def is_discovered_by_ads(source: Any, path: str, problems: Problems) -> bool:
    """Check a ConfigSource: only the stream that the resource itself came by can be asked."""
    kind = check_source(source, path, problems)
    if kind in ("ads", "self"):
        return True
    if kind:
        problems.error(join(path, kind), "is not supported (only ads and self)")
    else:
        problems.error(path, "must be ads or self, is empty")
    return False


def check_source(source: Any, path: str, problems: Problems) -> str:
    """Report what a ConfigSource says beside the source, and return of which kind that is; empty: it is missing."""
    # How long is waited for a resource is one time for all (gRFC A57); authorities nobody looks at, Envoy included.
    cover(source, path, problems, used=_SOURCES, harmless=frozenset({"initial_fetch_timeout", "authorities"}))
    kind = str(source.WhichOneof("config_source_specifier") or "")
    if source.resource_api_version not in _V3:
        problems.unused(join(path, "resource_api_version"), "there is only V3")
    if kind == "self" and source.self.transport_api_version not in _V3:
        problems.unused(join(path, "self.transport_api_version"), "there is only V3")
    return kind


def inline_data(source: Any, path: str, problems: Problems) -> bytes | None:
    """Return the bytes of a DataSource, or None after an error.

    Files and environment variables of this machine are refused.
    """
    if source.HasField("watched_directory"):
        problems.unused(join(path, "watched_directory"), "what is inline does not change")
    match source.WhichOneof("specifier"):
        case "inline_bytes":
            return bytes(source.inline_bytes)
        case "inline_string":
            return bytes(source.inline_string.encode())
        case None:
            problems.error(path, "one of inline_bytes, inline_string is required")
        case kind:
            problems.error(join(path, str(kind)), "is not supported (only inline_bytes and inline_string)")
    return None


def read_metadata(message: Any, path: str, problems: Problems) -> Mapping[str, Mapping[str, Any]]:
    """As `metadata`, and report what is passed over."""
    cover(message, path, problems, used=frozenset({"filter_metadata"}), harmless=frozenset({"typed_filter_metadata"}))
    return metadata(message)


def metadata(message: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the `filter_metadata` of an `envoy.config.core.v3.Metadata`, deeply frozen."""
    if not message.filter_metadata:
        return NO_METADATA
    return MappingProxyType({name: struct(value) for name, value in message.filter_metadata.items()})


def struct(message: Any) -> Mapping[str, Any]:
    """Return a `google.protobuf.Struct` as a read-only mapping with tuples for lists."""
    return MappingProxyType({key: freeze(value) for key, value in message.fields.items()})


def freeze(value: Any) -> Any:
    """Return a `google.protobuf.Value` as None, bool, float, str, tuple or read-only mapping."""
    match value.WhichOneof("kind"):
        case "number_value":
            # Not a number is not equal to itself, and equal bytes must make equal values: proto JSON writes it so.
            return value.number_value if math.isfinite(value.number_value) else str(value.number_value)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return struct(value.struct_value)
        case "list_value":
            return tuple(freeze(item) for item in value.list_value.values)
        case _:
            return None


def plain(message: Any) -> dict[str, Any]:
    """Return a `google.protobuf.Struct` as JSON data."""
    return {key: _plain_value(value) for key, value in message.fields.items()}


def _plain_value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return plain(value.struct_value)
        case "list_value":
            return [_plain_value(item) for item in value.list_value.values]
        case "number_value" if value.number_value.is_integer():
            return int(value.number_value)
        case _:
            return freeze(value)
