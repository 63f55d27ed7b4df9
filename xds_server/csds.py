"""The Client Status Discovery Service: what each client was sent, and what it said to that (OBS-1).

`grpcdebug` and the like speak it. There is one entry per open stream; secrets are named, their contents are not told.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import grpc

from meshlib.protos import message_class
from xds_server.authentication import Authentication
from xds_server.grpc_shell import guarded, is_local, read
from xds_server.hub import Hub
from xds_server.ordering import short_name
from xds_server.status import ClientStatus, ResourceStatus, State, TypeStatus, clients
from xds_server.stream import StreamRefused

SERVICE = "envoy.service.status.v3.ClientStatusDiscoveryService"
_STATUS = "envoy.service.status.v3."


class ClientStatusService:
    """Serves the status of the hub's streams.

    In plaintext it answers this machine only, on the secure listener whoever has a token: unlike discovery it tells
    about other clients.
    """

    def __init__(self, hub: Hub, authentication: Authentication | None = None) -> None:
        self._hub = hub
        self._authentication = authentication

    def handler(self, *, is_secure: bool) -> grpc.GenericRpcHandler:
        async def fetch(data: bytes, context: Any) -> bytes:
            answers: list[bytes] = []

            async def body() -> None:
                self._admit(context, is_secure)
                answers.append(self._answer(data))

            await guarded(context, body())
            return answers[0]

        async def stream(_requests: object, context: Any) -> None:
            async def body() -> None:
                self._admit(context, is_secure)
                while (data := await read(context)) is not None:
                    await context.write(self._answer(data))

            await guarded(context, body())

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "FetchClientStatus": grpc.unary_unary_rpc_method_handler(fetch),
                "StreamClientStatus": grpc.stream_stream_rpc_method_handler(stream),
            },
        )

    def finish(self) -> None:
        """Nothing to do: whoever asks for status has no use for a reason why it ends."""

    def _admit(self, context: Any, is_secure: bool) -> None:
        if is_secure and self._authentication is not None:
            self._authentication.require(context)
        elif not is_local(context):
            raise StreamRefused(
                "PERMISSION_DENIED",
                "in plaintext the status of clients is told to this machine only: use the TLS listener with a token",
            )

    def _answer(self, data: bytes) -> bytes:
        found = clients(self._hub.streams(), with_resources=True)
        return answer(data, found, now=asyncio.get_running_loop().time(), wall_now=time.time())


def answer(data: bytes, found: Iterable[ClientStatus], *, now: float, wall_now: float) -> bytes:
    """Answer one serialised `ClientStatusRequest`.

    Args:
        now: Monotonic seconds, as the times in `found`.
        wall_now: The same moment in seconds since 1970.

    Raises:
        StreamRefused: It asks for a match that is not offered, or is no such request.
    """
    try:
        request = message_class(_STATUS + "ClientStatusRequest").FromString(data)
    except Exception as error:
        raise StreamRefused("INVALID_ARGUMENT", f"not a ClientStatusRequest: {error}") from error
    response = message_class(_STATUS + "ClientStatusResponse")()
    matchers = list(request.node_matchers)
    for matcher in matchers:
        _check(matcher)
    for client in found:
        # A request without matchers is about all; several are alternatives (csds.proto).
        if not matchers or any(_matches(each, client.node.id) for each in matchers):
            _fill(response.config.add(), client, wall_now - now, with_contents=not request.exclude_resource_contents)
    serialised: bytes = response.SerializeToString()
    return serialised


def _check(matcher: Any) -> None:
    if matcher.node_metadatas:
        raise StreamRefused("INVALID_ARGUMENT", "node_metadatas is not supported here: match by node_id")
    kind = matcher.node_id.WhichOneof("match_pattern")
    if matcher.HasField("node_id") and kind not in ("exact", "prefix", "suffix", "contains"):
        raise StreamRefused("INVALID_ARGUMENT", "node_id must have exact, prefix, suffix or contains")


def _matches(matcher: Any, node_id: str) -> bool:
    if not matcher.HasField("node_id"):
        return True
    string = matcher.node_id
    kind = string.WhichOneof("match_pattern")
    pattern = str(getattr(string, kind))
    if string.ignore_case:
        pattern, node_id = pattern.lower(), node_id.lower()
    match kind:
        case "exact":
            return node_id == pattern
        case "prefix":
            return node_id.startswith(pattern)
        case "suffix":
            return node_id.endswith(pattern)
    return pattern in node_id


def _fill(config: Any, client: ClientStatus, offset: float, *, with_contents: bool) -> None:
    config.node.id = client.node.id
    config.node.cluster = client.node.cluster
    config.node.user_agent_name = client.node.user_agent_name
    config.node.user_agent_version = client.node.user_agent_version
    what = short_name(client.service_type) if client.service_type else "aggregated"
    config.client_scope = f"{client.protocol}, {what}, {client.peer}"
    for kind in client.types:
        for resource in kind.resources:
            _fill_resource(config.generic_xds_configs.add(), kind, resource, offset, with_contents)


def _fill_resource(entry: Any, kind: TypeStatus, resource: ResourceStatus, offset: float, with_contents: bool) -> None:
    entry.type_url = kind.type_url
    entry.name = resource.name
    entry.version_info = resource.version
    entry.config_status = (
        entry.DESCRIPTOR.fields_by_name["config_status"].enum_type.values_by_name[resource.state].number
    )
    if resource.version and kind.sent_at is not None:
        _set_time(entry.last_updated, kind.sent_at + offset)
    if with_contents and resource.entry is not None:
        response = message_class("envoy.service.discovery.v3.DiscoveryResponse").FromString(resource.entry)
        entry.xds_config.CopyFrom(response.resources[0])
    if resource.state is State.ERROR:
        entry.error_state.details = kind.last_error or ""
        entry.error_state.version_info = kind.rejected_version
        _set_time(entry.error_state.last_update_attempt, kind.rejected_at + offset)


def _set_time(timestamp: Any, seconds: float) -> None:
    timestamp.FromMilliseconds(int(seconds * 1000))
