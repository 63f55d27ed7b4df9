"""xDS message classes in a descriptor pool of their own.

The generated modules of `xds-protos` overwrite those of `opentelemetry-proto` when both are installed, so the wheel
does not depend on them: `descriptors.bin` holds the descriptors (made by `make protos`), and the classes are built from
it in a private pool. Messages made by a user's own generated classes are accepted through their serialised form.
"""

import json
import pkgutil
from functools import cache
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from meshlib.protos.index import LazyPool

__all__ = ["TYPE_PREFIX", "from_any", "from_dict", "from_json", "message_class", "pool", "to_any", "to_dict"]

TYPE_PREFIX = "type.googleapis.com/"


@cache
def pool() -> LazyPool:
    """Return the private pool; the first call reads the descriptors (about 1 ms)."""
    data = pkgutil.get_data(__name__, "descriptors.bin")
    assert data is not None
    return LazyPool(data)


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
    return from_json(full_name, json.dumps(value))


def from_json(full_name: str, text: str) -> Any:
    """Parse proto3 JSON into a message.

    Raises:
        google.protobuf.json_format.ParseError: As `from_dict`.
    """
    from google.protobuf import json_format  # 2 MB, which most processes do without

    return json_format.Parse(text, message_class(full_name)(), descriptor_pool=_as_pool())


def to_dict(message: Message) -> dict[str, Any]:
    """Return a message of this pool as proto3 JSON data, with proto field names."""
    from google.protobuf import json_format

    result: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, descriptor_pool=_as_pool()
    )
    return result


def _as_pool() -> Any:
    """Return the pool for `json_format`, which looks up by name and nothing else; its types ask for the class."""
    return pool()
