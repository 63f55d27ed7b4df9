"""What the server knows about its clients: once as values, which the status page and CSDS both show (OBS-1)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from xds_server.hub import LiveStream, Machine
from xds_server.ordering import SDS, in_push_order, short_name
from xds_server.sotw import SotwStream
from xds_server.subscription import Subscription
from xds_server.wire import Node


class State(StrEnum):
    """CSDS' words. Stale: sent and not answered yet. Error: the last answer was a rejection."""

    SYNCED = "SYNCED"
    STALE = "STALE"
    ERROR = "ERROR"
    NOT_SENT = "NOT_SENT"


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """One resource as a client has it.

    Attributes:
        version: That was sent last; empty when it was not sent.
        entry: Its `resources` entry in a response, if it is still what was sent. Never of a secret.
    """

    name: str
    state: State
    version: str = ""
    entry: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TypeStatus:
    """One type on one stream; times in monotonic seconds.

    Attributes:
        sent_at: Of the last response; None before the first.
        rejected_version: Of the last rejection, which `last_error` tells about.
    """

    type_url: str
    state: State
    names: tuple[str, ...]
    wildcard: bool
    resource_count: int
    sent_version: str
    sent_at: float | None
    acked_version: str
    unanswered_since: float | None
    rejections: int
    last_error: str | None
    rejected_version: str
    rejected_at: float
    stale_nonces: int
    resources: tuple[ResourceStatus, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientStatus:
    """One stream.

    Attributes:
        protocol: `sotw` or `delta`.
        service_type: The only type on it; None: aggregated.
    """

    node: Node
    protocol: str
    service_type: str | None
    profile: str
    identity: str | None
    peer: str
    opened_at: float
    types: tuple[TypeStatus, ...]


def clients(streams: Iterable[LiveStream], *, with_resources: bool) -> tuple[ClientStatus, ...]:
    """Describe the open streams, by node id.

    Args:
        with_resources: Say the state of each resource, too.
    """
    found = [_client(stream, with_resources) for stream in streams]
    return tuple(sorted(found, key=lambda each: (each.node.id, each.opened_at)))


def clients_status(streams: Iterable[LiveStream], now: float) -> list[dict[str, Any]]:
    """Describe the open streams as JSON data.

    Args:
        now: Monotonic seconds.
    """
    return [_client_data(client, now) for client in clients(streams, with_resources=False)]


def _client(stream: LiveStream, with_resources: bool) -> ClientStatus:
    machine = stream.machine
    return ClientStatus(
        node=machine.node or Node(""),
        protocol="sotw" if isinstance(machine, SotwStream) else "delta",
        service_type=machine.service_type,
        profile=str(stream.group.profile),
        identity=str(stream.identity) if stream.identity else None,
        peer=stream.peer,
        opened_at=stream.opened_at,
        types=tuple(_type(machine, each, with_resources) for each in in_push_order(machine.subscriptions)),
    )


def _type(machine: Machine, type_url: str, with_resources: bool) -> TypeStatus:
    subscription = machine.subscriptions[type_url]
    return TypeStatus(
        type_url=type_url,
        state=_state(subscription),
        names=tuple(sorted(subscription.names)),
        wildcard=subscription.wildcard,
        resource_count=len(subscription.known),
        sent_version=subscription.sent_version,
        sent_at=subscription.sent_at if subscription.sent_version else None,
        acked_version=subscription.acked_version,
        unanswered_since=subscription.in_flight.sent_at if subscription.in_flight is not None else None,
        rejections=subscription.nacks,
        last_error=subscription.last_error,
        rejected_version=subscription.rejected_version,
        rejected_at=subscription.rejected_at,
        stale_nonces=subscription.stale_nonces,
        resources=tuple(_resources(machine, type_url)) if with_resources else (),
    )


def _state(subscription: Subscription) -> State:
    if subscription.last_error is not None:
        return State.ERROR
    if subscription.in_flight is not None:
        return State.STALE
    return State.SYNCED if subscription.sent_version else State.NOT_SENT


def _resources(machine: Machine, type_url: str) -> Iterator[ResourceStatus]:
    """Yield what a client has or asks for, by name."""
    if isinstance(machine, SotwStream):
        subscription: Subscription = machine.subscriptions[type_url]
        wanted = machine.wanted(machine.subscriptions[type_url])
    else:
        subscription = machine.subscriptions[type_url]
        wanted = machine.wanted(machine.subscriptions[type_url])
    travelling = frozenset(subscription.in_flight.names if subscription.in_flight is not None else ())
    known = {name: version for name, version in subscription.known.items() if subscription.wants(name)}
    for name in sorted(known.keys() | subscription.names):
        if name not in known:
            yield ResourceStatus(name, State.NOT_SENT)
            continue
        resource = wanted.get(name)
        is_same = resource is not None and resource.version == known[name] and type_url != SDS
        settled = State.ERROR if name in subscription.suspect else State.SYNCED
        state = State.STALE if name in travelling else settled
        yield ResourceStatus(name, state, known[name], resource.field if resource is not None and is_same else None)


def _client_data(client: ClientStatus, now: float) -> dict[str, Any]:
    node = client.node
    return {
        "node_id": node.id,
        "node_cluster": node.cluster,
        "user_agent": f"{node.user_agent_name} {node.user_agent_version}".strip(),
        "protocol": client.protocol,
        "stream": short_name(client.service_type) if client.service_type else "aggregated",
        "profile": client.profile,
        "identity": client.identity,
        "peer": client.peer,
        "connected_s": round(now - client.opened_at, 3),
        "types": {short_name(each.type_url): _type_data(each, now) for each in client.types},
    }


def _type_data(status: TypeStatus, now: float) -> dict[str, Any]:
    unanswered = status.unanswered_since
    return {
        "state": status.state,
        "names": list(status.names),
        "wildcard": status.wildcard,
        "resources": status.resource_count,
        "sent_version": status.sent_version,
        "sent_s_ago": round(now - status.sent_at, 3) if status.sent_at is not None else None,
        "acked_version": status.acked_version,
        "unanswered_s": round(now - unanswered, 3) if unanswered is not None else None,
        "rejections": status.rejections,
        "last_error": status.last_error,
        "stale_nonces": status.stale_nonces,
    }
