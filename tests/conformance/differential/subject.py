"""meshlib's side: a configuration goes through its decoder, a request through its route table."""

import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace

from google.protobuf.json_format import ParseError

from differential.decision import Decision, Outcome, Refusal, comparable
from differential.envoy_side import CLUSTER_METADATA, ENDPOINT_ADDRESS, ENDPOINT_HOSTNAME, UPSTREAM_HEADERS
from differential.generate import CLUSTERS, LISTENER_PORT, TYPE, Json, Request
from meshlib.matching import INLINE_REQUEST_HEADERS
from meshlib.model.endpoint import Endpoint
from meshlib.model.filters import HeaderFilter, ListedHeaderFilter
from meshlib.model.listener import ClientListener
from meshlib.model.outcome import Connected, LocalReply
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, Moment, RequestHead
from meshlib.model.route import RouteConfiguration
from meshlib.protos import from_dict
from meshlib.routing import RouteMatch, RouteTable, decide_fault
from meshlib.routing.format import Scene
from meshlib.routing.prepare import EarlyAnswer
from meshlib.routing.replies import trailers_only
from meshlib.routing.route_match import FaultedReply
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import LDS, RDS

HEADER_FILTER = ListedHeaderFilter("envoy.filters.http.header_mutation", HeaderFilter(), is_after_fault=True)
"""As the bootstrap of Envoy's side has it."""
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}


def refusal(configuration: Json) -> Refusal | None:
    """Return why meshlib does not take a configuration; None: it does."""
    try:
        made = _table(configuration)
    except ParseError as error:  # a part that had to be there was left out while shrinking
        return Refusal(str(error))
    return made if isinstance(made, Refusal) else None


def refusal_of(type_url: str, kind: str, resource: Json) -> Refusal | None:
    """Return why meshlib does not take a resource of any type; None: it does."""
    try:
        body = from_dict(kind, resource).SerializeToString()
    except ParseError as error:  # a part that had to be there was left out while shrinking
        return Refusal(str(error))
    decoded = decode_resource(type_url, body)
    return Refusal("\n".join(decoded.errors)) if decoded.errors else None


def decide(
    configuration: Json, requests: Sequence[Request], managers: Sequence[Json] = ({},), began: Outcome | None = None
) -> Outcome:
    """Return what meshlib would do.

    Args:
        began: When Envoy's requests began: meshlib's begin at the same time.
        managers: What the connection managers have beside the usual.
    """
    tables: dict[int, RouteTable] = {}
    for number in {request.manager for request in requests}:
        made = _table(configuration, managers[number])
        if isinstance(made, Refusal):
            return made
        tables[number] = made
    times = [0] * len(requests) if began is None or isinstance(began, Refusal) else [one.started_us for one in began]
    return [_decide(tables[request.manager], request, at) for request, at in zip(requests, times, strict=True)]


def listener(manager: Json) -> ClientListener:
    """Decode a listener with a connection manager."""
    message = {
        "name": "listener",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": int(LISTENER_PORT[1:])}},
        "api_listener": {
            "api_listener": {"@type": TYPE + MANAGER, "http_filters": [ROUTER], "route_config": {}, **manager}
        },
    }
    decoded = decode_resource(LDS, from_dict("envoy.config.listener.v3.Listener", message).SerializeToString())
    assert isinstance(decoded.value, ClientListener), decoded.errors
    assert () == decoded.errors
    return decoded.value


def _table(configuration: Json, manager: Json | None = None) -> RouteTable | Refusal:
    message = from_dict("envoy.config.route.v3.RouteConfiguration", configuration)
    decoded = decode_resource(RDS, message.SerializeToString())
    if decoded.errors:
        return Refusal("\n".join(decoded.errors))
    routes = decoded.value
    assert isinstance(routes, RouteConfiguration)
    try:
        found = replace(listener(manager or {}), has_fault_filter=True, header_filters=(HEADER_FILTER,))
        return RouteTable(replace(found, routes=routes), routes)
    except ValueError as error:
        return Refusal(f"decoded, but not compiled: {error}")


def _decide(table: RouteTable, request: Request, started_us: int) -> Decision:
    headers = Headers(_folded(request.headers))
    moment = Moment(socket.gethostname(), started_us / 1e6, metadata_of=CLUSTER_METADATA.get)
    head = RequestHead(
        request.method, request.authority, request.path, headers, is_grpc=request.is_grpc, profile=HTTP, moment=moment
    )
    rng = random.Random(0)  # decides nothing: the generator leaves nothing to chance
    received, prepared = head, head if table.prepare is None else table.prepare(head)
    if isinstance(prepared, EarlyAnswer):
        return _local(table.local_reply(prepared.reply, prepared.head), "", head)
    head = prepared
    found = table.match(head, rng, is_prepared=True)
    if isinstance(found, LocalReply):
        chosen = table.trace(received).chosen
        route = "" if chosen is None else chosen.name
        if isinstance(found, FaultedReply):
            fault = decide_fault(found.fault, head, rng)
            if fault.abort is not None:
                return _local(found.aborted(fault.abort, head), route, head)
        return _local(found, route, head)
    fault = decide_fault(found.fault, head, rng, cluster=found.cluster)
    if fault.abort is not None:
        reply = found.local_reply(fault.abort, head, has_cluster=found.cluster in CLUSTERS)
        return _local(reply, found.route_name, head)
    head = found.filtered(head)
    if found.cluster not in CLUSTERS:
        return _local(found.cluster_not_found(head), found.route_name, head)
    return _forwarded(found, head)


def _forwarded(match: RouteMatch, head: RequestHead) -> Decision:
    endpoint = Endpoint(ENDPOINT_ADDRESS, hostname=ENDPOINT_HOSTNAME if match.cluster == "a" else "")
    sent = match.rewrite_for(match.rewrite(head), endpoint)
    about = Scene(
        sent,
        status=200,
        details="via_upstream",
        endpoint=endpoint,
        attempts=1,
        connected=Connected("HTTP/1.1", "127.0.0.1:2"),
    )
    answered = match.response_headers(Headers(UPSTREAM_HEADERS), sent, about)
    return Decision(
        status=200,
        route=match.route_name,
        cluster=match.cluster,
        path=sent.path,
        authority=sent.authority.strip(" \t"),  # blanks at its ends do not survive a connection
        request_headers=comparable(sent.headers.items),
        headers=comparable(answered.items),
    )


def _local(reply: LocalReply, route: str, head: RequestHead) -> Decision:
    reply = trailers_only(reply, head)
    return Decision(
        reply.status, reply.details, reply.flag, route, headers=comparable(reply.headers), body=reply.body.decode()
    )


def _folded(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Join the repeated lines that Envoy joins while it parses; in a process nobody parses."""
    result: list[tuple[str, str]] = []
    places: dict[str, int] = {}
    for name, value in headers:
        if name in INLINE_REQUEST_HEADERS and name in places:
            before = result[places[name]][1]
            result[places[name]] = (name, f"{before},{value}" if before and value else before or value)
        else:
            places[name] = len(result)
            result.append((name, value))
    return tuple(result)
