"""Requests decoded into plain data, responses put together from bytes that were serialised at publish time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from meshlib.protos import TYPE_PREFIX, message_class, to_dict

_DISCOVERY = "envoy.service.discovery.v3."
WRAPPER = _DISCOVERY + "Resource"
# Envoy quotes whole resources in a rejection; a few KiB tell what is wrong.
_MAX_ERROR_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Node:
    """Who asks, in its own words."""

    id: str
    cluster: str = ""
    user_agent_name: str = ""
    user_agent_version: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    client_features: frozenset[str] = frozenset()
    locality: tuple[str, str, str] = ("", "", "")


@dataclass(frozen=True, slots=True)
class Request:
    """A `DiscoveryRequest`.

    Attributes:
        error: Text of `error_detail` when present, even if empty: its presence makes the request a NACK.
    """

    type_url: str
    names: tuple[str, ...] = ()
    nonce: str = ""
    version: str = ""
    error: str | None = None
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class DeltaRequest:
    """A `DeltaDiscoveryRequest`.

    Attributes:
        initial: Name to version of what the client has; means something in the first request of a type only.
        error: As in `Request`.
    """

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class ResourceError:
    """Why a named resource is not sent. `code` is a gRPC status code."""

    name: str
    code: int
    message: str


def decode_request(data: bytes) -> Request:
    """Decode one request.

    Raises:
        ValueError: The bytes are not a `DiscoveryRequest`.
    """
    try:
        message = message_class(_DISCOVERY + "DiscoveryRequest").FromString(data)
    except DecodeError as error:
        raise ValueError(f"not a DiscoveryRequest: {error}") from error
    return Request(
        type_url=message.type_url,
        names=tuple(message.resource_names),
        nonce=message.response_nonce,
        version=message.version_info,
        error=_decode_error(message),
        node=decode_node(message.node) if message.HasField("node") else None,
    )


def decode_delta_request(data: bytes) -> DeltaRequest:
    """Decode one incremental request. Resource locators are not looked at (DX-9).

    Raises:
        ValueError: The bytes are not a `DeltaDiscoveryRequest`.
    """
    try:
        message = message_class(_DISCOVERY + "DeltaDiscoveryRequest").FromString(data)
    except DecodeError as error:
        raise ValueError(f"not a DeltaDiscoveryRequest: {error}") from error
    return DeltaRequest(
        type_url=message.type_url,
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        initial=dict(message.initial_resource_versions),
        nonce=message.response_nonce,
        error=_decode_error(message),
        node=decode_node(message.node) if message.HasField("node") else None,
    )


def _decode_error(message: Any) -> str | None:
    """Return the text of a rejection; None without one.

    Envoy quotes what it rejects, and a secret must not get into logs and status that way.
    """
    if not message.HasField("error_detail"):
        return None
    text: str = message.error_detail.message
    if "PRIVATE KEY" in text or "private_key" in text:
        return "(a text that quotes a private key)"
    return text[:_MAX_ERROR_CHARS]


def decode_node(node: Any) -> Node:
    """Return a `Node` message as plain data."""
    metadata = to_dict(node.metadata) if node.HasField("metadata") else {}
    features = frozenset(node.client_features)
    locality = (node.locality.region, node.locality.zone, node.locality.sub_zone)
    return Node(node.id, node.cluster, node.user_agent_name, node.user_agent_version, metadata, features, locality)


def resource_field(any_bytes: bytes) -> bytes:
    """Frame a serialised `Any` as one `resources` entry (field 2) of a `DiscoveryResponse`."""
    return b"\x12" + _varint(len(any_bytes)) + any_bytes


def delta_field(
    name: str, version: str, resource: bytes, ttl_s: float | None = None, aliases: tuple[str, ...] = ()
) -> bytes:
    """Frame one resource as a `resources` entry (field 2) of a `DeltaDiscoveryResponse`.

    Args:
        resource: Its entry in a `DiscoveryResponse`: the `resource` of an entry here has the same field number, so that
            the bytes are the same. Empty: a heartbeat.
        ttl_s: Seconds until it expires at the client.
        aliases: Further names that it was asked for by.
    """
    entry = _entry(name, version, resource, ttl_s, aliases)
    return b"\x12" + _varint(len(entry)) + entry


def wrapped_field(name: str, version: str, resource: bytes, ttl_s: float) -> bytes:
    """Frame one resource as a `resources` entry of a `DiscoveryResponse` that says when it expires; see `delta_field`."""
    packed = message_class("google.protobuf.Any")(
        type_url=TYPE_PREFIX + WRAPPER, value=_entry(name, version, resource, ttl_s)
    )
    return resource_field(packed.SerializeToString())


def _entry(name: str, version: str, resource: bytes, ttl_s: float | None, aliases: tuple[str, ...] = ()) -> bytes:
    """Encode a `Resource`: version is field 1, resource 2, name 3, aliases 4, ttl 6 (discovery.proto)."""
    parts = [b"\x0a", _text(version), resource, b"\x1a", _text(name)]
    for alias in aliases:
        parts += [b"\x22", _text(alias)]
    if ttl_s is not None:
        duration = message_class("google.protobuf.Duration")()
        duration.FromMilliseconds(round(ttl_s * 1000))
        encoded = duration.SerializeToString()
        parts += [b"\x32", _varint(len(encoded)), encoded]
    return b"".join(parts)


def encode_delta_response(
    *,
    type_url: str,
    version: str,
    nonce: str,
    resource_fields: Iterable[bytes],
    removed: Iterable[str],
    errors: Iterable[ResourceError],
    identifier: str,
) -> bytes:
    """Return a serialised `DeltaDiscoveryResponse`; see `encode_response`.

    Args:
        version: Of the whole state, for people (DX-8).
    """
    envelope = message_class(_DISCOVERY + "DeltaDiscoveryResponse")(
        system_version_info=version, type_url=type_url, nonce=nonce, removed_resources=removed
    )
    return _complete(envelope, resource_fields, errors, identifier)


def encode_response(
    *,
    type_url: str,
    version: str,
    nonce: str,
    resource_fields: Iterable[bytes],
    errors: Iterable[ResourceError],
    identifier: str,
) -> bytes:
    """Return a serialised `DiscoveryResponse`. Resources are copied as they are; only the envelope is encoded here."""
    envelope = message_class(_DISCOVERY + "DiscoveryResponse")(version_info=version, type_url=type_url, nonce=nonce)
    return _complete(envelope, resource_fields, errors, identifier)


def _complete(
    envelope: Any, resource_fields: Iterable[bytes], errors: Iterable[ResourceError], identifier: str
) -> bytes:
    envelope.control_plane.identifier = identifier
    for error in errors:
        entry = envelope.resource_errors.add()
        entry.resource_name.name = error.name
        entry.error_detail.code = error.code
        entry.error_detail.message = error.message
    # Fields of a message may be concatenated in any order (protobuf encoding guide), so the envelope goes first.
    encoded: bytes = envelope.SerializeToString()
    return b"".join((encoded, *resource_fields))


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _varint(len(encoded)) + encoded


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)
