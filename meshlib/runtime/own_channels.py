"""Channels of the library's own: to management servers, to endpoints, and for trials.

Tracing libraries replace `grpc.insecure_channel` and the like by functions that put interceptors around every channel:
OpenTelemetry's `GrpcInstrumentorClient`, which `opentelemetry-instrument` turns on, Sentry's, Datadog's. The mesh makes spans
of its own, its streams to management servers are no calls of the application's, and what an interceptor hands out for a
stream may be no call of gRPC's (OpenTelemetry's is a generator). So the functions are used that were replaced: they are in
`__wrapped__`, and those of grpc.aio in the module that they are from.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

try:
    from grpc.aio import _channel
except ImportError:  # a grpcio that nobody has looked at
    _channel = None  # type: ignore[assignment]  # see `_aio`

__all__ = ["own_aio_channel", "own_channel"]

_aio: Any = _channel or grpc.aio

Options = Sequence[tuple[str, Any]]


def own_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: Options,
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """Return a channel without interceptors.

    Args:
        credentials: None: an insecure channel.
    """
    made: grpc.Channel
    if credentials is None:
        made = inspect.unwrap(grpc.insecure_channel)(target, options, compression)
    else:
        made = inspect.unwrap(grpc.secure_channel)(target, credentials, options, compression)
    return made


def own_aio_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: Options,
    compression: grpc.Compression | None = None,
) -> grpc.aio.Channel:
    """As `own_channel`, for the running event loop."""
    made: grpc.aio.Channel
    if credentials is None:
        made = inspect.unwrap(_aio.insecure_channel)(target, options, compression)
    else:
        made = inspect.unwrap(_aio.secure_channel)(target, credentials, options, compression)
    return made
