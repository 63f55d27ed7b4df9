"""What all discovery streams share: order across types, make before break, what waits for what, and refusals.

The shell calls `receive` for what the client sends, `publish` for what the server wants, and `respond` whenever the
client can take another message. What to send is computed only then, from the difference between what the client
should have and what it was sent. So changes that come while a response is under way merge by themselves, a slow
client costs one response per type, and a rejected resource is not sent again before it changes: it is in `known`.

Between types the machine keeps the order that lets clients change over without losing a request: clusters and
endpoints before listeners and routes, and a cluster that leaves stays on the stream until the routes that left it are
acknowledged (`retained.py`): who has it keeps it, who asks for it late is given it.

The two variants of the protocol differ in what a request says and what a response must hold: `sotw` and `delta`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from xds_server.collective import find_all
from xds_server.ordering import (
    CDS,
    CHILD_TYPES,
    EDS,
    LDS,
    PUSH_ORDER,
    RDS,
    ROUTING_TYPES,
    SDS,
    in_push_order,
    short_name,
)
from xds_server.references import Reference
from xds_server.requests import check_node, check_type
from xds_server.retained import RETAINED_TYPES, Retained
from xds_server.snapshot import EMPTY, Changes, Resource, Snapshot, TypeState
from xds_server.stream import Response, Settings
from xds_server.subscription import InFlight, Subscription
from xds_server.ttl import next_refresh, schedule, supports_ttl, take_due, take_late
from xds_server.versions import type_version
from xds_server.wire import DeltaRequest, Node, Request, ResourceError

MAX_ERROR_BYTES = 500_000
"""Of the names of one response that do not exist, with their texts; the others follow in the next one (LIM-1)."""

NOT_FOUND = 5
PERMISSION_DENIED = 7


S = TypeVar("S", bound=Subscription)


class StreamMachine(ABC, Generic[S]):
    """The server's side of one discovery stream.

    Args:
        snapshot: State of the client's group.
        secrets: Secrets of the client's identity; empty without one.
        denied: Types that this client may not have, with the reason that it is told.
        service_type: The type of a stream that is for one type only; None: aggregated.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        secrets: TypeState = EMPTY,
        denied: Mapping[str, str] | None = None,
        settings: Settings | None = None,
        service_type: str | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.node: Node | None = None
        self.subscriptions: dict[str, S] = {}
        self.service_type = service_type
        self._snapshot = snapshot
        self._secrets = secrets
        self._denied = dict(denied or {})
        self._retained = Retained()
        self._nonce = 0

    # What happens to the stream.

    @abstractmethod
    def receive(self, data: bytes, now: float) -> Request | DeltaRequest:
        """Take in one serialised request, and return it.

        Raises:
            StreamRefused: A mistake that ends the stream (section 2); a mistake about a resource never does.
        """

    def publish(self, snapshot: Snapshot, changes: Changes, now: float) -> bool:
        """Take in the group's new state; returns whether this stream is concerned at all.

        Args:
            changes: What differs from the state published before; computed once for all streams.
        """
        before = {kind: self._state(kind).resources for kind in RETAINED_TYPES if kind in changes}
        self._snapshot = snapshot
        is_touched = False
        for type_url, names in changes.items():
            subscription = self.subscriptions.get(type_url)
            if subscription is not None and subscription.is_touched_by(names):
                subscription.pending = is_touched = True
        self._retain(before, changes)
        if self._retained:
            self._retained.deadline = now + self.settings.break_delay_s
            is_touched = True
        return is_touched

    def publish_secrets(self, secrets: TypeState) -> None:
        """Take in new secrets of the client's identity."""
        self._secrets = secrets
        if (subscription := self.subscriptions.get(SDS)) is not None:
            subscription.pending = True

    def respond(self, now: float) -> Response | None:
        """Return the next response to write, recorded as sent; None when there is nothing to send at this time."""
        while True:
            if (response := self._next(now)) is not None:
                return response
            if (response := self._refresh(now)) is not None:
                return response
            # Looked at last: what has just been found to be nothing may have been what removed clusters waited for.
            if not self._retained or not self._may_break(now):
                return None
            left = self._retained.release(self._named_by_rejected(), self._named_by)
            if not left:
                return None
            for type_url in left & self.subscriptions.keys():
                self.subscriptions[type_url].pending = True

    def deadline(self, now: float) -> float | None:
        """Return when `respond` may have something to send although nothing happens; monotonic seconds, after `now`."""
        times: list[float] = []
        if self._retained:
            times.append(self._retained.deadline)
        for subscription in self.subscriptions.values():
            if (refresh := next_refresh(subscription)) is not None:
                in_flight = subscription.in_flight
                times.append(refresh if in_flight is None else in_flight.sent_at + self.settings.ack_timeout_s)
            if not subscription.pending:
                continue
            if subscription.in_flight is not None:
                times.append(subscription.in_flight.sent_at + self.settings.ack_timeout_s)
            elif subscription.type_url in ROUTING_TYPES and (clusters := self._in_flight(CDS)) is not None:
                times.append(clusters.sent_at + self.settings.hold_s)
                times.append(clusters.sent_at + self.settings.ack_timeout_s)
        return min((time for time in times if time > now), default=None)

    def wanted(self, subscription: S) -> Mapping[str, Resource]:
        """Return what the client should have of a type now, by name."""
        state = self._state(subscription.type_url)
        wanted: Mapping[str, Resource] = state.resources
        if not subscription.wildcard:
            wanted = find_all(subscription.type_url, state, subscription.names)
        if retained := self._retained.of(subscription.type_url):
            leaving = {name: resource for name, resource in retained.items() if subscription.wants(name)}
            wanted = {**leaving, **wanted}
        return wanted

    # What the variants do in their own way.

    @abstractmethod
    def _difference(self, subscription: S) -> bool:
        """Tell whether `_compose` would find something to send."""

    @abstractmethod
    def _compose(self, subscription: S, now: float) -> Response | None:
        """Compute and record the next response of one type; None and not pending when nothing is due."""

    @abstractmethod
    def _send_again(self, child: S, name: str) -> None:
        """Mark a subscribed resource to be sent again, because its parent is being sent."""

    @abstractmethod
    def _beat(self, subscription: S, names: list[str], wanted: Mapping[str, Resource], now: float) -> Response | None:
        """Return and record what keeps these resources from expiring."""

    # For the variants.

    def _check(self, node: Node | None, type_url: str) -> str:
        """Check what the whole stream depends on, and return the type that a request is about.

        Raises:
            StreamRefused: It must end.
        """
        self.node = check_node(node, self.node)
        return check_type(type_url, self.service_type)

    def _answered(self, subscription: S, in_flight: InFlight, error: str | None, now: float) -> None:
        """Record the ACK or NACK of the response in flight."""
        subscription.in_flight = None
        subscription.pending = True
        if error is None:
            subscription.accepted(in_flight)
        else:
            subscription.rejected(in_flight, error)
            subscription.rejected_at = now

    def _state(self, type_url: str) -> TypeState:
        if type_url in self._denied:
            return EMPTY
        return self._secrets if type_url == SDS else self._snapshot.state(type_url)

    def _sent(
        self,
        subscription: S,
        wanted: Mapping[str, Resource],
        names: tuple[str, ...],
        now: float,
        *,
        only_removals: bool = False,
        with_body: bool = True,
    ) -> tuple[str, str]:
        """Record a response as sent, and return its nonce and version.

        Args:
            names: What it tells about.
            with_body: It changes what the client has; a heartbeat does not.
        """
        self._nonce += 1
        nonce = str(self._nonce)
        state = self._state(subscription.type_url)
        # The version tells the wanted content, also when only a part of it travels (VER-2).
        whole = wanted is state.resources
        version = state.version if whole else type_version((name, item.version) for name, item in wanted.items())
        named = self._named(subscription, wanted, names) if with_body else {}
        if (unanswered := subscription.in_flight) is not None:
            subscription.doubt(unanswered)
        subscription.in_flight = InFlight(nonce, version, names, now, only_removals, named)
        subscription.sent_version = version
        subscription.sent_at = now
        if self._has_ttl:
            schedule(subscription, names, wanted, now)
        return nonce, version

    def _named(
        self, subscription: S, wanted: Mapping[str, Resource], names: tuple[str, ...]
    ) -> Mapping[str, tuple[Reference, ...]]:
        """Return what the resources in a response name, if they or those that they replace name something."""
        named = {name: wanted[name].references if name in wanted else () for name in names}
        return {
            name: references
            for name, references in named.items()
            if references or name in subscription.named or name in subscription.doubtful
        }

    @property
    def _has_ttl(self) -> bool:
        return supports_ttl(self.node)

    def _errors(self, type_url: str, names: Iterable[str]) -> tuple[ResourceError, ...]:
        """Say why these names are not sent; as many as fit one response."""
        if not self.settings.resource_errors or type_url not in PUSH_ORDER:
            return ()
        kind = short_name(type_url)
        reason = self._denied.get(type_url)
        found: list[ResourceError] = []
        size = 0
        for name in names:
            text = f"{kind} {name!r} does not exist" if reason is None else f"{kind} {name!r}: {reason}"
            size += len(name.encode()) + len(text.encode())
            if found and size > MAX_ERROR_BYTES:
                break
            found.append(ResourceError(name, NOT_FOUND if reason is None else PERMISSION_DENIED, text))
        return tuple(found)

    def _resend_children(self, type_url: str, parents: list[Resource]) -> None:
        """Mark the children of a parent that is being sent (ORD-4): Envoy waits for them again, without asking."""
        child_types = CHILD_TYPES.get(type_url)
        if child_types is None:
            return
        for parent in parents:
            for child_type, name in parent.references:
                child = self.subscriptions.get(child_type)
                if child_type in child_types and child is not None and child.wants(name):
                    self._send_again(child, name)

    def _drop_unwanted(self, subscription: S) -> None:
        """Let go of what has left the state and the client does not subscribe to, unless it may yet do so."""
        if self._retained.of(subscription.type_url):
            self._retained.drop_unwanted(subscription, frozenset(self._named_by_sent()))

    # Order across types.

    def _next(self, now: float) -> Response | None:
        for type_url in in_push_order(self.subscriptions):
            subscription = self.subscriptions[type_url]
            if not subscription.pending or self._is_unanswered(subscription, now) or self._is_held(subscription, now):
                continue
            if (response := self._compose(subscription, now)) is not None:
                return response
        return None

    def _refresh(self, now: float) -> Response | None:
        """Return the next heartbeat. It counts as a response, so it waits for the answer to the last (TTL-3)."""
        for type_url in in_push_order(self.subscriptions):
            subscription = self.subscriptions[type_url]
            if not subscription.refresh_at or self._is_unanswered(subscription, now):
                continue
            wanted = self.wanted(subscription)
            if late := take_late(subscription, wanted, now):  # it may have expired, so its body is needed
                subscription.resend.update(late)
                return self._compose(subscription, now)
            if names := take_due(subscription, wanted, now):
                return self._beat(subscription, names, wanted, now)
        return None

    def _in_flight(self, type_url: str) -> InFlight | None:
        subscription = self.subscriptions.get(type_url)
        return subscription.in_flight if subscription is not None else None

    def _is_unanswered(self, subscription: Subscription, now: float) -> bool:
        in_flight = subscription.in_flight
        return in_flight is not None and now < in_flight.sent_at + self.settings.ack_timeout_s

    def _is_held(self, subscription: Subscription, now: float) -> bool:
        """Tell whether routes must wait for clusters.

        Routes of one publish never overtake its clusters (ORD-8). Changed routes also wait a while for the
        acknowledgement, by which Envoy says that new clusters are warm; what a client asks for is not held for that,
        since a warming client may need it (STR-6). Endpoints and secrets never wait (ORD-3).
        """
        clusters = self.subscriptions.get(CDS)
        if subscription.type_url not in ROUTING_TYPES or clusters is None or clusters.in_flight is None:
            return False
        if clusters.pending and self._is_unanswered(clusters, now) and self._difference(clusters):
            return True
        return not subscription.urgent and now < clusters.in_flight.sent_at + self.settings.hold_s

    def _retain(self, before: Mapping[str, Mapping[str, Resource]], changes: Changes) -> None:
        """Hold on to what leaves the state and the client has, or may still ask for."""
        gone: dict[Reference, Resource] = {}
        for kind, resources in before.items():
            current = self._state(kind).resources
            for name in [name for name in self._retained.of(kind) if name in current]:
                self._retained.drop(kind, name)
            left = [name for name in changes[kind] if name not in current]
            gone.update(((kind, name), resources[name]) for name in left if name in resources)
        if gone:
            had = [(kind, name) for kind, name in gone if self._has(kind, name)]
            self._retained.keep(gone, (*had, *self._named_by_sent()), self._named_by)

    def _named_by_sent(self) -> Iterable[Reference]:
        """Yield what the client may ask for: whatever the resources name that it has or is being sent."""
        return (reference for each in self.subscriptions.values() for reference in each.references())

    def _has(self, type_url: str, name: str) -> bool:
        subscription = self.subscriptions.get(type_url)
        return subscription is not None and name in subscription.known and subscription.wants(name)

    def _named_by_rejected(self) -> list[Reference]:
        """Return what the client may need as long as what it rejected is not corrected: it goes on with what it had."""
        return [
            reference
            for type_url in (*ROUTING_TYPES, CDS)
            if (each := self.subscriptions.get(type_url)) is not None
            for name in each.doubtful.keys() & self._state(type_url).resources.keys()
            for reference in self._named_by((type_url, name))
        ]

    def _named_by(self, parent: Reference) -> Iterable[Reference]:
        """Return what a resource names in the versions that the client may have."""
        type_url, name = parent
        if (subscription := self.subscriptions.get(type_url)) is None:
            return ()
        return (*subscription.named.get(name, ()), *subscription.doubtful.get(name, ()))

    def _may_break(self, now: float) -> bool:
        """Tell whether removed clusters may leave: routes have changed over, or did not in time (ORD-2)."""
        if now >= self._retained.deadline:
            return True
        parents = [self.subscriptions[each] for each in (*ROUTING_TYPES, CDS) if each in self.subscriptions]
        if any(each.in_flight is not None or (each.pending and self._difference(each)) for each in parents):
            return False
        # A gRPC client asks for what a new listener or route names only after it has acknowledged it.
        return self._in_flight(EDS) is None and all(self._is_sent(*each) for each in self._needed(parents))

    def _needed(self, parents: Iterable[S]) -> Iterable[Reference]:
        """Yield what the client needs before it can use what it was sent."""
        clusters = self._snapshot.state(CDS).resources
        for parent in parents:
            if parent.type_url == CDS and EDS not in self.subscriptions:
                continue  # a client that wants no endpoints
            for name, resource in self.wanted(parent).items():
                if name not in parent.known:
                    continue
                for kind, needed in resource.references:
                    yield kind, needed
                    if kind == CDS and needed in clusters:
                        yield from (each for each in clusters[needed].references if each[0] == EDS)

    def _is_sent(self, type_url: str, name: str) -> bool:
        if type_url not in (LDS, RDS, CDS, EDS) or name not in self._state(type_url).resources:
            return True  # nothing that could still be sent
        subscription = self.subscriptions.get(type_url)
        return subscription is not None and name in subscription.known
