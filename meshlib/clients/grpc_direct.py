"""Unary calls past gRPC's Python layer.

For each call that layer makes a condition, a set of what is due, an object for the call and two context managers around
metrics that nobody takes: a fifth of the CPU of a call, 22 of 115 us. What a blocking call needs is what lies below it: one
batch of operations on a call of its own, and its one event. Errors, and calls for those who ask for them, are made by
grpcio's own classes from the same event, so that callers cannot tell the difference.

What lies below is not a public interface. It is used only in versions of grpcio that were tried, when all of it is there
and a call to nowhere ends as it must; with `MESHLIB_GRPC_DIRECT=off`, an observability plugin of grpcio's or a channel of
another kind calls go the public way. Nothing else in this library touches it.
"""

import functools
import os
import re
import time
from collections.abc import Callable
from typing import Any, Final

import grpc

from meshlib.runtime.clock import wall
from meshlib.runtime.own_channels import own_channel

try:
    from grpc import _channel, _common, _compression, _observability
    from grpc._cython import cygrpc as _cygrpc
except ImportError:  # a grpcio that nobody has looked at: it is called the public way
    _channel = _common = _compression = _observability = _cygrpc = None  # type: ignore[assignment]  # see `is_usable`

__all__ = [
    "KNOWN_GOOD",
    "SWITCH",
    "TRIAL_S",
    "TRIAL_TARGET",
    "Deserializer",
    "DirectUnary",
    "PublicUnary",
    "Serializer",
    "as_call",
    "cygrpc",
    "is_known",
    "is_switched_off",
    "is_usable",
    "make_unary",
    "puller",
    "trailing_metadata",
]

SWITCH: Final = "MESHLIB_GRPC_DIRECT"

KNOWN_GOOD: Final = ((1, 66), (1, 85))
"""Minor versions of grpcio, the first and the last whose inner interface was looked at."""

TRIAL_TARGET: Final = "unix:/nonexistent/meshlib"
TRIAL_S: Final = 5.0

native: Any = _channel
cygrpc: Any = _cygrpc

Serializer = Callable[[Any], bytes] | None
Deserializer = Callable[[bytes], Any] | None


def as_call(answer: Any) -> Any:
    """Return the `grpc.Call` of an answer."""
    if type(answer) is not tuple:
        return answer
    response, event, _, call = answer
    state = _state_of(event, None)
    state.response = response
    return native._MultiThreadedRendezvous(state, call, None, None)


def trailing_metadata(answer: Any) -> Any:
    """Return the trailing metadata of an answer."""
    return answer[2].trailing_metadata() if type(answer) is tuple else answer.trailing_metadata()


def _state_of(event: Any, deserializer: Deserializer) -> Any:
    """Return an event as grpcio's own code reads it."""
    state = native._RPCState(native._UNARY_UNARY_INITIAL_DUE, None, None, None, None)
    state.method = state.target = ""
    state.rpc_start_time = time.perf_counter()
    native._handle_event(event, state, deserializer)
    return state


class PublicUnary:
    """One method of a channel, called the public way."""

    __slots__ = ("_with_call",)

    def __init__(self, channel: grpc.Channel, method: str, serializer: Serializer, deserializer: Deserializer) -> None:
        made: Any = channel.unary_unary(method, serializer, deserializer)
        self._with_call = made.with_call

    def __call__(
        self,
        request: Any,
        timeout_s: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        compression: grpc.Compression | None,
    ) -> tuple[Any, Any]:
        """Call the method, blocking.

        Returns:
            The response, and an answer: what `trailing_metadata` and `as_call` can make something of.

        Raises:
            grpc.RpcError: The call ended otherwise.
        """
        response, call = self._with_call(request, timeout_s, metadata, credentials, None, compression)
        return response, call


class DirectUnary:
    """As `PublicUnary`, directly."""

    __slots__ = (
        "_close",
        "_context",
        "_deserializer",
        "_method",
        "_no_metadata",
        "_propagate",
        "_public",
        "_segregated",
        "_serializer",
    )

    def __init__(self, channel: Any, method: str, serializer: Serializer, deserializer: Deserializer) -> None:
        self._public = PublicUnary(channel, method, serializer, deserializer)
        self._segregated = channel._channel.segregated_call
        self._propagate = cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS
        self._method = _common.encode(method)
        self._serializer = serializer
        self._deserializer = deserializer
        self._context = cygrpc.build_census_context()
        # Without content of its own, so calls at the same time may share them.
        self._no_metadata = cygrpc.SendInitialMetadataOperation(None, 0)
        self._close = cygrpc.SendCloseFromClientOperation(0)

    def __call__(
        self,
        request: Any,
        timeout_s: float | None,
        metadata: tuple[tuple[str, str | bytes], ...] | list[tuple[str, str | bytes]] | None,
        credentials: Any,
        compression: grpc.Compression | None,
    ) -> tuple[Any, Any]:
        """As `PublicUnary`."""
        if _observability._OBSERVABILITY_PLUGIN is not None:
            return self._public(request, timeout_s, metadata, credentials, compression)
        deadline = None if timeout_s is None else wall() + timeout_s
        message = request
        if self._serializer is not None:
            try:
                message = self._serializer(request)
            except Exception:
                message = None
        if message is None:  # grpcio's code knows how to complain
            return self._public(request, timeout_s, metadata, credentials, compression)
        if compression:
            initial = cygrpc.SendInitialMetadataOperation(_compression.augment_metadata(metadata, compression), 0)
        else:
            initial = cygrpc.SendInitialMetadataOperation(metadata, 0) if metadata else self._no_metadata
        received, status = cygrpc.ReceiveMessageOperation(0), cygrpc.ReceiveStatusOnClientOperation(0)
        operations = (
            initial,
            cygrpc.SendMessageOperation(message, 0),
            self._close,
            cygrpc.ReceiveInitialMetadataOperation(0),
            received,
            status,
        )
        call = self._segregated(
            self._propagate,
            self._method,
            None,
            deadline if cygrpc.get_deadline_from_context() is None else native._determine_deadline(deadline),
            metadata,
            None if credentials is None else credentials._credentials,
            ((operations, None),),
            self._context,
            None,
        )
        event = call.next_event()
        if status.code() == 0:
            response = received.message()
            if response is not None and self._deserializer is not None:
                try:
                    response = self._deserializer(response)
                except Exception:
                    response = None
                if response is None:
                    raise native._InactiveRpcError(_state_of(event, self._deserializer))
            return response, (response, event, status, call)
        raise native._InactiveRpcError(_state_of(event, self._deserializer))


def make_unary(channel: Any, method: str, serializer: Serializer, deserializer: Deserializer) -> Any:
    """Return what calls a unary method of a channel: `DirectUnary` where that can be used."""
    if is_usable() and type(channel) is native.Channel:
        return DirectUnary(channel, method, serializer, deserializer)
    return PublicUnary(channel, method, serializer, deserializer)


def puller(stream: Any) -> Callable[[], Any]:
    """Return what gets the next message of a stream of responses: what its own `next` calls, where that is known."""
    if is_usable() and type(stream) is native._MultiThreadedRendezvous:
        found: Callable[[], Any] = stream._next
        return found
    named: Callable[[], Any] = stream.__next__
    return named


def is_switched_off() -> bool:
    """Whether somebody wants the public way."""
    return os.environ.get(SWITCH) == "off"


def is_known(version: str) -> bool:
    """Whether a version of grpcio was tried."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and KNOWN_GOOD[0] <= (int(found[1]), int(found[2])) <= KNOWN_GOOD[1]


@functools.cache
def is_usable() -> bool:
    """Whether calls may be made directly; found out once a process."""
    if is_switched_off() or not is_known(grpc.__version__):
        return False
    try:
        with own_channel(TRIAL_TARGET, None, (("grpc.enable_http_proxy", 0),)) as channel:
            DirectUnary(channel, "/meshlib.Direct/Trial", None, None)(b"", TRIAL_S, (("a", "b"),), None, None)
    except grpc.RpcError as error:
        found: Any = error
        return found.code() is grpc.StatusCode.UNAVAILABLE and type(found) is native._InactiveRpcError
    except Exception:
        return False
    return False
