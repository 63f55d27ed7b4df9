"""CSDS: every resource with its state, over gRPC, for `grpcdebug` and other tools that know Envoy's service.

Mounted on a server of the application's own choice:

    meshlib.admin.csds.add_to_server(mesh, server)

It shows the configuration, so that server is one that operators can reach and others cannot. Private keys and other
secrets are not shown. Messages are those of `envoy.service.status.v3`, by their bytes, so any generated client fits.

Source: gRFC A40; A88 for the states RECEIVED_ERROR and TIMEOUT. A resource whose form in use was left by an earlier
process, and that no server has answered for, is UNKNOWN.
"""

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

import grpc

from meshlib.protos import message_class, to_dict
from meshlib.runtime.clock import wall
from meshlib.xds.cache import Entry, ResourceState
from meshlib.xds.redact import redacted
from meshlib.xds.resources import short_name

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["add_to_server", "client_status", "client_status_dict", "client_status_text", "handler"]

SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"
_REQUEST: Final = "envoy.service.status.v3.ClientStatusRequest"
_RESPONSE: Final = "envoy.service.status.v3.ClientStatusResponse"
UNKNOWN: Final = 0
_STATES: Final = frozenset({ResourceState.REQUESTED, ResourceState.ACKED})
"""Those that are no error."""


def client_status(mesh: "Mesh", *, exclude_contents: bool = False) -> Any:
    """Return a `ClientStatusResponse` (of meshlib's own protobuf pool) with every resource; starts nothing.

    Args:
        exclude_contents: Leave the resources themselves out.
    """
    response = message_class(_RESPONSE)()
    control = mesh._control
    if control is None:
        return response
    config = response.config.add()
    config.node.CopyFrom(mesh.bootstrap.node.to_proto())
    # Seconds since the epoch at which the monotonic clock was zero.
    zero = wall() - mesh.clock()
    for entry in sorted(control.entries(), key=lambda one: (one.type_url, one.name)):
        if entry.is_collection:
            continue  # a subscription to many resources, which stand for themselves
        _add(config, entry, zero, exclude_contents=exclude_contents)
    return response


def client_status_dict(mesh: "Mesh") -> dict[str, Any]:
    """Return the same as JSON data, with the field names of the definitions."""
    return to_dict(client_status(mesh))


def client_status_text(mesh: "Mesh") -> str:
    """Return a line per resource, for people."""
    lines = []
    now = wall()
    for config in client_status(mesh, exclude_contents=True).config:
        for one in config.generic_xds_configs:
            states = one.DESCRIPTOR.fields_by_name["client_status"].enum_type.values_by_number
            line = f"{short_name(one.type_url)} {one.name}: {states[one.client_status].name}"
            if one.HasField("last_updated"):
                age_s = now - one.last_updated.ToNanoseconds() / 1e9
                line += f", version {one.version_info or '(empty)'} in use for {max(0.0, age_s):.0f} s"
            if one.HasField("error_state"):
                version = one.error_state.version_info
                line += f" - {f'version {version}: ' if version else ''}{one.error_state.details}"
            lines.append(line)
    return "\n".join(lines)


def add_to_server(mesh: "Mesh", server: "grpc.Server | grpc.aio.Server") -> None:
    """Serve CSDS for a mesh; before the server starts."""
    server.add_generic_rpc_handlers((handler(mesh, is_async=not isinstance(server, grpc.Server)),))


def handler(mesh: "Mesh", *, is_async: bool = False) -> grpc.GenericRpcHandler:
    """Return the handler of the service, for servers that are put together otherwise.

    Args:
        is_async: It is for a `grpc.aio` server.
    """
    methods = _AsyncMethods(mesh) if is_async else _Methods(mesh)
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "FetchClientStatus": grpc.unary_unary_rpc_method_handler(methods.fetch),
            "StreamClientStatus": grpc.stream_stream_rpc_method_handler(methods.stream),
        },
    )


class _Refused(Exception):
    """The request asks for what this client cannot do."""


def _answer(mesh: "Mesh", data: bytes) -> bytes:
    request = message_class(_REQUEST).FromString(data)
    if request.node_matchers:
        raise _Refused("node_matchers are not supported: there is one client here")
    found: bytes = client_status(mesh, exclude_contents=request.exclude_resource_contents).SerializeToString()
    return found


class _Methods:
    def __init__(self, mesh: "Mesh") -> None:
        self._mesh = mesh

    def fetch(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return _answer(self._mesh, data)
        except _Refused as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for data in requests:
            yield self.fetch(data, context)


class _AsyncMethods:
    def __init__(self, mesh: "Mesh") -> None:
        self._mesh = mesh

    async def fetch(self, data: bytes, context: Any) -> bytes:
        try:
            return _answer(self._mesh, data)
        except _Refused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for data in requests:
            yield await self.fetch(data, context)


def _add(config: Any, entry: Entry, zero: float, *, exclude_contents: bool) -> None:
    is_unconfirmed = entry.is_spare and entry.state is ResourceState.REQUESTED
    shown = config.generic_xds_configs.add(
        type_url=entry.type_url,
        name=entry.name,
        client_status=UNKNOWN if is_unconfirmed else entry.state.value,
    )
    if entry.value is not None:
        shown.version_info = entry.version
        _set_time(shown.last_updated, entry.updated_at + zero)
        if not exclude_contents:
            shown.xds_config.type_url = entry.type_url
            shown.xds_config.value = redacted(entry.type_url, entry.body)
    if entry.state not in _STATES:
        shown.error_state.details = entry.error
        shown.error_state.version_info = entry.failed_version
        _set_time(shown.error_state.last_update_attempt, entry.failed_at + zero)


def _set_time(stamp: Any, wall_s: float) -> None:
    stamp.FromNanoseconds(round(wall_s * 1e9))
