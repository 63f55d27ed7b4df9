"""Readers of the substitution commands that speak of endpoints, connections and the answer's gRPC status.

Source: Envoy `StreamInfo` formatters and `GrpcStatusFormatter`; forms and edges were asked of Envoy 1.40.
"""

import re
from collections.abc import Callable
from typing import Final

from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import grpc_status_of
from meshlib.model.request import is_grpc_type
from meshlib.routing.scene import Scene

__all__ = ["GRPC_STATUS_NAMES", "endpoint_text", "of_connection", "of_endpoint", "of_status"]

_Reader = Callable[[Scene], str | None]

GRPC_STATUS_NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_INTEGER: Final = re.compile(r"[ \t]*([+-]?[0-9]{1,18})[ \t]*")


def endpoint_text(endpoint: Endpoint, form: str) -> str:
    """Return an endpoint as one of the commands writes it.

    Args:
        form: The command, without `UPSTREAM_`.
    """
    host, _, port = endpoint.address.rpartition(":")
    match form:
        case "REMOTE_ADDRESS_WITHOUT_PORT" | "HOSTS_ATTEMPTED_WITHOUT_PORT":
            return host.strip("[]")
        case "REMOTE_PORT":
            return port
        case "HOST_NAME" | "HOST_NAMES_ATTEMPTED":
            return endpoint.hostname or endpoint.address
        case "HOST_NAME_WITHOUT_PORT" | "HOST_NAMES_ATTEMPTED_WITHOUT_PORT":
            return endpoint.hostname.partition(":")[0] or host
        case _:
            return endpoint.address


def of_endpoint(form: str) -> _Reader:
    """Compile a command that speaks of the endpoint of the answer; `form` as for `endpoint_text`.

    Only the host is known of an endpoint without a connection. Of several attempts Envoy remembers the last alone, also
    where a command speaks of all.
    """
    needs_connection = not form.startswith("HOST") or "ATTEMPTED" in form

    def read(scene: Scene) -> str | None:
        endpoint = scene.endpoint
        if endpoint is None or (needs_connection and not scene.is_answered):
            return None
        return endpoint_text(endpoint, form)

    return read


def of_connection(form: str) -> _Reader:
    """Compile a command that speaks of the connection over which the response came."""

    def read(scene: Scene) -> str | None:
        connected = scene.connected
        if connected is None:
            return None
        host, _, port = connected.local_address.rpartition(":")
        match form:
            case "PROTOCOL":
                return connected.protocol or None
            case "LOCAL_PORT":
                return port or None
            case "LOCAL_ADDRESS_WITHOUT_PORT":
                return host.strip("[]") or None
            case _:
                return connected.local_address or None

    return read


def of_status(form: str) -> _Reader:
    """Compile `%GRPC_STATUS%`: of a gRPC request, what its response's headers say, else what the HTTP status stands for.

    Args:
        form: Empty or `CAMEL_STRING`, `SNAKE_STRING`, or `NUMBER`.
    """

    def read(scene: Scene) -> str | None:
        # By the head as it was sent: a route may have changed the content type.
        if scene.head is None or scene.response is None:
            return None
        if not is_grpc_type(scene.head.headers.get("content-type") or ""):
            return None
        if text := scene.response.get("grpc-status"):
            found = _INTEGER.fullmatch(text)
            number = -1 if found is None else int(found[1])
        elif scene.status:
            number = grpc_status_of(scene.status)
        else:
            return None
        return _status_text(number, form)

    return read


def _status_text(number: int, form: str) -> str:
    if form == "NUMBER" or not 0 <= number < len(GRPC_STATUS_NAMES):
        return str(number)
    name = GRPC_STATUS_NAMES[number]
    if form == "SNAKE_STRING" or not number:
        return name
    # Envoy spells this one name in two ways.
    return "Canceled" if number == 1 else name.title().replace("_", "")
