"""The application's own `grpc.aio` interceptors around a channel, for all four kinds of methods.

What runs them is grpc.aio itself: its call objects for intercepted calls take a list of interceptors, and the last of ours
answers with the call of the channel below instead of going on. So interceptors see what they see on any `grpc.aio` channel,
and callers get the same objects, with the same limits (`time_remaining` is not implemented).
"""

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from grpc.aio import _interceptor as _untyped

from meshlib.clients.grpc_aio_filters import MethodBase

__all__ = ["InterceptedAioChannel", "Kinds", "by_kind"]

native: Any = _untyped

_KINDS = {
    "unary_unary": grpc.aio.UnaryUnaryClientInterceptor,
    "unary_stream": grpc.aio.UnaryStreamClientInterceptor,
    "stream_unary": grpc.aio.StreamUnaryClientInterceptor,
    "stream_stream": grpc.aio.StreamStreamClientInterceptor,
}
"""In the order in which grpc.aio looks: an object that is of several kinds is used as the first of them."""


Kinds = dict[str, tuple[object, ...]]
"""Interceptors by the kind of calls that they are for, in order."""


def by_kind(interceptors: Iterable[object]) -> Kinds:
    """Return interceptors as channels take them.

    Raises:
        ValueError: One is no interceptor of grpc.aio's.
    """
    found: dict[str, list[object]] = {kind: [] for kind in _KINDS}
    for interceptor in interceptors:
        for kind, of in _KINDS.items():
            if isinstance(interceptor, of):
                found[kind].append(interceptor)
                break
        else:
            names = " or ".join(of.__name__ for of in _KINDS.values())
            raise ValueError(f"Interceptor {interceptor} must be {names}.")
    return {kind: tuple(of) for kind, of in found.items()}


class _Intercepted:
    """What grpc.aio's call objects do not have."""

    _interceptors_task: Any
    _last_returned_call_from_interceptors: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # What an interceptor's own stream stands on that has never gone on to a call; grpc.aio has None there, which
        # fails when the call is asked anything.
        self._last_returned_call_from_interceptors = native.UnaryUnaryCallResponse(None)

    async def _proxy_writes_as_request_iterator(self) -> AsyncIterator[Any]:
        # A call that ends while interceptors still work on it stops reading requests; grpc.aio's iterator would cancel
        # the interceptors then.
        await asyncio.wait((self._interceptors_task,))
        async for message in super()._proxy_writes_as_request_iterator():  # type: ignore[misc]  # of grpc.aio's class
            yield message

    def _is_failed(self) -> bool:
        """Whether an interceptor raised something; older versions of grpc.aio look for status errors only."""
        task = self._interceptors_task
        return task.done() and not task.cancelled() and task.exception() is not None

    def done(self) -> bool:
        return self._is_failed() or super().done()  # type: ignore[misc]  # of grpc.aio's class

    def cancel(self) -> bool:
        return not self._is_failed() and super().cancel()  # type: ignore[misc]  # of grpc.aio's class

    @property
    def mesh(self) -> Any:
        """What the mesh knows of the call so far; None: the interceptors have it still, or have answered themselves."""
        task = self._interceptors_task
        if not task.done() or task.cancelled() or self._is_failed():
            return None
        return getattr(task.result(), "mesh", None)


_CALLS: dict[str, Any] = {
    kind: type(base.__name__, (_Intercepted, base), {})
    for kind, base in {
        "unary_unary": native.InterceptedUnaryUnaryCall,
        "unary_stream": native.InterceptedUnaryStreamCall,
        "stream_unary": native.InterceptedStreamUnaryCall,
        "stream_stream": native.InterceptedStreamStreamCall,
    }.items()
}


class _Last:
    """The last interceptor of a call: the channel below."""

    def __init__(self, method: "_Method", compression: grpc.Compression | None) -> None:
        self._method = method
        self._compression = compression

    async def _call(self, _: Any, details: grpc.aio.ClientCallDetails, request: Any) -> Any:
        return self._method.below(details.method)(
            request,
            timeout=details.timeout,
            metadata=details.metadata or None,
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
            compression=self._compression,
        )

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = _call


class _Method(MethodBase):
    """One method of any kind."""

    def __init__(
        self,
        channel: "InterceptedAioChannel",
        kind: str,
        path: bytes,
        make: Callable[[str], Any],
        interceptors: tuple[object, ...],
    ) -> None:
        self._channel = channel
        self._call = _CALLS[kind]
        self._path = path
        self._make = make
        self._interceptors = interceptors
        self._below = make(path.decode())
        self._other: tuple[Any, Any] = (path, self._below)

    def below(self, path: bytes | str) -> Any:
        """Return the method of the channel below that a call goes to: its interceptors may have chosen another."""
        if path == self._path:
            return self._below
        if path != self._other[0]:
            self._other = (path, self._make(path.decode() if isinstance(path, bytes) else path))
        return self._other[1]

    def __call__(
        self,
        request: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
        *,
        request_iterator: Any = None,
    ) -> Any:
        if not isinstance(metadata, grpc.aio.Metadata):
            metadata = grpc.aio.Metadata(*(metadata or ()))
        call = self._call(
            (*self._interceptors, _Last(self, compression)),
            request if request_iterator is None else request_iterator,
            timeout,
            metadata,
            credentials,
            wait_for_ready,
            None,  # core's channel and the (de)serialisers: for whoever goes on past the last interceptor
            self._path,
            None,
            None,
            asyncio.get_running_loop(),
        )
        self._channel.running.add(call)
        return call


class InterceptedAioChannel(grpc.aio.Channel):
    """A channel whose calls go through interceptors of grpc.aio first."""

    def __init__(self, channel: grpc.aio.Channel, interceptors: Kinds) -> None:
        """Put interceptors around a channel, which this one closes."""
        self._interceptors = interceptors
        self._channel = channel
        self.running: weakref.WeakSet[Any] = weakref.WeakSet()

    def _method(self, kind: str, method: Any, *codecs: Any) -> Any:
        make = getattr(self._channel, kind)
        interceptors = self._interceptors[kind]
        if not interceptors:
            return make(method, *codecs)
        path = method if isinstance(method, bytes) else method.encode()
        return _Method(self, kind, path, lambda path: make(path, *codecs), interceptors)

    # `_registered_method` comes from generated code; it concerns core's own channels.

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method("unary_unary", method, request_serializer, response_deserializer)

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method("unary_stream", method, request_serializer, response_deserializer)

    def stream_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method("stream_unary", method, request_serializer, response_deserializer)

    def stream_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        _registered_method: bool = False,
    ) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method("stream_stream", method, request_serializer, response_deserializer)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """See `grpc.aio.Channel`. Interceptors at work are given `grace` seconds too."""
        calls = [call for call in self.running if not call.done()]
        closing = asyncio.ensure_future(self._channel.close(grace))
        if grace and calls:
            await asyncio.wait([asyncio.ensure_future(_end(call)) for call in calls], timeout=grace)
        for call in calls:
            call.cancel()
        await closing

    async def __aenter__(self) -> "InterceptedAioChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _end(call: Any) -> None:
    with contextlib.suppress(Exception):
        await call.code()
