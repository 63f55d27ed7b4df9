"""One request coming in: may it, what does it hand on, how did it end.

The order is a decision: transport security first (who is it), then authorization, then the routes of the listener, and
only then the application's time is spent. Without knowledge nothing is let in: while the listener of the address is
unknown, requests are answered 503, and where the listener demands client certificates a request without one is refused
even if the process serves plain HTTP by mistake.

Which listener applies is never up to the caller. Once this process has announced an address, only announced ones count;
what a server adapter says of the local address is believed only while there are none, and only of a few.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address

from opentelemetry import context as otel_context

from meshlib.errors import ConfigError, MeshError
from meshlib.events import RequestServed
from meshlib.identity.authorization import AuthzRequest
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.runtime.context import (
    DEFAULT_URGENCY,
    PRIORITY,
    InboundContext,
    enter,
    handed_on,
    leave,
    urgency_of,
)
from meshlib.runtime.tracing import report, trace_fields
from meshlib.servers.addresses import ANY, join, plain_ip
from meshlib.servers.guard import ADMITTED, Admission, Guard, Limiters, unconfigured
from meshlib.servers.paths import other_readings
from meshlib.servers.peer import Peer
from meshlib.servers.source import ServerSource
from meshlib.servers.tracing import RequestTrace, begin_trace

__all__ = ["FIRST_CONFIG_TIMEOUT_S", "Inbound", "InboundRequest"]

FIRST_CONFIG_TIMEOUT_S = 5.0
"""How long the first request of an address nobody announced may wait for its listener."""

MAX_UNANNOUNCED = 16
"""Local addresses that nobody announced here and that are looked up all the same: a server that takes them from the
request must not let callers make up subscriptions without end."""

MAX_LOCAL = 256
"""Local addresses of connections whose guard is remembered."""

TEXT = (("content-type", "text/plain"),)
EXPECTED_TIMEOUT_HEADER = "x-envoy-expected-rq-timeout-ms"
ATTEMPT_HEADERS = ("x-envoy-attempt-count", "x-meshlib-attempt")
PREVIOUS_HEADER = "grpc-previous-rpc-attempts"  # gRPC's own clients (A6)


class InboundRequest:
    """One request between `Inbound.begin` and `finish`.

    Attributes:
        reply: The refusal to send instead of calling the application, or None.
        context: What calls made while serving it inherit.
        response_headers: To be added to what the application answers.
    """

    __slots__ = (
        "_finished",
        "_head",
        "_inbound",
        "_passage",
        "_peer",
        "_start",
        "_trace",
        "context",
        "reply",
        "response_headers",
    )

    def __init__(
        self,
        inbound: "Inbound",
        head: RequestHead,
        peer: Peer,
        admission: Admission,
        context: InboundContext,
        start: float,
        trace: RequestTrace | None = None,
    ) -> None:
        reply, passage = admission.reply, admission.passage
        headers = () if passage is None else passage.response_headers
        if reply is not None and headers:
            reply = replace(reply, headers=(*reply.headers, *headers))
        self._inbound = inbound
        self._head = head
        self._peer = peer
        self._start = start
        self._trace = trace
        self._finished = False
        self._passage = passage
        self.reply = reply
        self.response_headers = headers
        self.context = context

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Make the deadline, the identity and the trace context current for the application's code."""
        trace = self._trace
        token = enter(self.context)
        trace_token = None if trace is None else otel_context.attach(trace.context)
        try:
            yield
        except Exception as error:
            if trace is not None:
                trace.failed(error)
            raise
        finally:
            # OpenTelemetry logs an error when its token is from another context.
            if leave(token) and trace_token is not None:
                otel_context.detach(trace_token)

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
        if self._passage is not None:
            is_grpc = self._head.profile.grpc_results
            self._passage.leave(
                mesh.clock(), mesh.rng, status=status, grpc_status=grpc_status, is_grpc=is_grpc, is_answered=True
            )
        if self._trace is not None:
            try:
                self._trace.end(status, grpc_status)
            except Exception:
                report("ending a span")
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
        self._guards: dict[str, Guard] = {}
        # One bucket for one filter of one address, however many servers of the process listen there.
        shared: dict[str, Limiters] | None = getattr(mesh, "_inbound_limiters", None)
        self._limiters = {} if shared is None else shared
        self._local: dict[tuple[str, int], Guard] = {}

    def _guard(self, local: tuple[str, int]) -> Guard | None:
        """Return the guard of a local address; None: it cannot be told which listener applies."""
        guard = self._guards.get(self._address) if self._address is not None else self._local.get(local)
        return guard if guard is not None else self._find_guard(local)

    def _find_guard(self, local: tuple[str, int]) -> Guard | None:
        address = self._address or self._announced(local)
        if not address:
            return None
        guard = self._guards.get(address)
        if guard is None:
            try:
                limiters = self._limiters.setdefault(address, Limiters())
                made = Guard(address, self.mesh.inbound(address), self.mesh.leaving_addresses, limiters)
                guard = self._guards.setdefault(address, made)
            except ConfigError:  # not an address
                return None
        # Only what was announced is remembered by the connection's address: that cannot grow with what callers say.
        if self._address is None and self.mesh.announced_addresses and len(self._local) < MAX_LOCAL:
            self._local[local] = guard
        return guard

    def _announced(self, local: tuple[str, int]) -> str:
        host, port = local
        announced = self.mesh.announced_addresses
        if not port:
            return self.mesh.default_inbound_address or ""
        if not announced:
            address = join(plain_ip(host), port)
            return address if address in self._guards or len(self._guards) < MAX_UNANNOUNCED else ""
        for listening in (join(plain_ip(host), port), *(join(any_host, port) for any_host in ANY)):
            if (address := announced.get(listening, "")) != "":
                return address
        return ""

    def is_known(self, local: tuple[str, int]) -> bool:
        """Whether a request at a local address can be decided at once. False only before the first configuration."""
        mesh = self.mesh
        if mesh.is_disabled or not mesh.has_inbound:
            return True
        guard = self._guard(local)
        return guard is None or guard.handle.current is not None

    def wait_known(self, local: tuple[str, int]) -> None:
        """Give the first configuration of an address some time; the request is decided by `begin` in any case."""
        guard = self._guard(local)
        if guard is not None:
            with suppress(MeshError):  # begin() answers 503 with the reason
                guard.handle.wait_ready(FIRST_CONFIG_TIMEOUT_S)

    def begin(
        self,
        head: RequestHead,
        peer: Peer,
        *,
        local: tuple[str, int],
        remote: str,
        routed: bytes | None = None,
        remaining_s: float | None = None,
    ) -> InboundRequest:
        """Decide about one request.

        Args:
            head: Its head; the path with query, as sent.
            peer: The caller as the TLS stack verified it.
            local: Address and port that the connection came in at, never from a header; port 0: unknown.
            remote: IP address of the connection's other end; empty for a unix socket.
            routed: The decoded path that the application will route on, where it is not the one in `head`.
            remaining_s: Seconds that the caller gives, where the protocol says so itself (gRPC).
        """
        mesh = self.mesh
        now = mesh.clock()
        admission = ADMITTED
        if not mesh.is_disabled and mesh.has_inbound:
            admission = self._admit(head, peer, local, remote, routed, now)
        context = self._context(head, peer, now, remaining_s)
        trace = None
        try:
            trace = begin_trace(mesh.tracing, head, context, remote=remote, service=self.service)
        except Exception:
            report("starting a span")
        return InboundRequest(self, head, peer, admission, context, now, trace)

    def _admit(
        self, head: RequestHead, peer: Peer, local: tuple[str, int], remote: str, routed: bytes | None, now: float
    ) -> Admission:
        guard = self._guard(local)
        if guard is None:
            reply = unconfigured(
                f"of {join(*local) if local[1] else 'this connection'}: that address was not announced by this process; "
                "pass `address=` to the adapter to say which listener applies"
            )
            return Admission(reply)
        readings: tuple[str, ...] = ()
        if head.profile.has_manager:  # a gRPC method is looked up exactly as sent
            if head.path[:1] != "/" and (head.path, head.method) != ("*", "OPTIONS"):
                return Admission(
                    LocalReply(400, "", "target_is_not_a_path", b"the request target must be a path", TEXT)
                )
            readings = other_readings(head.path, routed)
        request = AuthzRequest(
            head=head,
            principals=peer.principals,
            is_authenticated=peer.is_authenticated,
            source_ip=_ip(remote),
            destination_ip=_ip(local[0]),
            destination_port=local[1],
        )
        return guard.admit(request, peer, readings, self.mesh.rng, now)

    def _context(self, head: RequestHead, peer: Peer, now: float, remaining_s: float | None) -> InboundContext:
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
        for name in ATTEMPT_HEADERS:
            if (count := headers.get(name)) is not None and count.isascii() and count.isdigit():
                attempt = max(attempt, int(count[:6]))
        if (
            head.profile.grpc_metadata
            and (count := headers.get(PREVIOUS_HEADER)) is not None
            and count.isascii()
            and count.isdigit()
        ):
            attempt = max(attempt, 1 + int(count[:6]))
        handed = handed_on(headers, names=self.mesh.handed_on, but=trace_fields(), principal=peer.spiffe_id)
        urgency = DEFAULT_URGENCY if not handed else urgency_of(headers.get(PRIORITY))
        return InboundContext(deadline, peer.spiffe_id, attempt, urgency, handed)


def _ip(text: str) -> str:
    """Return the address if it is one: a unix socket has none, and conditions on addresses then do not hold."""
    try:
        return str(ip_address(text))
    except ValueError:
        return ""
