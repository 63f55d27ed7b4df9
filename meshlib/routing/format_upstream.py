"""Readers of the substitution commands that speak of endpoints, connections and the answer's gRPC status.

Source: Envoy `StreamInfo` formatters and `GrpcStatusFormatter`; forms and edges were asked of Envoy 1.40.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final

from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import grpc_status_of
from meshlib.routing.scene import Scene

__all__ = ["GRPC_STATUS_NAMES", "endpoint_text", "of_connection", "of_endpoint", "of_reached", "of_status"]

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
    """Compile a command that speaks of the endpoint that answered; `form` as for `endpoint_text`."""
    return lambda scene: None if scene.endpoint is None else endpoint_text(scene.endpoint, form)


def of_reached(form: str) -> _Reader:
    """Compile a command that lists the endpoints to which there was a connection; `form` as for `endpoint_text`."""

    def join(endpoints: Iterable[Endpoint]) -> str | None:
        return ",".join(endpoint_text(endpoint, form) for endpoint in endpoints) or None

    return lambda scene: join(scene.reached)


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
        if scene.head is None or not scene.head.is_grpc or scene.response is None:
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
