"""Filters in unit tests: what one makes of a request and of a response, without a mesh, a server or an event loop."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from meshlib.clients.filters import (
    AsyncFilter,
    AsyncFilterChain,
    Filter,
    FilterChain,
    FilterHeaders,
    FilterRequest,
    FilterResponse,
)

__all__ = ["Filtered", "arun_filters", "run_filters"]


class Filtered(NamedTuple):
    """What filters made of a call.

    Attributes:
        request: As the last of them left it.
        response: As the caller gets it.
        was_sent: No filter answered by itself.
        body: Of a filter's own answer.
    """

    request: FilterRequest
    response: FilterResponse
    was_sent: bool
    body: bytes = b""


def run_filters(
    filters: Iterable[Filter | AsyncFilter],
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    status: int = 200,
    response_headers: Mapping[str, str] | None = None,
) -> Filtered:
    """Take a request through filters, and a response of the service back, as clients do.

    Args:
        url: E.g. `http://checkout/orders?id=1`.
        status: Of the service's response.

    Raises:
        TypeError: A filter is async: use `arun_filters`.
        Exception: What a filter raises, others have heard of it by `on_error`.
    """
    chain = FilterChain(filters)
    request = _request(method, url, headers)
    answer, count = chain.begin(request)
    response = _response(status, response_headers)
    if answer is not None:
        response = FilterResponse(answer.status, FilterHeaders(answer.headers))
    chain.end(request, response, count)
    return Filtered(request, response, answer is None, b"" if answer is None else answer.body)


async def arun_filters(
    filters: Iterable[Filter | AsyncFilter],
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    status: int = 200,
    response_headers: Mapping[str, str] | None = None,
) -> Filtered:
    """As `run_filters`, for filters of both kinds."""
    chain = AsyncFilterChain(filters)
    request = _request(method, url, headers)
    answer, count = await chain.begin(request)
    response = _response(status, response_headers)
    if answer is not None:
        response = FilterResponse(answer.status, FilterHeaders(answer.headers))
    await chain.end(request, response, count)
    return Filtered(request, response, answer is None, b"" if answer is None else answer.body)


def _request(method: str, url: str, headers: Mapping[str, str] | None) -> FilterRequest:
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    items = {"host": parts.netloc, **(headers or {})}
    return FilterRequest(parts.netloc, method, path, FilterHeaders(items.items()))


def _response(status: int, headers: Mapping[str, str] | None) -> FilterResponse:
    return FilterResponse(status, FilterHeaders((headers or {}).items()))
