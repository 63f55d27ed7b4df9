"""The messages of the aggregated stream, in both variants, as plain values, and to and from bytes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from meshlib.ports import Pause, no_pause
from meshlib.protos import message_class
from meshlib.xds.bootstrap import NodeConfig
from meshlib.xds.resources import RESOURCE_WRAPPER

__all__ = [
    "AnyBytes",
    "DeltaResponse",
    "DiscoveryResponse",
    "RequestEncoder",
    "ResourceError",
    "SendDelta",
    "SendRequest",
    "decode_delta_response",
    "decode_response",
    "encode_delta_request",
    "encode_request",
    "peek_name",
]

INVALID_ARGUMENT: Final = 3
"""`google.rpc.Code` of a NACK."""
PAUSE_EVERY: Final = 16
"""Entries of a response."""


class AnyBytes(NamedTuple):
    """One entry of a response. A tuple, because it is quick to make and there may be thousands.

    Attributes:
        type_url: Of the resource itself, out of its `Resource` wrapper if it had one.
        body: The resource's bytes; None: a wrapper without a resource (with `ttl_s`, a heartbeat).
        name: From the wrapper, or empty; so are the following.
        aliases: Other names under which it may have been asked for.
        ttl_s: It must not be used for longer than this; None: it does not expire.
    """

    type_url: str
    body: bytes | None
    name: str = ""
    version: str = ""
    aliases: tuple[str, ...] = ()
    ttl_s: float | None = None

    def __repr__(self) -> str:
        """Leave out the body, which may be a private key."""
        return f"AnyBytes({self.type_url!r}, name={self.name!r}, version={self.version!r}, ttl_s={self.ttl_s!r})"


@dataclass(frozen=True, slots=True)
class ResourceError:
    """One entry of `resource_errors` (A88). `code` is a gRPC status code."""

    name: str
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class DiscoveryResponse:
    type_url: str
    version: str
    nonce: str
    resources: tuple[AnyBytes, ...] = ()
    errors: tuple[ResourceError, ...] = ()


@dataclass(frozen=True, slots=True)
class DeltaResponse:
    """Attributes:
    removed: Names of resources that are gone, or were never there.
    """

    type_url: str
    nonce: str
    resources: tuple[AnyBytes, ...] = ()
    removed: tuple[str, ...] = ()
    errors: tuple[ResourceError, ...] = ()


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Command: put this request on the stream, and say `sent` once the transport has taken it.

    Attributes:
        names: The complete list wanted now, sorted.
        error: Makes it a NACK; empty: an ACK or a change of the subscription.
        with_node: It is the first of its stream.
    """

    type_url: str
    names: tuple[str, ...]
    version: str
    nonce: str
    error: str = ""
    with_node: bool = False


@dataclass(frozen=True, slots=True)
class SendDelta:
    """Command: put this request on an incremental stream, and say `sent` once the transport has taken it.

    Attributes:
        subscribe: Names to add, sorted. Neither these nor `unsubscribe`, in the first request of a type, would be a
            wildcard: no such request is made.
        unsubscribe: Names to give up, sorted.
        held: Name and version of what we have; in the first request of a type on a stream only.
        nonce: Of the response that this answers; empty: it answers none.
        error: Makes the answer a NACK.
        with_node: It is the first of its stream.
    """

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    held: tuple[tuple[str, str], ...] = ()
    nonce: str = ""
    error: str = ""
    with_node: bool = False


class RequestEncoder:
    """Makes the bytes of requests. Most repeat the list of names of the one before, which may be long: it is kept."""

    def __init__(self, node: NodeConfig) -> None:
        self._node = node
        self._names: dict[str, tuple[tuple[str, ...], bytes]] = {}

    def encode(self, request: SendRequest | SendDelta) -> bytes:
        """Return the bytes of a `DiscoveryRequest` or a `DeltaDiscoveryRequest`."""
        if isinstance(request, SendDelta):
            return encode_delta_request(request, self._node)
        known = self._names.get(request.type_url)
        if known is None or known[0] is not request.names:
            message = message_class("envoy.service.discovery.v3.DiscoveryRequest")(resource_names=request.names)
            known = self._names[request.type_url] = (request.names, message.SerializeToString())
        # The parts of a message one after the other are the message.
        return encode_request(replace(request, names=()), self._node) + known[1]


def encode_request(request: SendRequest, node: NodeConfig) -> bytes:
    """Return a request as the bytes of a `DiscoveryRequest`."""
    message = message_class("envoy.service.discovery.v3.DiscoveryRequest")(
        type_url=request.type_url,
        resource_names=request.names,
        version_info=request.version,
        response_nonce=request.nonce,
    )
    if request.with_node:
        message.node.CopyFrom(node.to_proto())
    if request.error:
        message.error_detail.code = INVALID_ARGUMENT
        message.error_detail.message = request.error
    data: bytes = message.SerializeToString()
    return data


def encode_delta_request(request: SendDelta, node: NodeConfig) -> bytes:
    """Return a request as the bytes of a `DeltaDiscoveryRequest`."""
    message = message_class("envoy.service.discovery.v3.DeltaDiscoveryRequest")(
        type_url=request.type_url,
        resource_names_subscribe=request.subscribe,
        resource_names_unsubscribe=request.unsubscribe,
        initial_resource_versions=dict(request.held),
        response_nonce=request.nonce,
    )
    if request.with_node:
        message.node.CopyFrom(node.to_proto())
    if request.error:
        message.error_detail.code = INVALID_ARGUMENT
        message.error_detail.message = request.error
    data: bytes = message.SerializeToString()
    return data


def decode_delta_response(data: bytes, pause: Pause = no_pause) -> DeltaResponse | None:
    """Read a `DeltaDiscoveryResponse`; None when the bytes are not one (such a response is ignored).

    Args:
        pause: Called now and then where there are many resources.
    """
    try:
        message = message_class("envoy.service.discovery.v3.DeltaDiscoveryResponse").FromString(data)
    except DecodeError:
        return None
    removed = (*message.removed_resources, *(found.name for found in message.removed_resource_names))
    return DeltaResponse(
        type_url=message.type_url,
        nonce=message.nonce,
        resources=_entries(message.resources, _wrapped, pause),
        removed=tuple(dict.fromkeys(removed)),
        errors=_errors(message),
    )


def decode_response(data: bytes, pause: Pause = no_pause) -> DiscoveryResponse | None:
    """Read a `DiscoveryResponse`; None when the bytes are not one (such a response is ignored).

    Args:
        pause: As in `decode_delta_response`.
    """
    try:
        message = message_class("envoy.service.discovery.v3.DiscoveryResponse").FromString(data)
    except DecodeError:
        return None
    return DiscoveryResponse(
        type_url=message.type_url,
        version=message.version_info,
        nonce=message.nonce,
        resources=_entries(message.resources, _unwrap, pause),
        errors=_errors(message),
    )


def _entries(entries: Iterable[Any], read: Callable[[Any], AnyBytes], pause: Pause) -> tuple[AnyBytes, ...]:
    found = []
    for index, entry in enumerate(entries):
        if not index % PAUSE_EVERY:
            pause()
        found.append(read(entry))
    return tuple(found)


def _unwrap(entry: Any) -> AnyBytes:
    if entry.type_url != RESOURCE_WRAPPER:
        return AnyBytes(entry.type_url, entry.value)
    try:
        wrapper = message_class("envoy.service.discovery.v3.Resource").FromString(entry.value)
    except DecodeError:
        return AnyBytes(RESOURCE_WRAPPER, None)
    return _wrapped(wrapper)


def _wrapped(wrapper: Any) -> AnyBytes:
    has_resource = wrapper.HasField("resource")
    return AnyBytes(
        wrapper.resource.type_url if has_resource else "",
        wrapper.resource.value if has_resource else None,
        wrapper.name or wrapper.resource_name.name,
        wrapper.version,
        tuple(wrapper.aliases),
        wrapper.ttl.seconds + wrapper.ttl.nanos / 1e9 if wrapper.HasField("ttl") else None,
    )


def _errors(message: Any) -> tuple[ResourceError, ...]:
    return tuple(
        ResourceError(error.resource_name.name, error.error_detail.code, error.error_detail.message)
        for error in message.resource_errors
    )


def peek_name(body: bytes) -> str:
    """Return the string of field 1 at the start of a message, where all our resource types hold their name.

    A guess that saves decoding resources that did not change; empty when the bytes do not begin so. It is only ever
    used to look up bytes to compare with, so a wrong guess costs time and nothing else.
    """
    if len(body) < 2 or body[0] != 0x0A:
        return ""
    length = shift = 0
    for position in range(1, min(len(body), 6)):
        byte = body[position]
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            start = position + 1
            return body[start : start + length].decode("utf-8", "replace")
        shift += 7
    return ""
