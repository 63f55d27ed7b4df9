"""One request coming in: may it, what does it hand on, how did it end.

The order is a decision: transport security first (who is it), then authorization, and only then the application's time
is spent. Without knowledge nothing is let in: while the listener of the address is unknown, requests are answered 503,
and where the listener demands client certificates a request without one is refused even if the process serves plain
HTTP by mistake.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address

from opentelemetry import context as otel_context
from opentelemetry import propagate

from meshlib.errors import UnavailableError
from meshlib.events import RequestServed
from meshlib.identity.authorization import Authorizer, AuthzRequest, compile_rbac
from meshlib.model.listener import ServerListener
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.snapshot import ConfigFault, InboundConfig
from meshlib.runtime.context import InboundContext, entered
from meshlib.servers.peer import Peer
from meshlib.servers.source import InboundHandle, ServerSource

__all__ = ["FIRST_CONFIG_TIMEOUT_S", "Inbound", "InboundRequest"]

FIRST_CONFIG_TIMEOUT_S = 5.0
"""How long the first request of an address nobody announced may wait for its listener."""

EXPECTED_TIMEOUT_HEADER = "x-envoy-expected-rq-timeout-ms"
ATTEMPT_HEADER = "x-envoy-attempt-count"


class _Guard:
    """What applies at one address, compiled once for each configuration."""

    __slots__ = ("_authorizers", "_config", "handle")

    def __init__(self, handle: InboundHandle) -> None:
        self.handle = handle
        self._config: InboundConfig | None = None
        self._authorizers: tuple[Authorizer, ...] = ()

    def admit(self, request: AuthzRequest, peer: Peer) -> LocalReply | None:
        config = self.handle.current
        if config is None:
            return _unconfigured("has not been received yet")
        if isinstance(config, ConfigFault):
            return _unconfigured(config.message)
        authorizers = self._authorizers
        if config is not self._config:
            authorizers = tuple(compile_rbac(rbac) for rbac in config.listener.rbac)
            self._authorizers, self._config = authorizers, config
        if _demands_certificate(config.listener) and not peer.is_authenticated:
            return LocalReply(
                403, "", "mtls_required", b"mutual TLS is required: the caller showed no certificate", grpc_status=7
            )
        for authorizer in authorizers:
            result = authorizer.check(request)
            if not result.allowed:
                return result.reply
        return None


def _demands_certificate(listener: ServerListener) -> bool:
    return listener.tls is not None and listener.tls.require_client_certificate


def _unconfigured(reason: str) -> LocalReply:
    body = f"inbound configuration {reason}"
    return LocalReply(503, "UH", "inbound_configuration_missing", body.encode(), grpc_status=14)


class InboundRequest:
    """One request between `Inbound.begin` and `finish`.

    Attributes:
        reply: The refusal to send instead of calling the application, or None.
        context: What calls made while serving it inherit.
    """

    __slots__ = ("_finished", "_head", "_inbound", "_peer", "_start", "context", "reply")

    def __init__(
        self,
        inbound: "Inbound",
        head: RequestHead,
        peer: Peer,
        reply: LocalReply | None,
        context: InboundContext,
        start: float,
    ) -> None:
        self._inbound = inbound
        self._head = head
        self._peer = peer
        self._start = start
        self._finished = False
        self.reply = reply
        self.context = context

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the deadline, the identity and the trace context current for the application's code."""
        with ExitStack() as stack:
            stack.enter_context(entered(self.context))
            headers = self._head.headers
            if "traceparent" in headers or "baggage" in headers:
                token = otel_context.attach(propagate.extract(dict(headers.items)))
                stack.callback(otel_context.detach, token)
            yield

    def finish(self, status: int, grpc_status: int | None = None) -> None:
        """Report how it ended; only the first call counts.

        Args:
            status: HTTP status sent; 500 if the application raised.
            grpc_status: For gRPC.
        """
        if self._finished:
            return
        self._finished = True
        mesh = self._inbound.mesh
        mesh.emit(
            RequestServed(
                kind=self._inbound.kind,
                service=self._inbound.service,
                method=self._head.method,
                path=self._head.path,
                principal=self._peer.spiffe_id,
                duration_s=mesh.clock() - self._start,
                status=status,
                grpc_status=grpc_status,
                denied=self.reply is not None,
            )
        )


class Inbound:
    """The inbound side of one server in the mesh. Cheap to create; does no I/O before the first request."""

    def __init__(self, mesh: ServerSource, *, kind: str, address: str | None = None, service: str = "") -> None:
        """
        Args:
            mesh: Where listeners come from.
            kind: `http` or `grpc`.
            address: `host:port` whose listener applies; None: that of each request's connection.
            service: Name for reports.
        """
        self.mesh = mesh
        self.kind = kind
        self.service = service
        self._address = address
        self._guards: dict[str, _Guard] = {}

    def _guard(self, address: str) -> _Guard:
        guard = self._guards.get(address)
        if guard is None:
            guard = self._guards.setdefault(address, _Guard(self.mesh.inbound(address)))
        return guard

    def _key(self, local: tuple[str, int]) -> str:
        if self._address is not None:
            return self._address
        host, port = local
        if not port:
            return self.mesh.default_inbound_address or ""
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def is_known(self, local: tuple[str, int]) -> bool:
        """Whether a request at a local address can be decided at once. False only before the first configuration."""
        mesh = self.mesh
        return mesh.is_disabled or not mesh.has_inbound or self._guard(self._key(local)).handle.current is not None

    def wait_known(self, local: tuple[str, int]) -> None:
        """Give the first configuration of an address some time; the request is decided by `begin` in any case."""
        with suppress(UnavailableError):  # begin() answers 503 with the reason
            self._guard(self._key(local)).handle.wait_ready(FIRST_CONFIG_TIMEOUT_S)

    def begin(
        self, head: RequestHead, peer: Peer, *, local: tuple[str, int], remote: str, remaining_s: float | None = None
    ) -> InboundRequest:
        """Decide about one request.

        Args:
            head: Its head; the path with query.
            peer: The caller as the TLS stack verified it.
            local: Address and port that the connection came in at; port 0: unknown.
            remote: IP address of the connection's other end; empty for a unix socket.
            remaining_s: Seconds that the caller gives, where the protocol says so itself (gRPC).
        """
        mesh = self.mesh
        now = mesh.clock()
        reply = None
        if not mesh.is_disabled and mesh.has_inbound:
            request = AuthzRequest(
                head=head,
                principals=peer.names,
                is_authenticated=peer.is_authenticated,
                source_ip=_ip(remote),
                destination_ip=_ip(local[0]),
                destination_port=local[1],
            )
            reply = self._guard(self._key(local)).admit(request, peer)
        return InboundRequest(self, head, peer, reply, self._context(head, peer, now, remaining_s), now)

    @staticmethod
    def _context(head: RequestHead, peer: Peer, now: float, remaining_s: float | None) -> InboundContext:
        deadline = None if remaining_s is None else now + remaining_s
        attempt = 1
        headers = head.headers
        if (
            deadline is None
            and (expected := headers.get(EXPECTED_TIMEOUT_HEADER)) is not None
            and expected.isascii()
            and expected.isdigit()
        ):
            deadline = now + int(expected[:12]) / 1000
        if (count := headers.get(ATTEMPT_HEADER)) is not None and count.isascii() and count.isdigit():
            attempt = max(1, int(count[:6]))
        return InboundContext(deadline, peer.spiffe_id, attempt)


def _ip(text: str) -> str:
    """Return the address if it is one: a unix socket has none, and conditions on addresses then do not hold."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""
