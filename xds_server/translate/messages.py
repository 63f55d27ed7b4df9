"""Building protobuf messages out of proto3 JSON data."""

import json
from functools import lru_cache
from typing import Any

from google.protobuf.message import Message

from meshlib.protos import TYPE_PREFIX, from_json
from xds_server.model import Position, Profile

Json = dict[str, Any]  # proto3 JSON being put together

LISTENER = "envoy.config.listener.v3.Listener"
ROUTE_CONFIGURATION = "envoy.config.route.v3.RouteConfiguration"
CLUSTER = "envoy.config.cluster.v3.Cluster"
ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"
SCOPE = "envoy.config.route.v3.ScopedRouteConfiguration"
VIRTUAL_HOST = "envoy.config.route.v3.VirtualHost"
ENDPOINT = "envoy.config.endpoint.v3.LbEndpoint"
EXTENSION = "envoy.config.core.v3.TypedExtensionConfig"
RUNTIME = "envoy.service.runtime.v3.Runtime"
SERVED_TYPES = (
    LISTENER,
    ROUTE_CONFIGURATION,
    SCOPE,
    VIRTUAL_HOST,
    CLUSTER,
    ENDPOINTS,
    ENDPOINT,
    EXTENSION,
    RUNTIME,
)

_HTTP = "envoy.extensions.filters.http"


def type_url(full_name: str) -> str:
    return TYPE_PREFIX + full_name


def typed(full_name: str, value: Json | None = None) -> Json:
    """Return an `Any` in JSON form."""
    return {"@type": TYPE_PREFIX + full_name, **(value or {})}


def build(full_name: str, value: Json) -> Message:
    """Return the message of proto3 JSON data. The same data gives the same object, so it must not be changed."""
    return _parsed(full_name, json.dumps(value, sort_keys=True))


# One registration changes one endpoint resource; the others are found here instead of being parsed again.
@lru_cache(maxsize=32_768)
def _parsed(full_name: str, text: str) -> Message:
    message: Message = from_json(full_name, text)
    return message


def ads() -> Json:
    return {"ads": {}, "resource_api_version": "V3"}


def origin(profile: Profile, position: Position | None, resource: str) -> Json:
    """Return the metadata that leads from a resource back to the document it was made from.

    Stock gRPC clients cannot show it, so they are spared it.
    """
    if profile is Profile.GRPC:
        return {}
    source = {"source": f"{position.file}:{position.line}"} if position else {}
    return {"metadata": {"filter_metadata": {"meshlib": {"config": resource, **source}}}}


def http_filter(name: str, full_name: str, value: Json | None = None) -> Json:
    return {"name": name, "typed_config": typed(full_name, value)}


def router() -> Json:
    return http_filter("envoy.filters.http.router", f"{_HTTP}.router.v3.Router")


def fault_filter() -> Json:
    """The filter that lets routes carry faults; by itself it does nothing."""
    return http_filter("envoy.filters.http.fault", f"{_HTTP}.fault.v3.HTTPFault")


def connection_manager(value: Json) -> Json:
    name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    return typed(name, value)
