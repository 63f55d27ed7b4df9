"""What a discovery stream and its machine say to each other: the limits it has, the responses to write, and why it must end."""

from dataclasses import dataclass, field

from xds_server.wire import ResourceError

MAX_RESPONSE_BYTES = 3_500_000
"""gRPC clients refuse messages of more than 4 MiB: the stream dies, and again after the reconnect (LIM-1)."""


class StreamRefused(Exception):
    """The stream must end. `code` names a gRPC status, the text says what to send instead."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of one stream; times in seconds.

    Attributes:
        max_response_bytes: Responses of types that can be split stay below it.
        break_delay_s: How long a removed cluster stays listed for routes that are not acknowledged (ORD-2).
        hold_s: How long changed routes wait for the acknowledgement of changed clusters.
        ack_timeout_s: After it the next response goes out without an answer to the last (ACK-9). Longer than the
            15 s for which Envoy warms a cluster.
        resource_errors: Say which named resources do not exist (ERR-3).
        resend_on_reconnect: A delta client that returns is sent the endpoints, routes and secrets it names although it
            has them: what they belong to may be warming, and Envoy does not ask again (REC-3).
        identifier: `control_plane.identifier` of every response.
    """

    max_response_bytes: int = MAX_RESPONSE_BYTES
    break_delay_s: float = 5.0
    hold_s: float = 5.0
    ack_timeout_s: float = 60.0
    resource_errors: bool = True
    resend_on_reconnect: bool = True
    identifier: str = "xds-server"


@dataclass(frozen=True, slots=True)
class Response:
    """One response to write; the machine has already recorded it as sent.

    Attributes:
        names: Names of the resources in it.
        data: The serialised message. Not shown: it may hold a private key.
        removed: Names that it says are gone (delta).
    """

    type_url: str
    version: str
    nonce: str
    names: tuple[str, ...]
    errors: tuple[ResourceError, ...]
    data: bytes = field(repr=False)
    removed: tuple[str, ...] = ()
