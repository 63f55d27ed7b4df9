"""One state-of-the-world stream as a pure machine: requests and publishes in, responses out when asked for.

A request lists all names of its type. Responses of full-state types hold everything wanted, those of the others what
changed; see `machine` for what both variants share.
"""

from collections.abc import Mapping

from xds_server.machine import StreamMachine
from xds_server.ordering import DELTA_TYPES
from xds_server.requests import check_limits
from xds_server.snapshot import EMPTY, Resource, TypeState
from xds_server.stream import Response, StreamRefused
from xds_server.subscription import SotwSubscription
from xds_server.wire import Request, ResourceError, decode_request, encode_response, wrapped_field


class SotwStream(StreamMachine[SotwSubscription]):
    """The server's side of one state-of-the-world stream."""

    def _state(self, type_url: str) -> TypeState:
        # Virtual hosts and single endpoints are not in this variant: whoever asks hears that there are none.
        return EMPTY if type_url in DELTA_TYPES else super()._state(type_url)

    @staticmethod
    def decode(data: bytes) -> Request:
        """Decode a request.

        Raises:
            StreamRefused: It is not one.
        """
        try:
            return decode_request(data)
        except ValueError as error:
            raise StreamRefused("INVALID_ARGUMENT", str(error)) from error

    def receive(self, data: bytes, now: float) -> Request:
        request = self.decode(data)
        self.request(request, now)
        return request

    def request(self, request: Request, now: float) -> None:
        """Take in one request.

        Raises:
            StreamRefused: A mistake that ends the stream.

        Source: management server rules, section 3.1; the row numbers are the table's.
        """
        type_url = self._check(request.node, request.type_url)
        check_limits(self.subscriptions, type_url, request.names, len(request.names))
        subscription = self.subscriptions.get(type_url)
        if subscription is None:  # row 1; whatever nonce it carries is of another stream
            subscription = SotwSubscription(type_url)
            self.subscriptions[type_url] = subscription
            subscription.update(request.names, first=True)
            return
        in_flight = subscription.in_flight
        if in_flight is not None and request.nonce != in_flight.nonce:
            subscription.note_stale(request.names)  # row 3: the ACK that must follow carries the full names
            return
        if in_flight is not None:  # rows 4 and 2
            self._answered(subscription, in_flight, request.error, now)
        subscription.update(request.names)  # rows 6 to 8
        self._drop_unwanted(subscription)

    def _difference(self, subscription: SotwSubscription) -> bool:
        known = subscription.known
        wanted = self.wanted(subscription)
        if (
            subscription.must_answer
            or subscription.resend
            or not subscription.suspect <= wanted.keys()
            or any(known.get(name) != resource.version for name, resource in wanted.items())
        ):
            return True
        return subscription.is_full_state and len(known) != len(wanted)

    def _compose(self, subscription: SotwSubscription, now: float) -> Response | None:
        """Compute and record the next response of one type; None and not pending when nothing is due."""
        wanted = self.wanted(subscription)
        known = subscription.known
        changed = [name for name in sorted(wanted) if known.get(name) != wanted[name].version]
        if any(name not in wanted or name in changed for name in subscription.suspect):
            subscription.resend.update(name for name in subscription.suspect if name in wanted)
            subscription.suspect.clear()
            if subscription.is_full_state and (subscription.wildcard or subscription.names):
                subscription.must_answer = True  # it may also have been the one that said what is gone
        errors = self._errors(subscription.type_url, sorted(subscription.unreported - wanted.keys()))
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

    def _send_again(self, child: SotwSubscription, name: str) -> None:
        if name in child.known:
            child.resend.add(name)
            child.pending = True

    def _record(
        self,
        subscription: SotwSubscription,
        wanted: Mapping[str, Resource],
        sent: list[str],
        errors: tuple[ResourceError, ...],
        now: float,
    ) -> Response:
        nonce, version = self._sent(subscription, wanted, tuple(sent), now)
        data = encode_response(
            type_url=subscription.type_url,
            version=version,
            nonce=nonce,
            resource_fields=[self._field(wanted[name]) for name in sent],
            errors=errors,
            identifier=self.settings.identifier,
        )
        return Response(subscription.type_url, version, nonce, tuple(sent), errors, data)

    def _field(self, resource: Resource) -> bytes:
        if resource.ttl_s is None or not self._has_ttl:
            return resource.field
        return wrapped_field(resource.name, resource.version, resource.field, resource.ttl_s)

    def _beat(
        self, subscription: SotwSubscription, names: list[str], wanted: Mapping[str, Resource], now: float
    ) -> Response | None:
        # With their bodies: of full-state types Envoy takes a heartbeat for the deletion of everything (TTL-2), and
        # Envoy 1.40 lets endpoints expire that only heartbeats keep.
        subscription.resend.update(names)
        return self._compose(subscription, now)

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
