"""One incremental stream as a pure machine: requests and publishes in, responses out when asked for.

A request says which names come and go, a response holds only what changed and says which names are gone. What both
variants share is in `machine`; what a request does to a subscription in `delta_subscription`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from xds_server.collective import covers, is_glob
from xds_server.delta_subscription import DeltaSubscription
from xds_server.machine import StreamMachine
from xds_server.ordering import EDS, LEDS, PUSH_ORDER, RDS, SDS, VHDS
from xds_server.requests import MAX_NAMES, check_limits
from xds_server.snapshot import EMPTY, Resource, Snapshot, TypeState
from xds_server.stream import Response, Settings, StreamRefused
from xds_server.wire import DeltaRequest, ResourceError, decode_delta_request, delta_field, encode_delta_response

# A client that returns needs these again even if it has them: their parents may be warming (REC-3).
_RESENT_TYPES = frozenset({EDS, SDS, RDS})

# Of an entry: tags and lengths, and a version of 32 characters. Exactness does not matter, the limit has room.
_ENTRY_BYTES = 64


@dataclass(frozen=True, slots=True)
class _Due:
    """What differs between a client and its state.

    Attributes:
        changed: Sorted names that are new, changed, or to be sent again.
        gone: Sorted names that the client has, or asks for, and that do not exist.
    """

    changed: list[str]
    gone: list[str]


class DeltaStream(StreamMachine[DeltaSubscription]):
    """The server's side of one incremental stream."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        secrets: TypeState = EMPTY,
        denied: Mapping[str, str] | None = None,
        settings: Settings | None = None,
        service_type: str | None = None,
    ) -> None:
        super().__init__(snapshot, secrets=secrets, denied=denied, settings=settings, service_type=service_type)
        self._hosts: dict[str, str] = {}  # which virtual host was sent for what was asked for

    @staticmethod
    def decode(data: bytes) -> DeltaRequest:
        """Decode a request.

        Raises:
            StreamRefused: It is not one.
        """
        try:
            return decode_delta_request(data)
        except ValueError as error:
            raise StreamRefused("INVALID_ARGUMENT", str(error)) from error

    def receive(self, data: bytes, now: float) -> DeltaRequest:
        request = self.decode(data)
        self.request(request, now)
        return request

    def request(self, request: DeltaRequest, now: float) -> None:
        """Take in one request: acknowledgement, subscriptions, unsubscriptions, in this order.

        Raises:
            StreamRefused: A mistake that ends the stream.

        Source: management server rules, section 4.1.
        """
        type_url = self._check(request.node, request.type_url)
        subscription = self.subscriptions.get(type_url)
        held = subscription.names if subscription is not None else frozenset()
        check_limits(self.subscriptions, type_url, request.subscribe, len(held) + len(set(request.subscribe) - held))
        if subscription is None:  # whatever nonce it carries is of another stream
            if len(request.initial) > MAX_NAMES:
                raise StreamRefused("RESOURCE_EXHAUSTED", f"a client has at most {MAX_NAMES} resources of a type")
            subscription = self.subscriptions[type_url] = DeltaSubscription(type_url)
            resend = self.settings.resend_on_reconnect and type_url in _RESENT_TYPES
            subscription.begin(request.subscribe, request.unsubscribe, request.initial, resend=resend)
            self._resume(subscription, now)
            return
        in_flight = subscription.in_flight
        if in_flight is not None and request.nonce == in_flight.nonce:
            self._answered(subscription, in_flight, request.error, now)
        elif request.nonce or request.error is not None:
            subscription.stale_nonces += 1
        subscription.change(request.subscribe, request.unsubscribe)
        self._drop_unwanted(subscription)

    def _resume(self, subscription: DeltaSubscription, now: float) -> None:
        """Take up again what a client kept over a reconnect and that is still as it was."""
        wanted = self.wanted(subscription) if subscription.known else {}
        for name, version in subscription.known.items():
            if (one := wanted.get(name)) is None:
                continue
            if one.references and one.version == version:
                subscription.named[name] = one.references
            if one.ttl_s is not None and self._has_ttl:  # time goes on at the client
                subscription.refresh_at[name] = now

    def _due(self, subscription: DeltaSubscription, wanted: Mapping[str, Resource]) -> _Due:
        known = subscription.known
        changed = {name for name, resource in wanted.items() if known.get(name) != resource.version}
        gone = {name for name in known if name not in wanted and subscription.wants(name)}
        asked = {name for name in subscription.unreported | subscription.retell if not _is_there(name, wanted)}
        if subscription.suspect & (changed | gone | asked):
            # ACK-5: of a rejected response the client may have taken over all, some or nothing.
            subscription.resend |= subscription.suspect & (wanted.keys() | known.keys())
            # Also what is there now and was said to be gone: it may go again before it is sent.
            subscription.retell |= subscription.suspect - (wanted.keys() & known.keys())
            subscription.suspect.clear()
        if subscription.type_url in PUSH_ORDER:  # about unknown types nothing is said (STR-4)
            gone |= {name for name in subscription.unreported | subscription.retell if not _is_there(name, wanted)}
        changed |= subscription.resend & wanted.keys()
        return _Due(sorted(changed), sorted(gone))

    def _difference(self, subscription: DeltaSubscription) -> bool:
        due = self._due(subscription, self.wanted(subscription))
        return bool(subscription.must_answer or due.changed or due.gone)

    def _compose(self, subscription: DeltaSubscription, now: float) -> Response | None:
        wanted = self.wanted(subscription)
        known = subscription.known
        due = self._due(subscription, wanted)
        absent = [name for name in due.gone if name in subscription.unreported]
        errors = self._errors(subscription.type_url, absent)
        if errors and len(errors) < len(absent):  # the other texts, and their names, fit the next response
            late = set(absent[len(errors) :])
            sent, removed = self._first_part(
                wanted, _Due(due.changed, [name for name in due.gone if name not in late]), errors
            )
        else:
            sent, removed = self._first_part(wanted, due, errors)
        rest = len(sent) + len(removed) < len(due.changed) + len(due.gone)
        is_due = bool(sent or removed or subscription.must_answer)
        told = {*sent, *removed}
        # What is gone and not told yet may return as it was, and must be sent then, too.
        subscription.resend = {name for name in subscription.resend - told if name in wanted or name in known}
        subscription.unreported = subscription.unreported - told if rest else set()
        subscription.retell = subscription.retell - told if rest else set()
        subscription.must_answer = False
        subscription.urgent = subscription.urgent and rest
        subscription.pending = rest
        if not is_due:
            return None
        known.update((name, wanted[name].version) for name in sent)
        for name in removed:
            known.pop(name, None)
        self._resend_children(subscription.type_url, [wanted[name] for name in sent])
        return self._record(subscription, wanted, sent, removed, errors, now)

    def _first_part(
        self, wanted: Mapping[str, Resource], due: _Due, errors: tuple[ResourceError, ...]
    ) -> tuple[list[str], list[str]]:
        """Return as many names as fit one response, at least one (LIM-1): what is gone comes last."""
        said = {error.name: len(error.message.encode()) for error in errors}
        sent: list[str] = []
        removed: list[str] = []
        size = 0
        for name in due.changed:
            size += len(wanted[name].field) + len(name.encode()) + _ENTRY_BYTES
            if sent and size > self.settings.max_response_bytes:
                return sent, removed
            sent.append(name)
        for name in due.gone:
            size += 2 * len(name.encode()) + said.get(name, 0) + _ENTRY_BYTES
            if (sent or removed) and size > self.settings.max_response_bytes:
                break
            removed.append(name)
        return sent, removed

    def _send_again(self, child: DeltaSubscription, name: str) -> None:
        if name in child.known:
            child.resend.add(name)
        else:  # nothing to send, but whoever waits for it again must hear so again
            child.unreported.add(name)
        child.pending = True

    def _fields(
        self,
        subscription: DeltaSubscription,
        names: list[str],
        wanted: Mapping[str, Resource],
        *,
        with_body: bool = True,
    ) -> list[bytes]:
        """Return the entries for resources. A virtual host is sent once, with all that it was asked for by as aliases."""
        if subscription.type_url != VHDS:
            return [
                delta_field(name, one.version, one.field if with_body else b"", self._ttl_s(one))
                for name in names
                for one in (wanted[name],)
            ]
        hosts = {wanted[name].name: wanted[name] for name in names}
        aliases: dict[str, list[str]] = {name: [] for name in hosts}
        for asked, one in sorted(wanted.items()):
            if one.name in hosts:
                aliases[one.name].append(asked)
                self._hosts[asked] = one.name
        return [
            delta_field(name, one.version, one.field if with_body else b"", self._ttl_s(one), tuple(aliases[name]))
            for name, one in hosts.items()
        ]

    def _ttl_s(self, resource: Resource) -> float | None:
        return resource.ttl_s if self._has_ttl else None

    def _beat(
        self, subscription: DeltaSubscription, names: list[str], wanted: Mapping[str, Resource], now: float
    ) -> Response | None:
        nonce, version = self._sent(subscription, wanted, tuple(names), now, with_body=False)
        data = encode_delta_response(
            type_url=subscription.type_url,
            version=version,
            nonce=nonce,
            resource_fields=self._fields(subscription, names, wanted, with_body=False),
            removed=(),
            errors=(),
            identifier=self.settings.identifier,
        )
        return Response(subscription.type_url, version, nonce, tuple(names), (), data)

    def _record(
        self,
        subscription: DeltaSubscription,
        wanted: Mapping[str, Resource],
        sent: list[str],
        removed: list[str],
        errors: tuple[ResourceError, ...],
        now: float,
    ) -> Response:
        nonce, version = self._sent(subscription, wanted, (*sent, *removed), now, only_removals=not sent)
        told = set(removed)
        fields = self._fields(subscription, sent, wanted)
        errors = tuple(error for error in errors if error.name in told)
        gone = removed
        if subscription.type_url == VHDS:
            # Of a host that nobody serves one says so by a resource without contents; of one that was there, its name.
            errors = ()
            fields += [delta_field(name, "", b"", aliases=(name,)) for name in removed if name not in self._hosts]
            gone = list(dict.fromkeys(self._hosts.pop(name) for name in removed if name in self._hosts))
            gone = [name for name in gone if name not in {wanted[one].name for one in sent}]
        data = encode_delta_response(
            type_url=subscription.type_url,
            version=version,
            nonce=nonce,
            resource_fields=fields,
            removed=gone,
            errors=errors,
            identifier=self.settings.identifier,
        )
        return Response(subscription.type_url, version, nonce, tuple(sent), errors, data, tuple(removed))


def _is_there(name: str, wanted: Mapping[str, Resource]) -> bool:
    """Tell whether there is something to send for a name: itself, or a member of a glob."""
    if name in wanted:
        return True
    return is_glob(LEDS, name) and any(covers(name, one) for one in wanted)
