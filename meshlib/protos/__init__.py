"""xDS message classes in a descriptor pool of their own.

The generated modules of `xds-protos` overwrite those of `opentelemetry-proto` when both are installed, so the wheel
does not depend on them: `descriptors.bin` holds the descriptors (made by `make protos`), and the classes are built from
it in a private pool. Messages made by a user's own generated classes are accepted through their serialised form.
"""

import json
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

__all__ = ["TYPE_PREFIX", "from_any", "from_dict", "message_class", "pool", "to_any", "to_dict"]

TYPE_PREFIX = "type.googleapis.com/"


@cache
def pool() -> DescriptorPool:
    """Return the private pool; the first call reads the descriptors (about 15 ms)."""
    data = zlib.decompress(files(__package__).joinpath("descriptors.bin").read_bytes())
    result = DescriptorPool()
    for file in _files(data):
        result.AddSerializedFile(file)
    return result


def _files(data: bytes) -> Iterator[bytes]:
    """Yield the files of a `FileDescriptorSet` as bytes: as messages they would take 3 MB that are not given back."""
    at = 0
    while at < len(data):
        # Field 1, with a length.
        at, size, shift = at + 1, 0, 0
        while True:
            byte = data[at]
            at, size, shift = at + 1, size | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        yield data[at : at + size]
        at += size


@cache
def message_class(full_name: str) -> Any:
    """Return the message class of a full name such as `envoy.config.cluster.v3.Cluster`.

    Raises:
        KeyError: The name is not in the pool.
    """
    return GetMessageClass(pool().FindMessageTypeByName(full_name))


def to_any(message: Message) -> Any:
    """Pack a message, of this pool or any other, into a `google.protobuf.Any` of this pool."""
    return message_class("google.protobuf.Any")(
        type_url=TYPE_PREFIX + message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )


def from_any(any_message: Any) -> Any:
    """Unpack an `Any` into a message of this pool.

    Raises:
        KeyError: Its type is not in the pool.
        google.protobuf.message.DecodeError: Its bytes are not such a message.
    """
    name = any_message.type_url.rpartition("/")[2]
    if not name:
        raise DecodeError("Any without a type_url")
    return message_class(name).FromString(any_message.value)


def from_dict(full_name: str, value: dict[str, Any]) -> Any:
    """Parse proto3 JSON (as Python data) into a message.

    Raises:
        google.protobuf.json_format.ParseError: Unknown field, wrong type, or an `@type` that is not in the pool.
    """
    from google.protobuf import json_format  # 2 MB, which most processes do without

    return json_format.Parse(json.dumps(value), message_class(full_name)(), descriptor_pool=pool())


def to_dict(message: Message) -> dict[str, Any]:
    """Return a message of this pool as proto3 JSON data, with proto field names."""
    from google.protobuf import json_format

    result: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, descriptor_pool=pool()
    )
    return result
