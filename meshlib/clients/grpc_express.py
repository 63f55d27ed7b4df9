"""Unary RPCs that bring nothing of their own and go well at the first attempt: without a `Call`, a `Flow`, an `Rpc`.

An RPC without metadata and `wait_for_ready` shares its head with all others of its method, and the first of them has
left its way there (`meshlib.call.way`). What is left to do for the next: see that nothing has changed, choose an endpoint
and count it in, take its channel, send, count it out. Everything else, above all any other ending than a response, is the
general machine's business, which takes over what was begun.
"""

from typing import Any, Final, NamedTuple, TypeVar

from meshlib.call import Attempt, Step
from meshlib.call.way import Way
from meshlib.clients.grpc_channels import Channels
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Invoker, Method, Rpc
from meshlib.errors import IdentityError
from meshlib.events import Meter
from meshlib.runtime.clock import wall
from meshlib.runtime.context import peek_request

__all__ = ["Begun", "Berth", "begin", "joined", "note_berth", "succeeded"]

C = TypeVar("C")
_PLAIN: Final = Rpc()


class Berth(NamedTuple):
    """How to make calls of a method to one endpoint: what is the same for all of them.

    Attributes:
        channels: Whose channel it is.
        unary: What makes them; see `grpc_direct`.
        metadata: What the mesh adds.
        is_secure: It is reached over TLS.
    """

    channels: Channels[Any]
    channel: EndpointChannel[Any]
    unary: Any
    metadata: Any
    is_secure: bool


Begun = tuple[Way, Any, float, Meter, Berth | None]
"""An RPC that has begun: its way; where it goes, an `EndpointState`, or why it cannot, a `LocalReply` of which only a `Call`
knows what to make; when; who is to be told; its berth, to be released, or None: how to reach the endpoint is not known yet,
or not any more."""


def begin(invoker: Invoker[C], channels: Channels[C], way: Way, timeout_s: float | None) -> Begun | None:
    """Begin an RPC that brings nothing of its own.

    Args:
        channels: Those to use here.

    Returns:
        None: it has to be begun the long way; nothing was done.
    """
    if (
        not way.is_express
        or invoker.quiet is None
        or invoker.is_closed
        or invoker.abandoned
        or peek_request() is not None
        or (timeout_s is not None and timeout_s <= 0)
    ):
        return None
    quiet = invoker.quiet(way.target)
    if quiet is None:
        return None
    now = invoker.clock()
    state = way.begin(now, invoker.mesh.rng)
    if state is None:
        return None
    berth: Berth | None = way.known.get(state)
    if berth is not None:
        if channels.view is not quiet[0]:
            channels.follow(quiet[0])
        channel = berth.channel
        # As in `Channels.acquire` for one that was there, but without its lock: see `Channels._retire`.
        channel.calls.append(None)
        expires_at = channel.expires_at
        if channel.is_retired or berth.channels is not channels or (expires_at is not None and wall() > expires_at):
            berth.channels.release(channel)
            berth = None
    return way, state, now, quiet[1], berth


def succeeded(invoker: Invoker[Any], begun: Begun) -> None:
    """Give back and count what an RPC took that brought its response."""
    way, state, began_at, meter, berth = begun
    assert berth is not None
    now = invoker.clock()
    changed = way.cluster.succeeded(way.breaker, state, now, invoker.mesh.rng)
    channel = berth.channel
    channel.calls.pop()  # as `Channels.release`
    if channel.is_retired:
        berth.channels.let_go(channel)
    meter.succeeded(way.match.cluster, way.target.name, berth.is_secure, now - began_at)
    if changed is not None:
        invoker.mesh.emit(changed)


def joined(invoker: Invoker[Any], method: Method, begun: Begun, timeout_s: float | None) -> tuple[Flow, Step]:
    """Have an RPC that has begun go on as all others do; see `Flow.joined`.

    A berth that it has is still to be released.
    """
    way, state, began_at, _, _ = begun
    return Flow.joined(invoker.mesh, invoker.authority, way, state, method.heads.plain, began_at, timeout_s)


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
        unary = channel.direct_unary(step.head.path, method.serializer, method.deserializer)
        if unary is None:
            begun[0].is_express = False
        else:
            metadata = invoker.metadata(flow, step, _PLAIN, channel)
            begun[0].known[begun[1]] = Berth(channels, channel, unary, metadata, step.tls is not None)
    finally:
        channels.release(channel)
