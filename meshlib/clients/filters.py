"""Filters: an application's own code around each call, the place that Envoy has for Wasm.

A filter sees a request before the mesh routes it, and what came of it. It may change headers and path, answer by itself, and
change the response's status and headers. Filters run in order on the way out and in reverse on the way back, once per
call (not per attempt), and only those that a request has passed hear of its end. They see no bodies.

One mechanism for all clients: `filters=` of `mesh.httpx_transport`, `mesh.async_httpx_transport`, `mesh.channel`,
`mesh.aio_channel`, and of the adapters for requests and aiohttp. Subclass `Filter` for code that does not wait, which runs in every client, or
`AsyncFilter` for code that awaits, which blocking clients refuse.

    class Tenant(Filter):
        def on_request(self, request: FilterRequest) -> FilterAnswer | None:
            request.headers["x-tenant"] = current_tenant()
"""

import inspect
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from meshlib.options import check_count, check_type, entries

__all__ = [
    "AsyncFilter",
    "AsyncFilterChain",
    "Filter",
    "FilterAnswer",
    "FilterChain",
    "FilterHeaders",
    "FilterRequest",
    "FilterResponse",
]


class FilterHeaders(MutableMapping[str, str]):
    """Headers in order, by name in any case. A name may have several entries: setting one replaces them all."""

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self.items_list = list(items)
        self.is_changed = False

    def __getitem__(self, name: str) -> str:
        found = self.all(name)
        if not found:
            raise KeyError(name)
        return found[0]

    def all(self, name: str) -> list[str]:
        """Return every entry of a header."""
        lower = name.lower()
        return [value for key, value in self.items_list if key.lower() == lower]

    def __setitem__(self, name: str, value: str) -> None:
        _check_header(name, value)
        lower = name.lower()
        at = next((index for index, (key, _) in enumerate(self.items_list) if key.lower() == lower), None)
        kept = [item for item in self.items_list if item[0].lower() != lower]
        kept.insert(len(kept) if at is None else at, (name, value))
        self.items_list = kept
        self.is_changed = True

    def add(self, name: str, value: str) -> None:
        """Add an entry to those that there are."""
        _check_header(name, value)
        self.items_list.append((name, value))
        self.is_changed = True

    def __delitem__(self, name: str) -> None:
        if name not in self:
            raise KeyError(name)
        lower = name.lower()
        self.items_list = [item for item in self.items_list if item[0].lower() != lower]
        self.is_changed = True

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.all(name))

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(key.lower() for key, _ in self.items_list))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"FilterHeaders({len(self.items_list)})"  # values may be secrets


@dataclass(slots=True)
class FilterRequest:
    """A request on its way out.

    Attributes:
        service: The service called: host of the URL, or gRPC's target, as written. Not to be changed.
        path: Path with query; for gRPC `/package.Service/Method`.
        headers: For gRPC the metadata, without binary ones. The host header may be changed: routes match it.
        is_grpc: The call is a gRPC call; method and path cannot be changed then.
        state: For what a filter wants to find again in the response. Shared by all filters of the call.
    """

    service: str
    method: str
    path: str
    headers: FilterHeaders
    is_grpc: bool = False
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class FilterResponse:
    """What came of a request: of the service, of the mesh, or of a filter.

    Attributes:
        status: HTTP status; for gRPC the status code.
        headers: For gRPC the trailing metadata, to be read only.
        mesh: The mesh's record of an HTTP response; None: a filter answered, or the call is gRPC.
    """

    status: int
    headers: FilterHeaders
    mesh: Any = None


@dataclass(frozen=True, slots=True)
class FilterAnswer:
    """A filter's own answer: the request goes nowhere.

    Attributes:
        status: HTTP status; for gRPC the status code.
        body: For gRPC the status message.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def __post_init__(self) -> None:
        """Check the types.

        Raises:
            TypeError: One is another; the text names the field.
        """
        check_count("FilterAnswer: status", self.status, least=0)
        check_type("FilterAnswer: body", self.body, bytes)
        for name, value in entries("FilterAnswer: headers", self.headers, "pairs"):
            _check_header(name, value)


def _check_header(name: object, value: object) -> None:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(
            f"header {name!r}: name and value must be str, not {type(name).__name__} and {type(value).__name__}"
        )


class Filter:
    """Code around calls that does not wait. Override what is needed. One object serves all calls, at the same time."""

    def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        """See a request, and change it; or answer it. What it raises, the caller gets."""

    def on_response(self, request: FilterRequest, response: FilterResponse) -> None:
        """See what came of a request, and change it. The body has not been read. What it raises, the caller gets."""

    def on_error(self, request: FilterRequest, error: BaseException) -> None:
        """Hear that there is no response: the client's exception, or a cancellation. It cannot be changed."""


class AsyncFilter:
    """As `Filter`, for code that awaits; for async clients."""

    async def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        """As `Filter.on_request`."""

    async def on_response(self, request: FilterRequest, response: FilterResponse) -> None:
        """As `Filter.on_response`."""

    def on_error(self, request: FilterRequest, error: BaseException) -> None:
        """As `Filter.on_error`; not async, since it hears of cancellations too."""


def _check_methods(one: Filter) -> None:
    """Refuse coroutines where nobody would await them."""
    for name in ("on_request", "on_response", "on_error"):
        if inspect.iscoroutinefunction(getattr(one, name)):
            raise TypeError(
                f"{type(one).__name__}.{name} is a coroutine function: such filters derive from AsyncFilter"
            )


class FilterChain:
    """The filters of a client, for one call after the other. Without state of its own.

    Raises:
        TypeError: One is no `Filter`, or needs an event loop where there is none.
    """

    def __init__(self, filters: Iterable[Filter | AsyncFilter]) -> None:
        found = []
        for one in filters:
            if isinstance(one, AsyncFilter):
                raise TypeError(f"{type(one).__name__} is an AsyncFilter: it can only be used by async clients")
            if not isinstance(one, Filter):
                raise TypeError(f"{one!r} is no Filter")
            _check_methods(one)
            found.append(one)
        self._filters = tuple(found)

    def begin(self, request: FilterRequest) -> tuple[FilterAnswer | None, int]:
        """Take a request through the filters.

        Returns:
            The answer of one of them, which ends it; and how many have seen the request.
        """
        for count, one in enumerate(self._filters, 1):
            try:
                answer = one.on_request(request)
                if answer is not None:
                    check_type(f"{type(one).__name__}.on_request: the answer", answer, FilterAnswer, none=True)
                    return answer, count
            except BaseException as error:
                self.fail(request, error, count - 1)
                raise
        return None, len(self._filters)

    def end(self, request: FilterRequest, response: FilterResponse, count: int) -> None:
        """Take the response back through those that have seen the request."""
        for left in range(count - 1, -1, -1):
            try:
                self._filters[left].on_response(request, response)
            except BaseException as error:
                self.fail(request, error, left)
                raise

    def fail(self, request: FilterRequest, error: BaseException, count: int) -> None:
        """Tell those that have seen the request that it failed."""
        for one in reversed(self._filters[:count]):
            one.on_error(request, error)


class AsyncFilterChain:
    """As `FilterChain`, for async clients: filters of both kinds."""

    def __init__(self, filters: Iterable[Filter | AsyncFilter]) -> None:
        self._filters = tuple(filters)
        for one in self._filters:
            if not isinstance(one, Filter | AsyncFilter):
                raise TypeError(f"{one!r} is no Filter or AsyncFilter")
            if isinstance(one, Filter):
                _check_methods(one)

    async def begin(self, request: FilterRequest) -> tuple[FilterAnswer | None, int]:
        """As `FilterChain.begin`."""
        for count, one in enumerate(self._filters, 1):
            try:
                answer = await one.on_request(request) if isinstance(one, AsyncFilter) else one.on_request(request)
                if answer is not None:
                    check_type(f"{type(one).__name__}.on_request: the answer", answer, FilterAnswer, none=True)
                    return answer, count
            except BaseException as error:
                self.fail(request, error, count - 1)
                raise
        return None, len(self._filters)

    async def end(self, request: FilterRequest, response: FilterResponse, count: int) -> None:
        """As `FilterChain.end`."""
        for left in range(count - 1, -1, -1):
            one = self._filters[left]
            try:
                if isinstance(one, AsyncFilter):
                    await one.on_response(request, response)
                else:
                    one.on_response(request, response)
            except BaseException as error:
                self.fail(request, error, left)
                raise

    def fail(self, request: FilterRequest, error: BaseException, count: int) -> None:
        """As `FilterChain.fail`."""
        for one in reversed(self._filters[:count]):
            one.on_error(request, error)
