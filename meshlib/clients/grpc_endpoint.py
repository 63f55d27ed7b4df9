"""One endpoint's gRPC channel, and what it is known by."""

import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import grpc
import grpc.aio

from meshlib.clients.grpc_direct import make_unary
from meshlib.clients.grpc_direct_aio import make_aio_unary
from meshlib.model.secret import ClientTls, TlsCertificate, TrustedCa
from meshlib.runtime.relay_link import RelayRoute

__all__ = ["ChannelKey", "ChannelSecrets", "CoreChannel", "EndpointChannel", "Options"]

C = TypeVar("C")
Options = tuple[tuple[str, Any], ...]


class ChannelKey(NamedTuple):
    """What calls on one channel have in common."""

    address: str
    authority: str
    options: Options
    compression: grpc.Compression | None
    tls: ClientTls | None
    dials: tuple[str, ...] = ()


class EndpointChannel(Generic[C]):
    """A channel to one endpoint. Fields from `is_retired` on are guarded by the lock of `Channels`.

    Attributes:
        dialled: What C-core writes in its errors, of several addresses with spaces between them; empty when the
            endpoint is a name that DNS resolves.
        route: The way through the relay; None: plaintext, or core.
        secrets: For TLS: what verifies the peer, and shows who we are.
        core: gRPC's own TLS, shared with other endpoints; then `channel` is its channel.
        expires_at: When our certificate does, in seconds since the epoch; None: there is none.
        steering: Metadata that name the endpoint to core.
        multicallables: By kind, method and serializers; making one costs 3 us.
        calls: As many as there are calls on it; counted without a lock.
        is_closed: Somebody closes it, or has.
        outlasts_forks: A fork has waited for its calls in vain.
    """

    __slots__ = (
        "calls",
        "channel",
        "core",
        "dialled",
        "expires_at",
        "is_closed",
        "is_retired",
        "key",
        "multicallables",
        "outlasts_forks",
        "route",
        "secrets",
        "steering",
    )

    def __init__(
        self,
        key: ChannelKey,
        channel: C,
        dialled: str,
        route: RelayRoute | None,
        *,
        secrets: "ChannelSecrets | None" = None,
        core: "CoreChannel[C] | None" = None,
        steering: str = "",
    ) -> None:
        self.key = key
        self.channel = channel
        self.dialled = dialled
        self.route = route
        self.secrets = secrets
        self.core = core
        self.expires_at = None if secrets is None else secrets.expires_at
        self.steering = steering
        self.multicallables: dict[Any, Any] = {}
        self.calls: deque[None] = deque()
        self.is_retired = False
        self.is_closed = False
        self.outlasts_forks = False

    def multicallable(
        self,
        kind: str,
        method: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> Any:
        """Return the multicallable of a method; `kind` is `unary_unary`, ..."""
        key = (kind, method, serializer, deserializer)
        try:
            return self.multicallables[key]
        except KeyError:
            made = getattr(self.channel, kind)(method, serializer, deserializer)
            self.multicallables[key] = made
            return made

    def direct_unary(
        self,
        method: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> Any:
        """Return what makes calls of a unary method: see `grpc_direct`, and `grpc_direct_aio` for channels of grpc.aio."""
        key = (None, method, serializer, deserializer)
        try:
            return self.multicallables[key]
        except KeyError:
            make = make_aio_unary if isinstance(self.channel, grpc.aio.Channel) else make_unary
            made = self.multicallables[key] = make(self.channel, method, serializer, deserializer)
            return made

    def steered(self, metadata: Any) -> Any:
        """Return the metadata of a call with what names the endpoint to core.

        Args:
            metadata: A sequence, or None.
        """
        if not metadata:
            return (("cookie", self.steering),)
        # Core reads one header: the application's cookies follow in the same.
        cookies = [value for key, value in metadata if key == "cookie"]
        if not cookies:
            return (("cookie", self.steering), *metadata)
        others = (pair for pair in metadata if pair[0] != "cookie")
        return (("cookie", "; ".join((self.steering, *cookies))), *others)

    @property
    def refused_by(self) -> BaseException | None:
        """Why the last TLS connection failed."""
        return None if self.route is None else self.route.last_error


@dataclass(frozen=True, slots=True)
class ChannelSecrets:
    """What a TLS channel was made with.

    Attributes:
        context: Another one for the same configuration means that a secret has been replaced.
        expires_at: When the certificate does, in seconds since the epoch.
    """

    context: ssl.SSLContext
    certificate: TlsCertificate | None
    trust: TrustedCa | None
    expires_at: float | None = None


class CoreChannel(Generic[C]):
    """A channel whose calls go to the endpoint that their cookie names.

    Attributes:
        node_id: In core's own errors.
        opening: What makes it connect to its management server; held, as it would be cancelled else.
        uses: Endpoint channels that it serves; it is closed with the last one. Guarded by the lock of `Channels`.
    """

    __slots__ = ("channel", "node_id", "opening", "uses")

    def __init__(self, node_id: str, channel: C, opening: Any) -> None:
        self.node_id = node_id
        self.channel = channel
        self.opening = opening
        self.uses = 0
