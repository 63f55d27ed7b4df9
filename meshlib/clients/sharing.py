"""What calls of one function may share: the result of an identical call under way, and responses kept for a while."""

import inspect
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, Final

from meshlib.clients.collapse import AsyncFlights, Flights
from meshlib.clients.response_cache import ResponseCache, is_bypassed
from meshlib.clients.source import MeshSource
from meshlib.errors import DeadlineExceeded
from meshlib.runtime.context import remaining_s

__all__ = ["KeyMaker", "Sharing"]

KeyMaker = Callable[..., Hashable]

_SAFE: Final = frozenset({"GET", "HEAD"})


class Sharing:
    """Shares what may be shared between the calls of one function."""

    def __init__(
        self,
        mesh: MeshSource,
        function: Callable[..., Any],
        *,
        method: str,
        collapse: bool,
        cache: ResponseCache | None,
        key: KeyMaker | None,
        timeout_s: float | None,
        answers: tuple[type[Exception], ...],
    ) -> None:
        """
        Args:
            method: What the function is taken for.
            collapse: Identical calls under way become one.
            cache: Keeps responses.
            key: Makes of the arguments (without the endpoint) what identical calls have in common; None: the arguments.
            timeout_s: Of a whole call.
            answers: Exceptions that are answers of the service, and no failures.

        Raises:
            ValueError: The function is not said to be safe to share.
        """
        name = getattr(function, "__qualname__", repr(function))
        if collapse and method not in _SAFE:
            raise ValueError(
                f"{name}: collapse=True needs method='GET' or 'HEAD': calls that change something are not one"
            )
        if cache is not None and method != "GET":
            raise ValueError(f"{name}: cache= needs method='GET', this is {method!r}")
        if key is not None and cache is None and not collapse:
            raise ValueError(f"{name}: key= has no effect without collapse=True or cache=")
        self._mesh = mesh
        self._function: Hashable = (getattr(function, "__module__", ""), name, id(function))
        self._name = name
        self._signature = without_endpoint(inspect.signature(function))
        self._cache = cache
        self._make_key = key
        self._timeout_s = timeout_s
        self._answers = answers
        self._flights = Flights(self._is_personal) if collapse else None
        self._async_flights = AsyncFlights(self._is_personal) if collapse else None

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], work: Callable[[], Any]) -> Any:
        """Return the result of a call that was made, or shared.

        Raises:
            TypeError: The arguments cannot be told apart.
        """
        key, told = self._key(args, kwargs)
        cache = None if self._cache is None or is_bypassed(told) else self._cache
        clock = self._mesh.clock
        began_at = clock()
        if cache is not None and (found := cache.find(key, began_at)) is not None:
            return found[0]

        def make() -> Any:
            asked_at = clock()
            value = work()
            if cache is not None:
                cache.store(key, value, told, began_at=asked_at, now=clock())
            return value

        try:
            return make() if self._flights is None else self._flights.run(key, make, self._time_left(began_at))
        except Exception as error:
            if cache is None or isinstance(error, self._answers) or (found := cache.find_stale(key, clock())) is None:
                raise
            return found[0]

    async def arun(self, args: tuple[Any, ...], kwargs: dict[str, Any], work: Callable[[], Awaitable[Any]]) -> Any:
        """As `run`."""
        key, told = self._key(args, kwargs)
        cache = None if self._cache is None or is_bypassed(told) else self._cache
        clock = self._mesh.clock
        began_at = clock()
        if cache is not None and (found := cache.find(key, began_at)) is not None:
            return found[0]

        async def make() -> Any:
            asked_at = clock()
            value = await work()
            if cache is not None:
                cache.store(key, value, told, began_at=asked_at, now=clock())
            return value

        flights = self._async_flights
        try:
            return await make() if flights is None else await flights.run(key, make, self._time_left(began_at))
        except Exception as error:
            if cache is None or isinstance(error, self._answers) or (found := cache.find_stale(key, clock())) is None:
                raise
            return found[0]

    def _is_personal(self, error: BaseException) -> bool:
        """Whether a call failed for its caller's reasons: cancelled, interrupted, or the request it served is out of time."""
        if not isinstance(error, Exception):
            return True
        return isinstance(error, DeadlineExceeded) and remaining_s(self._mesh.clock()) == 0.0

    def _time_left(self, began_at: float) -> Callable[[], float | None]:
        def left_s() -> float | None:
            now = self._mesh.clock()
            own = None if self._timeout_s is None else max(0.0, began_at + self._timeout_s - now)
            known = [seconds for seconds in (own, remaining_s(now)) if seconds is not None]
            return min(known, default=None)

        return left_s

    def _key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Hashable, Mapping[str, str]]:
        """Return what identical calls have in common, and the request headers among the arguments."""
        given = self._signature.bind(*args, **kwargs)
        given.apply_defaults()
        try:
            key = (
                self._function,
                _frozen(given.arguments if self._make_key is None else self._make_key(*args, **kwargs)),
            )
            hash(key)
        except TypeError as error:
            raise TypeError(
                f"{self._name}: calls with these arguments cannot be told apart ({error}); "
                "give the decorator key=, a function of the same arguments that returns something hashable"
            ) from error
        headers = given.arguments.get("headers")
        if not isinstance(headers, Mapping):
            return key, {}
        return key, {str(name).lower(): str(value) for name, value in headers.items()}


def without_endpoint(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature that callers see: without the endpoint, which is the first parameter or the one of that name."""
    parameters = dict(signature.parameters)
    parameters.pop("endpoint" if "endpoint" in parameters else next(iter(parameters), ""), None)
    return signature.replace(parameters=list(parameters.values()))


def _frozen(value: Any) -> Hashable:
    """Return a value that is equal for equal arguments of the same types, and hashable."""
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, _frozen(entry)) for key, entry in value.items()))
    if isinstance(value, tuple | list):
        return (type(value), tuple(_frozen(entry) for entry in value))
    if isinstance(value, set | frozenset):
        return ("set", frozenset(_frozen(entry) for entry in value))
    if isinstance(value, bytearray):
        return ("bytes", bytes(value))
    return (type(value), value)
