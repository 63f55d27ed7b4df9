"""Unary RPCs that go well at the first attempt: without a `Call`, a `Flow`, an `Rpc`.

RPCs of one method that bring no metadata share their head, and the first of them leaves its way there (`meshlib.call.way`).
What is left to do for the next: see that nothing has changed, choose an endpoint and count it in, take its channel, send,
count it out. Metadata, the caller's own or of the request that is being served, may come along as long as no route looks at
them; so may its deadline and a trace. Everything else, above all any other ending than a response, is the general
machine's business, which takes over what was begun.
"""

from typing import Any, Final, NamedTuple, TypeVar, cast

import grpc.aio

from meshlib.call import Attempt, Step
from meshlib.call.limits import written_head
from meshlib.call.way import Way
from meshlib.clients.call_trace import Trace, begin_trace
from meshlib.clients.grpc_channels import Channels
from meshlib.clients.grpc_common import attempt_metadata
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Invoker, Method, Rpc
from meshlib.errors import IdentityError
from meshlib.events import AttemptFinished, CallFinished, Meter
from meshlib.model.outcome import GRPC_OK
from meshlib.model.request import Headers
from meshlib.routing.headers import with_headers
from meshlib.runtime.clock import wall
from meshlib.runtime.context import InboundContext, added_to, peek_request, with_handed_on
from meshlib.runtime.tracing import report

__all__ = ["Begun", "Berth", "Brought", "begin", "joined", "note_berth", "succeeded"]

C = TypeVar("C")
Pairs = tuple[tuple[str, str | bytes], ...]
_READABLE: Final = (tuple, list, grpc.aio.Metadata)
"""Kinds of metadata that can be looked at more than once; an iterator is not touched."""


class Berth(NamedTuple):
    """How to make calls of a method to one endpoint: what is the same for all of them.

    Attributes:
        channels: Whose channel it is.
        unary: What makes them; see `grpc_direct`.
        added: Metadata that the mesh adds.
        metadata: The same, with what names the endpoint: all metadata of a call that brings none.
        is_secure: It is reached over TLS.
    """

    channels: Channels[Any]
    channel: EndpointChannel[Any]
    unary: Any
    added: Pairs
    metadata: Any
    is_secure: bool


class Brought(NamedTuple):
    """What an RPC brings besides its request and its timeout.

    Attributes:
        timeout_s: Its own, or that of the request being served; None: no limit.
        own: The caller's metadata.
        metadata: All that is sent; None: nothing, or no attempt is made yet.
        inbound: The request being served, or None.
        trace: Has a span for the attempt; None: nobody wants to know, or no attempt is made yet.
    """

    timeout_s: float | None
    own: Pairs
    metadata: Any
    inbound: InboundContext | None
    trace: Trace | None


Begun = tuple[Way, Any, float, Meter | None, Berth | None, Brought | None]
"""An RPC that has begun: its way; where it goes, an `EndpointState`, or why it cannot, a `LocalReply` of which only a `Call`
knows what to make; when; who counts it, or None: events tell of it; its berth, to be released, or None: how to reach the
endpoint is not known yet, or not any more; what it brings, or None."""


def begin(
    invoker: Invoker[C],
    channels: Channels[C],
    method: Method,
    way: Way,
    timeout_s: float | None,
    metadata: Any,
) -> Begun | None:
    """Begin an RPC.

    Args:
        channels: Those to use here.
        metadata: The caller's.

    Returns:
        None: it has to be begun the long way; nothing was done.
    """
    if not way.is_express or invoker.express is None or invoker.is_closed or invoker.abandoned:
        return None
    known = invoker.express(way.target)
    if known is None:
        return None
    now, inbound = invoker.clock(), peek_request()
    is_traced = not invoker.mesh.tracing.is_idle()
    brought = None
    if metadata or inbound is not None or is_traced:
        brought = _brought(invoker, way, now, timeout_s, metadata, inbound)
        if brought is None:
            return None
        timeout_s = brought.timeout_s
    if timeout_s is not None and timeout_s <= 0:
        return None
    state = way.begin(now, invoker.mesh.rng)
    if state is None:
        return None
    berth: Berth | None = way.known.get(state)
    if berth is not None:
        if channels.view is not known[0]:
            channels.follow(known[0])
        channel = berth.channel
        # As in `Channels.acquire` for one that was there, but without its lock: see `Channels._retire`.
        channel.calls.append(None)
        expires_at = channel.expires_at
        if channel.is_retired or berth.channels is not channels or (expires_at is not None and wall() > expires_at):
            berth.channels.release(channel)
            berth = None
        elif brought is not None:
            brought = _sent(invoker, method, way, state, berth, brought, is_traced=is_traced)
    return way, state, now, known[1], berth, brought


def _brought(
    invoker: Invoker[Any],
    way: Way,
    now: float,
    timeout_s: float | None,
    metadata: Any,
    inbound: InboundContext | None,
) -> Brought | None:
    """Return what an RPC brings; None: somebody has to look at that."""
    rng, own = invoker.mesh.rng, ()
    if metadata:
        if not isinstance(metadata, _READABLE):
            return None
        own = tuple(metadata)
        try:
            if not way.spares(own, rng):
                return None
        except (TypeError, ValueError):  # no pairs: gRPC knows how to complain
            return None
    if inbound is None:
        return Brought(timeout_s, own, None, None, None)
    if inbound.deadline is not None:
        left_s = max(inbound.deadline - now, 0.0)
        timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
    if not way.spares(inbound.handed_on, rng):
        return None
    return Brought(timeout_s, own, None, inbound, None)


def _sent(
    invoker: Invoker[Any], method: Method, way: Way, state: Any, berth: Berth, brought: Brought, *, is_traced: bool
) -> Brought:
    """Work out what is sent with an attempt."""
    timeout_s, own, _, inbound, _ = brought
    handed = () if inbound is None else inbound.handed_on
    metadata: Pairs = (*own, *(added_to(own, handed) if handed else ()), *berth.added)
    trace = None
    if is_traced:
        head = method.heads(own)
        trace = begin_trace(invoker.mesh.tracing, with_handed_on(head, handed) if handed else head)
        if trace is not None:
            try:
                # Binary metadata, which heads do not have, only pass through.
                head = with_headers(head, Headers(cast(Any, metadata)))
                metadata = trace.begin_attempt(way.match.cluster, state.endpoint, 1, head).headers.items
            except Exception:
                report("starting a span")
    if berth.channel.core is not None:
        metadata = berth.channel.steered(metadata)
    return Brought(timeout_s, own, metadata or None, inbound, trace)


def succeeded(invoker: Invoker[Any], begun: Begun) -> None:
    """Give back and count what an RPC took that brought its response."""
    way, state, began_at, meter, berth, brought = begun
    assert berth is not None
    now = invoker.clock()
    changed = way.cluster.succeeded(way.breaker, state, now, invoker.mesh.rng)
    channel = berth.channel
    channel.calls.pop()  # as `Channels.release`
    if channel.is_retired:
        berth.channels.let_go(channel)
    if meter is not None:
        meter.succeeded(way.match.cluster, way.target.name, berth.is_secure, now - began_at)
    if changed is not None:
        invoker.mesh.emit(changed)
    if meter is None:
        _tell(invoker, way, state, now - began_at, is_secure=berth.is_secure)
    if brought is not None and brought.trace is not None:
        trace, match = brought.trace, way.match
        try:
            trace.end_attempt(1, GRPC_OK)
            trace.end(match.cluster, match.route_name, 1, "", GRPC_OK, 0, 0)
        except Exception:
            report("ending a span")


def _tell(invoker: Invoker[Any], way: Way, state: Any, duration_s: float, *, is_secure: bool) -> None:
    """Emit the events of an RPC that went well."""
    name, match, endpoint, emit = way.target.name, way.match, state.endpoint, invoker.mesh.emit
    emit(AttemptFinished(name, match.cluster, endpoint, 1, duration_s, 200, 0, "", False))
    route, cluster = match.route_name, match.cluster
    emit(CallFinished("grpc", name, way.path, route, cluster, endpoint, 1, duration_s, 200, 0, "-", is_secure))


def joined(invoker: Invoker[Any], method: Method, begun: Begun, rpc: Rpc) -> tuple[Flow, Step]:
    """Have an RPC that has begun go on as all others do; see `Flow.joined`.

    A berth that it has is still to be released.
    """
    way, state, began_at, _, berth, brought = begun
    head, inbound, trace = method.heads.plain, None, None
    if brought is not None:
        rpc.timeout_s, inbound, trace = brought.timeout_s, brought.inbound, brought.trace
        if brought.own:
            rpc.metadata = brought.own  # the caller's may have been changed since
            head = method.heads(brought.own)
    return Flow.joined(
        invoker.mesh,
        invoker.authority,
        way,
        state,
        head,
        began_at,
        rpc.timeout_s,
        bool(rpc.wait_for_ready),
        inbound,
        trace,
        is_sent=berth is not None,
    )


def note_berth(
    invoker: Invoker[C], channels: Channels[C], method: Method, begun: Begun, flow: Flow, step: Step
) -> None:
    """Note how to make the next RPC to an endpoint, if that can be known.

    Args:
        flow: Of one that goes there now.
        step: Its first attempt.
    """
    if type(step) is not Attempt:
        return
    try:
        channel = invoker.acquire_from(channels, step)
    except IdentityError:  # the attempt itself will say so
        return
    try:
        way, plain = begun[0], method.heads.plain
        unary = channel.direct_unary(way.path, method.serializer, method.deserializer)
        if unary is None:
            way.is_express = False
        else:
            sent = written_head(plain, 1, way.match.include_attempt_count, None, None)
            added = tuple(attempt_metadata(plain, sent, None) or ())
            metadata = channel.steered(added) if channel.core is not None else added or None
            way.known[begun[1]] = Berth(channels, channel, unary, added, metadata, step.tls is not None)
    finally:
        channels.release(channel)
