"""Resources without their secrets: for what people and other programs get to see.

What is secret the definitions themselves say (`udpa.annotations.sensitive`), as Envoy's own dump reads it. Messages
inside of a type that we have no definition of are left out whole, as nobody knows what they hold.
"""

from functools import cache
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from meshlib.protos import from_any, message_class

__all__ = ["REDACTED", "redacted"]

REDACTED: Final = "[redacted]"
_SENSITIVE: Final = b"\xb8\xb7\x8b\xa4\x02\x01"
"""Field 76569463 of the options, `true`: extensions of options are not resolved in a pool of one's own."""
_ANY: Final = "google.protobuf.Any"
_DATA_SOURCE: Final = "envoy.config.core.v3.DataSource"


def redacted(type_url: str, body: bytes) -> bytes:
    """Return a resource's bytes with its secrets taken out; empty when they cannot be read."""
    try:
        message = message_class(type_url.rpartition("/")[2]).FromString(body)
    except (KeyError, DecodeError):
        return b""
    _clean(message)
    data: bytes = message.SerializeToString()
    return data


@cache
def _is_sensitive(field: FieldDescriptor) -> bool:
    return _SENSITIVE in field.GetOptions().SerializeToString()


@cache
def _may_hold(descriptor: Descriptor) -> bool:
    """Whether anything below a message could be secret: most of a configuration need not be walked through."""
    seen: set[str] = set()
    left = [descriptor]
    while left:
        found = left.pop()
        if found.full_name in seen:
            continue
        seen.add(found.full_name)
        if found.full_name == _ANY or any(_is_sensitive(field) for field in found.fields):
            return True
        left += [field.message_type for field in found.fields if field.message_type is not None]
    return False


def _clean(message: Any) -> None:
    if message.DESCRIPTOR.full_name == _ANY:
        _clean_any(message)
        return
    for field, value in message.ListFields():
        if _is_sensitive(field):
            _hide(message, field, value)
        elif field.message_type is None or not _may_hold(field.message_type):
            continue
        elif field.message_type.GetOptions().map_entry:
            # What a map holds can only be a message where it has one.
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    _clean(value[key])
        elif field.is_repeated:
            for item in value:
                _clean(item)
        else:
            _clean(value)


def _clean_any(message: Any) -> None:
    try:
        inner = from_any(message)
    except (KeyError, DecodeError):
        message.Clear()
        return
    _clean(inner)
    message.value = inner.SerializeToString(deterministic=True)


def _hide(message: Any, field: FieldDescriptor, value: Any) -> None:
    """Put the mark in the place of a secret where there is room for it, so that one sees that there was one."""
    if not field.is_repeated:
        if field.type == FieldDescriptor.TYPE_STRING:
            setattr(message, field.name, REDACTED)
            return
        if field.type == FieldDescriptor.TYPE_BYTES:
            setattr(message, field.name, REDACTED.encode())
            return
        if field.message_type is not None and field.message_type.full_name == _DATA_SOURCE:
            value.Clear()
            value.inline_string = REDACTED
            return
    message.ClearField(field.name)
