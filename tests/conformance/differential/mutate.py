"""Random changes of valid resources, made along their descriptors: mostly they break something, now and then they do not."""

import random
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from meshlib.protos import from_any

STRINGS = (
    "", "a", "/a", "/", "*", "a b", "a\n", "\0", "%REQ(x)%", "%", ":path", "host", "x-1", "é", "(", "a" * 300, "/a/", "/a?b", "a#b",
    "A", "a:80", "-", "/{x}", "0", "http",
)  # fmt: skip
NUMBERS = (0, 1, 2, 99, 100, 101, 200, 301, 599, 600, 1000, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
MAX_DEPTH = 7
# What other files discover, or what only a proxy's operator has: nothing to agree about here.
LEFT_ALONE = frozenset(
    {
        *("typed_per_filter_config", "vhds", "metadata", "filter_metadata", "typed_filter_metadata", "type_url"),
        *("load_balancer_endpoints", "api_listener"),  # which Envoy does not look at
        *("pipe", "event_log_path", "event_logger", "event_service", "key_log", "ocsp_staple"),  # they make files
        *("access_log", "access_log_options", "upstream_log", "upstream_log_options", "tracing"),
    }
)

_OPAQUE = frozenset({"google.protobuf.Any", "google.protobuf.Struct"})
# JSON has no words for one of them that is out of range.
_WHOLE = frozenset({"google.protobuf.Duration", "google.protobuf.Timestamp"})


def mutate(message: Any, chance: random.Random, *, inside: bool = False) -> str:
    """Change one thing in a message and return what it was.

    Args:
        message: What to change.
        chance: Decides.
        inside: What an `Any` in it holds is part of the message.
    """
    if inside and (packed := list(_packed(message))) and chance.random() < 0.7:
        holder = chance.choice(packed)
        try:
            held = from_any(holder)
        except (DecodeError, KeyError):
            return ""
        done = mutate(held, chance, inside=True)
        # As the JSON that Envoy reads would have it: packed anew.
        holder.value = held.SerializeToString(deterministic=True)
        return f"<{held.DESCRIPTOR.name}> {done}"
    for _ in range(20):
        target, path = _walk(message, chance)
        fields = [field for field in target.DESCRIPTOR.fields if field.name not in LEFT_ALONE]
        if not fields:
            continue
        set_already = [field for field, _ in target.ListFields() if field.name not in LEFT_ALONE]
        field = chance.choice(set_already) if set_already and chance.random() < 0.5 else chance.choice(fields)
        if (done := _change(target, field, chance)) is not None:
            return f"{path}{field.name}: {done}"
    return ""


def _packed(message: Any) -> Iterator[Any]:
    """Yield every `Any` in a message that says what it holds."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        if message.type_url:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.name in LEFT_ALONE:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from _packed(value[key])
        elif field.is_repeated:
            for item in value:
                yield from _packed(item)
        else:
            yield from _packed(value)


def _walk(message: Any, chance: random.Random) -> tuple[Any, str]:
    """Go down a random way of what is set."""
    path = ""
    for _ in range(MAX_DEPTH):
        below = [
            (field, value)
            for field, value in message.ListFields()
            if field.message_type and field.name not in LEFT_ALONE
        ]
        below = [
            (field, value)
            for field, value in below
            if not _is_opaque(field) and field.message_type.full_name not in _WHOLE
        ]
        if not below or chance.random() < 0.2:
            return message, path
        field, value = chance.choice(below)
        path += f"{field.name}."
        message = chance.choice(list(value)) if field.is_repeated else value
    return message, path


def _is_opaque(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and (kind.GetOptions().map_entry or kind.full_name in _OPAQUE)


def _change(target: Any, field: FieldDescriptor, chance: random.Random) -> str | None:
    if _is_opaque(field):
        return None
    is_set = (len(getattr(target, field.name)) > 0) if field.is_repeated else bool(_value_of(target, field))
    if is_set and chance.random() < 0.35:
        target.ClearField(field.name)
        return "cleared"
    if field.is_repeated:
        return _change_list(getattr(target, field.name), field, chance)
    if field.message_type is not None:
        child = getattr(target, field.name)
        child.SetInParent()
        return _fill(child, chance)
    value = _scalar(field, chance)
    if value is None:
        return None
    setattr(target, field.name, value)
    return repr(value)


def _value_of(target: Any, field: FieldDescriptor) -> bool:
    return target.HasField(field.name) if field.has_presence else getattr(target, field.name) != field.default_value


def _change_list(values: Any, field: FieldDescriptor, chance: random.Random) -> str | None:
    if field.message_type is None:
        value = _scalar(field, chance)
        if value is None:
            return None
        values.append(value)
        return f"and {value!r}"
    if len(values) and chance.random() < 0.6:
        values.add().CopyFrom(chance.choice(list(values)))
        return "one twice"
    return f"and one: {_fill(values.add(), chance)}"


def _fill(message: Any, chance: random.Random) -> str:
    """Set some fields of a new message, not deep: an empty one breaks rules often enough."""
    kind = message.DESCRIPTOR.full_name
    if kind == "google.protobuf.Duration":
        message.seconds, message.nanos = chance.choice(
            ((0, 0), (1, 0), (-1, 0), (0, 500), (315_576_000_000, 0), (3, 5))
        )
        return str(message.seconds)
    if kind in ("google.protobuf.Any", "google.protobuf.Struct"):
        return "empty"
    filled = []
    for field in message.DESCRIPTOR.fields:
        wanted = field.message_type is None and not field.is_repeated and chance.random() < 0.5
        if wanted and field.containing_oneof is None and (value := _scalar(field, chance)) is not None:
            setattr(message, field.name, value)
            filled.append(f"{field.name}={value!r}")
    for oneof in message.DESCRIPTOR.oneofs:
        field = chance.choice(oneof.fields)
        if field.name not in LEFT_ALONE and chance.random() < 0.8:
            if field.message_type is not None and not _is_opaque(field):
                child = getattr(message, field.name)
                child.SetInParent()
                filled.append(f"{field.name}={_fill(child, chance)}")
            elif field.message_type is None and (value := _scalar(field, chance)) is not None:
                setattr(message, field.name, value)
                filled.append(f"{field.name}={value!r}")
    return "{" + ", ".join(filled) + "}"


def _scalar(field: FieldDescriptor, chance: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = chance.choice(STRINGS)
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice([value.number for value in field.enum_type.values] + [77])
        case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
            return chance.choice([number for number in NUMBERS if number < 2**31] + [-1])
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            return chance.choice(NUMBERS)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return chance.choice((0.0, 0.5, 100.0, 101.0, -1.0))
    return None
