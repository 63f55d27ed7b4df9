"""Filters around gRPC's blocking channels, as interceptors: all four kinds of methods."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import grpc

from meshlib.clients.filters import (
    AsyncFilter,
    Filter,
    FilterAnswer,
    FilterChain,
    FilterHeaders,
    FilterRequest,
    FilterResponse,
)

__all__ = ["filtered_channel"]


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _ClientCallDetails(_Details, grpc.ClientCallDetails):
    pass


def filtered_channel(channel: grpc.Channel, service: str, filters: Iterable[Filter | AsyncFilter]) -> grpc.Channel:
    """Return a channel whose calls go through filters first.

    Args:
        service: What filters are told is called.

    Raises:
        TypeError: A filter is async, or none at all.
    """
    return grpc.intercept_channel(channel, _Interceptor(service, FilterChain(filters)))


class _Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, service: str, chain: FilterChain) -> None:
        self._service = service
        self._chain = chain

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        pairs = tuple(details.metadata or ())
        text = [(name, value) for name, value in pairs if isinstance(value, str)]
        method = details.method.decode() if isinstance(details.method, bytes) else details.method
        seen = FilterRequest(self._service, "POST", method, FilterHeaders(text), is_grpc=True)
        answer, count = self._chain.begin(seen)
        if answer is not None:
            self._chain.end(seen, FilterResponse(answer.status, FilterHeaders(answer.headers)), count)
            raise AnsweredError(answer)
        binary = [pair for pair in pairs if not isinstance(pair[1], str)]
        changed = _ClientCallDetails(
            details.method,
            details.timeout,
            (*((name.lower(), value) for name, value in seen.headers.items_list), *binary),
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
        try:
            call = continuation(changed, request)
        except BaseException as error:
            self._chain.fail(seen, error, count)
            raise
        call.add_done_callback(lambda done: self._ended(seen, done, count))
        return call

    def _ended(self, seen: FilterRequest, call: Any, count: int) -> None:
        code = call.code()
        trailers = [(name, value) for name, value in call.trailing_metadata() or () if isinstance(value, str)]
        self._chain.end(seen, FilterResponse(code.value[0], FilterHeaders(trailers)), count)

    intercept_unary_unary = _intercept  # type: ignore[assignment]  # one for all four kinds
    intercept_unary_stream = _intercept  # type: ignore[assignment]  # one for all four kinds
    intercept_stream_unary = _intercept  # type: ignore[assignment]  # one for all four kinds
    intercept_stream_stream = _intercept  # type: ignore[assignment]  # one for all four kinds


class AnsweredError(grpc.RpcError):
    """The answer of a filter, as the error of a call."""

    def __init__(self, answer: FilterAnswer) -> None:
        super().__init__(answer.body.decode("utf-8", "replace"))
        self._answer = answer

    def code(self) -> grpc.StatusCode:
        """The status that the filter chose."""
        return next(code for code in grpc.StatusCode if code.value[0] == self._answer.status)

    def details(self) -> str:
        """The filter's text."""
        return str(self)

    def initial_metadata(self) -> tuple[Any, ...]:
        """None: nothing was called."""
        return ()

    def trailing_metadata(self) -> tuple[Any, ...]:
        """What the filter added."""
        return self._answer.headers
