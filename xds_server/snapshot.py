"""The published state of one group of clients: immutable, serialised once, shared by all its streams."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from google.protobuf.message import Message

from meshlib.protos import from_any, to_any
from xds_server.references import Reference, references
from xds_server.versions import resource_version, type_version
from xds_server.wire import WRAPPER, resource_field

VIRTUAL_HOST = "envoy.config.route.v3.VirtualHost"

Changes = Mapping[str, frozenset[str]]
"""By type URL: names that were added, changed or removed."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, ready to send.

    Attributes:
        version: Hash of its content.
        field: The `resources` entry of a response that holds it, tag and length included. Not shown: a secret has one.
        references: What it needs from the same server.
        ttl_s: Seconds after which it expires at the client unless refreshed; None: never.
        aliases: Other names that it may be asked for by: of a virtual host `<route configuration>/<domain>`.
    """

    name: str
    version: str
    field: bytes = field(repr=False)
    references: tuple[Reference, ...] = ()
    ttl_s: float | None = None
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, message: Message, previous: "Resource | None" = None) -> "Resource":
        """Serialise a message; returns `previous` itself when nothing changed.

        Args:
            message: The resource, or an `envoy.service.discovery.v3.Resource` that wraps it and has its time to live.
        """
        message, ttl_s = _unwrapped(message)
        serialised = to_any(message).SerializeToString(deterministic=True)
        # The time to live is part of the version, so that a new one is sent.
        version = resource_version(serialised if ttl_s is None else serialised + f"ttl {ttl_s:g}".encode())
        if previous is not None and previous.version == version:
            return previous
        return cls(name, version, resource_field(serialised), references(message), ttl_s, _aliases(name, message))


def _aliases(name: str, message: Message) -> tuple[str, ...]:
    if message.DESCRIPTOR.full_name != VIRTUAL_HOST:
        return ()
    host: Any = message
    routes = name.rpartition("/")[0]
    return tuple(f"{routes}/{domain.lower()}" for domain in host.domains)


def _unwrapped(message: Message) -> tuple[Message, float | None]:
    if message.DESCRIPTOR.full_name != WRAPPER:
        return message, None
    wrapper: Any = message
    return from_any(wrapper.resource), wrapper.ttl.ToMilliseconds() / 1000 if wrapper.HasField("ttl") else None


@dataclass(frozen=True, slots=True)
class TypeState:
    """All resources of one type, by name, and the version of the whole.

    Attributes:
        aliases: By further names. Of two resources with the same one the first by name counts.
    """

    resources: Mapping[str, Resource]
    version: str
    aliases: Mapping[str, Resource] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, resources: Iterable[Resource]) -> "TypeState":
        by_name = {resource.name: resource for resource in sorted(resources, key=lambda resource: resource.name)}
        version = type_version((name, resource.version) for name, resource in by_name.items())
        aliases: dict[str, Resource] = {}
        for resource in by_name.values():
            for alias in resource.aliases:
                aliases.setdefault(alias, resource)
        return cls(MappingProxyType(by_name), version, MappingProxyType(aliases))

    @property
    def size_bytes(self) -> int:
        """Size of a response that holds all of it, envelope aside."""
        return sum(len(resource.field) for resource in self.resources.values())


EMPTY = TypeState.of(())


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One complete state: readers hold it whole, a publish replaces it whole (CON-1)."""

    types: Mapping[str, TypeState]

    @classmethod
    def build(cls, resources: Mapping[str, Mapping[str, Message]], previous: "Snapshot | None" = None) -> "Snapshot":
        """Serialise and hash the messages; unchanged resources are taken from `previous`."""
        types: dict[str, TypeState] = {}
        for type_url, messages in resources.items():
            before = previous.state(type_url).resources if previous is not None else {}
            state = TypeState.of(Resource.of(name, message, before.get(name)) for name, message in messages.items())
            types[type_url] = state
        return cls(MappingProxyType(types))

    def state(self, type_url: str) -> TypeState:
        return self.types.get(type_url, EMPTY)

    def changes_since(self, previous: "Snapshot") -> Changes:
        """Return what differs, by type; types without a difference are not in it."""
        changes: dict[str, frozenset[str]] = {}
        for type_url in {*self.types, *previous.types}:
            now, before = self.state(type_url), previous.state(type_url)
            if now.version == before.version:
                continue
            changes[type_url] = frozenset(
                name
                for name in {*now.resources, *before.resources}
                if now.resources.get(name) != before.resources.get(name)
            )
        return changes

    @property
    def resource_count(self) -> int:
        return sum(len(state.resources) for state in self.types.values())


NOTHING = Snapshot(MappingProxyType({}))
