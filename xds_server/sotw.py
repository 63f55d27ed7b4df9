"""One state-of-the-world stream as a pure machine: requests and publishes in, responses out when asked for.

The shell calls `request` for what the client sends, `publish` for what the server wants, and `respond` whenever the
client can take another message. What to send is computed only then, from the difference between what the client
should have and what it was sent. So changes that come while a response is under way merge by themselves, a slow
client costs one response per type, and a rejected resource is not sent again before it changes: it is in `known`.

Between types the machine keeps the order that lets clients change over without losing a request: clusters and
endpoints before listeners and routes, and a cluster that leaves stays listed until the routes that left it are
acknowledged (`_Retained`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
from xds_server.snapshot import EMPTY, Changes, Resource, Snapshot, TypeState
from xds_server.subscription import InFlight, Subscription
from xds_server.versions import type_version
from xds_server.wire import Node, Request, ResourceError, encode_response

MAX_RESPONSE_BYTES = 3_500_000
"""gRPC clients refuse messages of more than 4 MiB: the stream dies, and again after the reconnect (LIM-1)."""

# What one stream may ask for; ten times what the largest meshes do.
MAX_TYPES = 64
MAX_NAMES = 200_000
MAX_NAME_CHARS = 2048

MAX_ERROR_BYTES = 500_000
"""Of the names of one response that do not exist, with their texts; the others follow in the next one (LIM-1)."""

NOT_FOUND = 5
PERMISSION_DENIED = 7


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
        identifier: `control_plane.identifier` of every response.
    """

    max_response_bytes: int = MAX_RESPONSE_BYTES
    break_delay_s: float = 5.0
    hold_s: float = 5.0
    ack_timeout_s: float = 60.0
    resource_errors: bool = True
    identifier: str = "xds-server"


@dataclass(frozen=True, slots=True)
class Response:
    """One response to write; the machine has already recorded it as sent.

    Attributes:
        names: Names of the resources in it.
        data: The serialised `DiscoveryResponse`. Not shown: it may hold a private key.
    """

    type_url: str
    version: str
    nonce: str
    names: tuple[str, ...]
    errors: tuple[ResourceError, ...]
    data: bytes = field(repr=False)


@dataclass(slots=True)
class _Retained:
    """Clusters that left the state but stay listed on this stream until its routes have left them."""

    resources: dict[str, Resource] = field(default_factory=dict)
    deadline: float = 0.0


class SotwStream:
    """The server's side of one aggregated state-of-the-world stream.

    Args:
        snapshot: State of the client's group.
        secrets: Secrets of the client's identity; empty without one.
        denied: Types that this client may not have, with the reason that it is told.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        secrets: TypeState = EMPTY,
        denied: Mapping[str, str] | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.node: Node | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self._snapshot = snapshot
        self._secrets = secrets
        self._denied = dict(denied or {})
        self._retained = _Retained()
        self._nonce = 0

    # What happens to the stream.

    def request(self, request: Request, now: float) -> None:
        """Take in one request.

        Raises:
            StreamRefused: A mistake that ends the stream (section 2); a mistake about a resource never does.

        Source: management server rules, section 3.1; the row numbers are the table's.
        """
        self._check(request)
        subscription = self.subscriptions.get(request.type_url)
        if subscription is None:  # row 1; whatever nonce it carries is of another stream
            subscription = Subscription(request.type_url)
            self.subscriptions[request.type_url] = subscription
            subscription.update(request.names, first=True)
            return
        in_flight = subscription.in_flight
        if in_flight is not None and request.nonce != in_flight.nonce:
            subscription.note_stale(request.names)  # row 3: the ACK that must follow carries the full names
            return
        if in_flight is not None:
            subscription.in_flight = None
            subscription.pending = True
            if request.error is None:  # row 4
                subscription.accepted(in_flight)
            else:  # row 2
                subscription.rejected(in_flight, request.error)
        subscription.update(request.names)  # rows 6 to 8
        if request.type_url == CDS:
            for name in [name for name in self._retained.resources if not subscription.wants(name)]:
                del self._retained.resources[name]

    def publish(self, snapshot: Snapshot, changes: Changes, now: float) -> bool:
        """Take in the group's new state; returns whether this stream is concerned at all.

        Args:
            changes: What differs from the state published before; computed once for all streams.
        """
        previous, self._snapshot = self._snapshot, snapshot
        is_touched = False
        for type_url, names in changes.items():
            subscription = self.subscriptions.get(type_url)
            if subscription is not None and subscription.is_touched_by(names):
                subscription.pending = is_touched = True
        if CDS in changes:
            self._retain(previous.state(CDS), changes[CDS])
        if self._retained.resources:
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
            # Looked at last: what has just been found to be nothing may have been what removed clusters waited for.
            if not self._retained.resources or not self._may_break(now):
                return None
            self._retained.resources.clear()
            self.subscriptions[CDS].pending = True

    def deadline(self, now: float) -> float | None:
        """Return when `respond` may have something to send although nothing happens; monotonic seconds, after `now`."""
        times: list[float] = []
        if self._retained.resources:
            times.append(self._retained.deadline)
        for subscription in self.subscriptions.values():
            if not subscription.pending:
                continue
            if subscription.in_flight is not None:
                times.append(subscription.in_flight.sent_at + self.settings.ack_timeout_s)
            elif subscription.type_url in ROUTING_TYPES and (clusters := self._in_flight(CDS)) is not None:
                times.append(clusters.sent_at + self.settings.hold_s)
                times.append(clusters.sent_at + self.settings.ack_timeout_s)
        return min((time for time in times if time > now), default=None)

    # What to send.

    def _next(self, now: float) -> Response | None:
        for type_url in in_push_order(self.subscriptions):
            subscription = self.subscriptions[type_url]
            if not subscription.pending or self._is_unanswered(subscription, now) or self._is_held(subscription, now):
                continue
            if (response := self._compose(subscription, now)) is not None:
                return response
        return None

    def _check(self, request: Request) -> None:
        if self.node is None:
            if request.node is None or not request.node.id:
                raise StreamRefused("INVALID_ARGUMENT", "the first request must carry a node with an id")
            self.node = request.node
        elif request.node is not None and request.node.id and request.node.id != self.node.id:
            raise StreamRefused(
                "INVALID_ARGUMENT",
                f"the stream belongs to node {self.node.id!r}, open another one for {request.node.id!r}",
            )
        if not request.type_url:
            raise StreamRefused("INVALID_ARGUMENT", "a request on an aggregated stream must name its type_url")
        if request.type_url not in self.subscriptions and len(self.subscriptions) >= MAX_TYPES:
            raise StreamRefused("RESOURCE_EXHAUSTED", f"a stream has at most {MAX_TYPES} types")
        others = sum(len(each.names) for each in self.subscriptions.values() if each.type_url != request.type_url)
        if others + len(request.names) > MAX_NAMES:
            raise StreamRefused("RESOURCE_EXHAUSTED", f"a stream asks for at most {MAX_NAMES} names")
        if any(len(name) > MAX_NAME_CHARS for name in (request.type_url, *request.names)):
            raise StreamRefused("INVALID_ARGUMENT", f"names have at most {MAX_NAME_CHARS} characters")

    def _state(self, type_url: str) -> TypeState:
        if type_url in self._denied:
            return EMPTY
        return self._secrets if type_url == SDS else self._snapshot.state(type_url)

    def _wanted(self, subscription: Subscription) -> Mapping[str, Resource]:
        resources = self._state(subscription.type_url).resources
        wanted: Mapping[str, Resource] = resources
        if not subscription.wildcard:
            wanted = {name: resources[name] for name in subscription.names if name in resources}
        if subscription.type_url == CDS and self._retained.resources:
            wanted = {**self._retained.resources, **wanted}
        return wanted

    def _difference(self, subscription: Subscription) -> bool:
        known = subscription.known
        wanted = self._wanted(subscription)
        if (
            subscription.must_answer
            or subscription.resend
            or any(known.get(name) != resource.version for name, resource in wanted.items())
        ):
            return True
        return subscription.is_full_state and len(known) != len(wanted)

    def _compose(self, subscription: Subscription, now: float) -> Response | None:
        """Compute and record the next response of one type; None and not pending when nothing is due."""
        wanted = self._wanted(subscription)
        known = subscription.known
        changed = [name for name in sorted(wanted) if known.get(name) != wanted[name].version]
        if any(name not in wanted or name in changed for name in subscription.suspect):
            subscription.resend.update(name for name in subscription.suspect if name in wanted)
            subscription.suspect.clear()
        errors = self._errors(subscription, wanted)
        subscription.unreported = (
            subscription.unreported - wanted.keys() - {error.name for error in errors} if errors else set()
        )
        if subscription.is_full_state:
            again = subscription.must_answer or bool(subscription.resend)
            is_due = bool(changed or errors or again or len(known) != len(wanted))
            sent = sorted(wanted)
            rest = False
            subscription.resend.clear()
        else:
            for name in known.keys() - wanted.keys():
                del known[name]  # SW-4: not told, but forgotten, so that a re-creation is sent
            due = sorted({*changed, *(name for name in subscription.resend if name in wanted)})
            sent = self._first_part([wanted[name] for name in due])
            rest = len(sent) < len(due)
            is_due = bool(sent or errors)
            subscription.resend -= {*sent, *(subscription.resend - wanted.keys())}
        rest = rest or bool(subscription.unreported)
        subscription.must_answer = False
        subscription.urgent = subscription.urgent and rest
        subscription.pending = rest
        if not is_due:
            return None
        if subscription.is_full_state:
            known.clear()
        known.update((name, wanted[name].version) for name in sent)
        self._resend_children(subscription.type_url, [wanted[name] for name in changed])
        return self._record(subscription, wanted, sent, errors, now)

    def _record(
        self,
        subscription: Subscription,
        wanted: Mapping[str, Resource],
        sent: list[str],
        errors: tuple[ResourceError, ...],
        now: float,
    ) -> Response:
        self._nonce += 1
        nonce = str(self._nonce)
        state = self._state(subscription.type_url)
        # The version tells the wanted content, also when only a part of it travels (VER-2).
        whole = wanted is state.resources
        version = state.version if whole else type_version((name, item.version) for name, item in wanted.items())
        subscription.in_flight = InFlight(nonce, version, tuple(sent), now)
        subscription.sent_version = version
        data = encode_response(
            type_url=subscription.type_url,
            version=version,
            nonce=nonce,
            resource_fields=[wanted[name].field for name in sent],
            errors=errors,
            identifier=self.settings.identifier,
        )
        return Response(subscription.type_url, version, nonce, tuple(sent), errors, data)

    def _errors(self, subscription: Subscription, wanted: Mapping[str, Resource]) -> tuple[ResourceError, ...]:
        if not self.settings.resource_errors or subscription.type_url not in PUSH_ORDER:
            return ()
        kind = short_name(subscription.type_url)
        reason = self._denied.get(subscription.type_url)
        found: list[ResourceError] = []
        size = 0
        for name in sorted(subscription.unreported - wanted.keys()):
            text = f"{kind} {name!r} does not exist" if reason is None else f"{kind} {name!r}: {reason}"
            size += len(name.encode()) + len(text.encode())
            if found and size > MAX_ERROR_BYTES:
                break
            found.append(ResourceError(name, NOT_FOUND if reason is None else PERMISSION_DENIED, text))
        return tuple(found)

    def _first_part(self, resources: list[Resource]) -> list[str]:
        """Return the names of as many resources as fit one response, at least one (LIM-1)."""
        names: list[str] = []
        size = 0
        for resource in resources:
            size += len(resource.field)
            if names and size > self.settings.max_response_bytes:
                break
            names.append(resource.name)
        return names

    # Order across types.

    def _resend_children(self, type_url: str, parents: list[Resource]) -> None:
        """Mark the children of a parent that is being sent (ORD-4): Envoy waits for them again, without asking."""
        child_types = CHILD_TYPES.get(type_url)
        if child_types is None:
            return
        for parent in parents:
            for child_type, name in parent.references:
                child = self.subscriptions.get(child_type)
                if child_type in child_types and child is not None and name in child.known:
                    child.resend.add(name)
                    child.pending = True

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

    def _retain(self, previous: TypeState, changed: frozenset[str]) -> None:
        clusters = self.subscriptions.get(CDS)
        if clusters is None:
            return
        current = self._snapshot.state(CDS).resources
        for name in changed:
            if name in current:
                self._retained.resources.pop(name, None)
            elif name in clusters.known and name in previous.resources:
                self._retained.resources[name] = previous.resources[name]

    def _may_break(self, now: float) -> bool:
        """Tell whether removed clusters may leave: routes have changed over, or did not in time (ORD-2)."""
        routing = [self.subscriptions[each] for each in ROUTING_TYPES if each in self.subscriptions]
        if any(each.suspect for each in routing):
            return False  # what was rejected leaves routes that may point at the old cluster
        if now >= self._retained.deadline:
            return True
        if any(each.in_flight is not None or (each.pending and self._difference(each)) for each in routing):
            return False
        # A gRPC client asks for what a new listener or route names only after it has acknowledged it.
        needed = [
            reference
            for each in routing
            for name, resource in self._wanted(each).items()
            if name in each.known
            for reference in resource.references
        ]
        clusters = self._snapshot.state(CDS).resources
        needed += [
            reference
            for kind, name in needed
            if kind == CDS and name in clusters
            for reference in clusters[name].references
            if reference[0] == EDS
        ]
        return self._in_flight(EDS) is None and all(self._is_sent(kind, name) for kind, name in needed)

    def _is_sent(self, type_url: str, name: str) -> bool:
        if type_url not in (LDS, RDS, CDS, EDS) or name not in self._state(type_url).resources:
            return True  # nothing that could still be sent
        subscription = self.subscriptions.get(type_url)
        return subscription is not None and name in subscription.known
