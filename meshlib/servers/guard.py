"""What applies at one address: transport security, the filters of its listener, its routes.

Filters run in their order: those for authorization and those that limit. A limit counts a request once, however many
readings its path has; each reading has to be let in.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from meshlib.call.limiting import Passage
from meshlib.identity.authorization import AuthzRequest, compile_rbac
from meshlib.identity.san import compile_sans
from meshlib.model.filters import LimitFilter
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.snapshot import InboundConfig
from meshlib.ports import Rng
from meshlib.resilience.limiters import Limiter, make_limiter
from meshlib.routing.limits import RouteLimit
from meshlib.routing.table import InboundMatch, InboundTable
from meshlib.servers.peer import Peer
from meshlib.servers.source import InboundHandle

__all__ = ["ADMITTED", "Admission", "Guard", "Limiters", "unconfigured"]

TEXT = (("content-type", "text/plain"),)


class Limiters:
    """What counts for the filters of one address, in all servers of a mesh that listen there.

    It outlives configurations that leave a filter as it was.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, LimitFilter], Limiter] = {}

    def find(self, limit: RouteLimit, now: float) -> Limiter:
        key = (limit.scope, limit.config)
        found = self._known.get(key)
        # Two threads may both be first: the first entry counts.
        return self._known.setdefault(key, make_limiter(limit.config, now)) if found is None else found

    def keep(self, limits: Iterable[RouteLimit]) -> None:
        """Forget what no filter asks for any more."""
        wanted = {(limit.scope, limit.config) for limit in limits}
        self._known = {key: limiter for key, limiter in tuple(self._known.items()) if key in wanted}


@dataclass(frozen=True, slots=True)
class Admission:
    """What was decided about a request.

    Attributes:
        reply: Refuses it; None: it may come in.
        passage: What filters hold of it; None: nothing.
    """

    reply: LocalReply | None
    passage: Passage | None = None


ADMITTED = Admission(None)


class _Rules:
    """One configuration of an address, compiled."""

    __slots__ = ("_authorizers", "_demands_certificate", "_has_expected_name", "_limiters", "_routes", "config")

    def __init__(self, config: InboundConfig, limiters: Limiters) -> None:
        tls = config.listener.tls
        self.config = config
        self._demands_certificate = (
            tls is not None and tls.require_client_certificate and not config.listener.takes_plaintext
        )
        self._has_expected_name = compile_sans(tls.sans) if tls is not None and tls.sans else None
        self._authorizers = tuple(compile_rbac(rbac) for rbac in config.listener.rbac)
        self._routes = InboundTable(config.routes, config.listener.limits)
        self._limiters = limiters
        limiters.keep(self._routes.limits)

    def admit(self, request: AuthzRequest, peer: Peer, readings: tuple[str, ...], rng: Rng, now: float) -> Admission:
        reply = self._refuse_peer(peer)
        if reply is not None:
            return Admission(reply)
        found = self._routes.match(request.head, rng)
        passage = Passage(self._limiters.find, request.head, request.source_ip) if found.limits else None
        reply = self._check(request, found, passage, rng, now)
        for path in readings:
            if reply is None:
                other = replace(request, head=_with_path(request.head, path))
                reply = self._check(other, self._routes.match(other.head, rng), None, rng, now)
        return ADMITTED if reply is None and passage is None else Admission(reply, passage)

    def _refuse_peer(self, peer: Peer) -> LocalReply | None:
        if not peer.is_authenticated:
            if self._demands_certificate:
                return _refused("mtls_required", "mutual TLS is required: the caller showed no certificate")
        # Python's ssl has compared the names in the handshake; grpcio's server only verifies the chain.
        elif self._has_expected_name is not None and not self._has_expected_name(peer.certificate):
            return _refused("mtls_wrong_name", "the caller's certificate has no name that this listener accepts")
        return None

    def _check(
        self, request: AuthzRequest, found: InboundMatch, passage: Passage | None, rng: Rng, now: float
    ) -> LocalReply | None:
        """Pass the filters in their order, and come to the route.

        Args:
            passage: Through the filters that limit; None: they are not asked.
        """
        for position, authorizer in enumerate(self._authorizers):
            if passage is not None and (reply := _limited(passage, found, position, rng, now)) is not None:
                return reply
            result = authorizer.check(request)
            if not result.allowed:
                return result.reply
        if passage is not None and (reply := _limited(passage, found, len(self._authorizers), rng, now)) is not None:
            return reply
        return found.reply


def _limited(passage: Passage, found: InboundMatch, position: int, rng: Rng, now: float) -> LocalReply | None:
    limits = tuple(limit for limit in found.limits if limit.position == position)
    return passage.enter(limits, now, rng, after_fault=False) if limits else None


class Guard:
    """What applies at one address, compiled once for each configuration."""

    __slots__ = ("_address", "_leaving", "_limiters", "_rules", "handle")

    def __init__(
        self, address: str, handle: InboundHandle, leaving: Mapping[str, InboundConfig], limiters: Limiters
    ) -> None:
        self.handle = handle
        self._address = address
        self._leaving = leaving
        self._limiters = limiters
        self._rules: _Rules | None = None

    def admit(self, request: AuthzRequest, peer: Peer, readings: tuple[str, ...], rng: Rng, now: float) -> Admission:
        config = self.handle.current
        if not isinstance(config, InboundConfig):
            # Whoever takes its instance out is still called for a moment, by then without a listener.
            last = self._leaving.get(self._address)
            if last is None:
                return Admission(unconfigured("has not been received yet" if config is None else config.message))
            config = last
        rules = self._rules
        if rules is None or rules.config is not config:
            # One assignment of one object: threads that race here each use what they compiled themselves.
            rules = self._rules = _Rules(config, self._limiters)
        return rules.admit(request, peer, readings, rng, now)


def _with_path(head: RequestHead, path: str) -> RequestHead:
    _, mark, query = head.path.partition("?")
    return head.but(path=path + mark + query)


def _refused(details: str, text: str) -> LocalReply:
    return LocalReply(403, "", details, text.encode(), TEXT, grpc_status=7)


def unconfigured(reason: str) -> LocalReply:
    body = f"inbound configuration {reason}"
    return LocalReply(503, "UH", "inbound_configuration_missing", body.encode(), TEXT, grpc_status=14)
