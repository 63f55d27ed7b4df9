"""Unary RPCs that bring nothing of their own and go well at the first attempt: without a `Call`, a `Flow`, an `Rpc`.

An RPC without metadata and `wait_for_ready` shares its head with all others of its method, and the first of them has
left its way there (`meshlib.call.way`). What is left to do for the next: see that nothing has changed, choose an endpoint
and count it in, take its channel, send, count it out. Everything else, above all any other ending than a response, is the
general machine's business, which takes over what was begun.
"""

from typing import Any, Final, NamedTuple

from meshlib.call import Attempt, Step
from meshlib.call.way import Way
from meshlib.clients.grpc_channels import Channels
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Invoker, Method, Rpc
from meshlib.errors import IdentityError

__all__ = ["Berth", "joined", "note_berth"]

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


def joined(
    invoker: Invoker[Any],
    method: Method,
    way: Way,
    begun: Any,
    now: float,
    timeout_s: float | None,
) -> tuple[Flow, Step]:
    """As `Flow.joined`."""
    return Flow.joined(invoker.mesh, invoker.authority, way, begun, method.heads.plain, now, timeout_s)


def note_berth(
    invoker: Invoker[Any],
    channels: Channels[Any],
    method: Method,
    way: Way,
    state: object,
    flow: Flow,
    step: Step,
) -> None:
    """Note how to make the next call to an endpoint, if that can be known.

    Args:
        flow: Of a call that goes there now.
        step: Its first attempt.
    """
    if type(step) is not Attempt or step.is_raced:
        return
    try:
        channel = invoker.acquire_from(channels, step)
    except IdentityError:  # the attempt itself will say so
        return
    try:
        unary = channel.direct_unary(step.head.path, method.serializer, method.deserializer)
        if unary is not None:
            metadata = invoker.metadata(flow, step, _PLAIN, channel)
            way.known[state] = Berth(channels, channel, unary, metadata, step.tls is not None)
    finally:
        channels.release(channel)
