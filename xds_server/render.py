"""Resources as JSON data, for people and programs that want to see what is served. Keys and passwords are left out:
resources written out by hand may have some.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import Error as JsonError
from google.protobuf.message import DecodeError, Message

from meshlib.protos import from_any, message_class, to_dict
from xds_server.snapshot import Snapshot

SECRET_FIELDS = frozenset(
    {"private_key", "private_key_provider", "password", "pkcs12", "session_ticket_keys", "generic_secret"}
)
"""Fields that Envoy marks as sensitive, and what holds them."""
REDACTED = "[redacted]"

Rendered = dict[str, dict[str, Any]]


def render_messages(resources: Mapping[str, Mapping[str, Message]]) -> Rendered:
    """Return compiled resources by type URL and name, both sorted, in proto3 JSON."""
    return {
        type_url: {name: _to_dict(messages[name]) for name in sorted(messages)}
        for type_url, messages in sorted(resources.items())
    }


def render_snapshot(snapshot: Snapshot) -> Rendered:
    """Return a published state like `render_messages`, each resource with its version."""
    response = message_class("envoy.service.discovery.v3.DiscoveryResponse")
    rendered: Rendered = {}
    for type_url, state in sorted(snapshot.types.items()):
        rendered[type_url] = {}
        for name, resource in state.resources.items():
            (packed,) = response.FromString(resource.field).resources
            rendered[type_url][name] = {"version": resource.version, "resource": _unpacked(packed)}
            if resource.ttl_s is not None:
                rendered[type_url][name]["ttl_s"] = resource.ttl_s
    return rendered


def _unpacked(packed: Any) -> Any:
    try:
        return _to_dict(from_any(packed))
    except (KeyError, DecodeError) as error:
        return {"@type": packed.type_url, "error": f"not a known message: {error}"}


def _to_dict(message: Message) -> Any:
    try:
        return _without_secrets(to_dict(message))
    except (JsonError, TypeError) as error:  # an extension that is not among our descriptors
        return {"error": f"cannot be shown as JSON: {error}"}


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: REDACTED if name in SECRET_FIELDS else _without_secrets(inner) for name, inner in value.items()}
    return [_without_secrets(inner) for inner in value] if isinstance(value, list) else value
