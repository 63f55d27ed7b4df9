"""Any function under the policy of a service: `@mesh.call("inventory")`.

    @mesh.call("inventory", method="GET", fallback=0, timeout_s=0.5)
    def in_stock(endpoint: meshlib.Endpoint, sku: str) -> int: ...

    in_stock("ABC")

The mesh picks the endpoint, repeats failed attempts as the route's retry policy says, and counts what happens for
circuit breakers and outlier detection. The endpoint is passed in the place of the parameter called `endpoint`, else as
the first argument; callers leave it out.

What a function raises is how its attempt failed: `function_attempts.py` has the table.

What calls of one function may share is in `meshlib.clients.sharing`: identical calls under way become one, and
responses are kept for as long as they say.

The loop is tenacity's; its retry, wait and stop strategies answer with the directives of `Call`, which is where the
xDS retry policy is read, so that there is one meaning of it for functions and for requests.
"""

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

import anyio
import tenacity

from meshlib.call import Attempt, Call, Sleep
from meshlib.clients.function_attempts import NOTHING, Progress, RetryByPolicy, WaitByPolicy
from meshlib.clients.response_cache import ResponseCache
from meshlib.clients.sharing import KeyMaker, Sharing, without_endpoint
from meshlib.clients.source import MeshSource
from meshlib.clients.tracing import attempt_scope, begin_call
from meshlib.clients.unrouted import count_unrouted
from meshlib.errors import DeadlineExceeded, MeshError, UnavailableError
from meshlib.model.endpoint import Endpoint
from meshlib.model.request import Headers, RequestHead
from meshlib.options import check_callable, check_number, check_type, name_of
from meshlib.runtime.context import remaining_s
from meshlib.view import TargetView

__all__ = ["Decorator", "decorate"]

P = ParamSpec("P")
R = TypeVar("R")


class Decorator(Protocol):
    """Takes the endpoint off a function's parameters."""

    @overload
    def __call__(self, function: Callable[Concatenate[Endpoint, P], R], /) -> Callable[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...


def decorate(
    mesh: MeshSource,
    service: str,
    *,
    fallback: Any = NOTHING,
    timeout_s: float | None = None,
    method: str = "POST",
    path: str | None = None,
    ignore: tuple[type[Exception], ...] = (),
    collapse: bool = False,
    cache: ResponseCache | None = None,
    key: KeyMaker | None = None,
) -> Decorator:
    """Return a decorator that runs a function, sync or async, under the policy of a service.

    Args:
        service: As in a URL: `inventory` or `inventory:8080`.
        fallback: What a call comes to when everything has failed: a value, or a function of the same arguments (without
            the endpoint). Default: the last exception is raised, with a note of what the mesh did.
        timeout_s: For the whole call, in seconds; the route's timeout applies too. An async function is cancelled when
            the time of its attempt is over. A blocking one cannot be interrupted: when it has a parameter called
            `timeout_s` it is told the seconds that it has (None: no limit).
        method: What routes and retries take the call for. With the default, `POST`, an attempt that may have reached
            the service is not repeated; `GET` or `PUT` say that repeating does no harm.
        path: What routes match. Default: `/` and the function's name.
        ignore: Exceptions that are answers of the service: they count as success and are raised at once.
        collapse: Calls with equal arguments that are under way at the same time become one, whose result all get: the
            very same object. With `GET` and `HEAD` only.
        cache: Keeps what the function returns, if that is a response of httpx or requests, for as long as its
            `Cache-Control` or `Expires` says, and hands it to calls with equal arguments; an old one stands in for a
            failure if it says `stale-if-error`. Request headers count as far as they are in an argument called
            `headers`: a response that varies by others is not kept (`accept`, `accept-encoding` and `user-agent` aside).
            With `GET` only.
        key: Makes of the arguments what equal calls have in common. Default: all arguments, which must then be hashable
            or plain lists, dicts and sets.

    Raises:
        TypeError: An option is of another type than it must be; or, from the decorator, it is a generator function or takes
            no endpoint.
        ValueError: An option has a value that it cannot have; or, from the decorator, `collapse`, `cache` or `key` make no
            sense together with the method.
    """
    _check_options(service, timeout_s, method, path, ignore, collapse, cache, key)

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        check_callable("mesh.call", function)
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function!r} is a generator function; its calls end before its work begins")
        head = RequestHead(method, service, path or f"/{name_of(function)}", Headers())
        sharing = None
        if collapse or cache is not None or key is not None:
            sharing = Sharing(
                mesh,
                function,
                method=method,
                collapse=collapse,
                cache=cache,
                key=key,
                timeout_s=timeout_s,
                answers=ignore,
            )
        policy = _Policy(mesh, service, fallback, timeout_s, head, ignore, function, sharing)
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                return await policy.arun(args, kwargs)

            return _shown(awaited, function)

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return policy.run(args, kwargs)

        return _shown(called, function)

    return cast(Decorator, wrap)


def _check_options(
    service: object,
    timeout_s: object,
    method: object,
    path: object,
    ignore: object,
    collapse: object,
    cache: object,
    key: object,
) -> None:
    if callable(service):
        raise TypeError('mesh.call: service: must be str, as in @mesh.call("inventory")')
    check_type("mesh.call: service", service, str)
    check_type("mesh.call: method", method, str)
    check_type("mesh.call: path", path, str, none=True)
    check_number("mesh.call: timeout_s", timeout_s, least=0, none=True)
    check_type("mesh.call: collapse", collapse, bool)
    check_type("mesh.call: cache", cache, ResponseCache, none=True)
    check_callable("mesh.call: key", key, none=True)
    kinds = ignore if isinstance(ignore, tuple) else (ignore,)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise TypeError("mesh.call: ignore: must be a tuple of classes of exceptions")
    if not service or "://" in str(service).removeprefix("xds://"):
        raise ValueError(f"mesh.call: service={service!r}: must be a name as in a URL, inventory or inventory:8080")
    if not method:
        raise ValueError("mesh.call: method='': must be one of HTTP")
    if isinstance(path, str) and not path.startswith("/"):
        raise ValueError(f"mesh.call: path={path!r}: must begin with /")


def _shown(called: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Have frameworks that look at signatures see the one that callers use."""
    called.__signature__ = without_endpoint(inspect.signature(function))  # type: ignore[attr-defined]
    return called


class _Signature:
    """Where a function wants its endpoint, and whether it wants to know its time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        found = parameters.get("endpoint")
        first = next(iter(parameters.values()), None)
        if found is None and (
            first is None or first.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        ):
            raise TypeError(f"{name_of(function)}: takes no endpoint: neither as `endpoint` nor as its first argument")
        self._index: int | None = 0
        if found is not None:
            is_keyword = found.kind is inspect.Parameter.KEYWORD_ONLY
            self._index = None if is_keyword else list(parameters).index("endpoint")
        self._wants_time = "timeout_s" in parameters

    def fill(
        self, endpoint: Endpoint, timeout_s: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._wants_time and "timeout_s" not in kwargs:
            kwargs = {**kwargs, "timeout_s": timeout_s}
        index = self._index
        if index is None or len(args) < index:
            return args, {**kwargs, "endpoint": endpoint}
        return (*args[:index], endpoint, *args[index:]), kwargs


class _Policy:
    """What the decorator was told."""

    def __init__(
        self,
        mesh: MeshSource,
        service: str,
        fallback: Any,
        timeout_s: float | None,
        head: RequestHead,
        ignore: tuple[type[Exception], ...],
        function: Callable[..., Any],
        sharing: Sharing | None,
    ) -> None:
        self._sharing = sharing
        self._mesh = mesh
        self._service = service
        self._fallback = fallback
        self._timeout_s = timeout_s
        self._head = head
        self._ignore = ignore
        self._function = function
        self._signature = _Signature(function)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mesh = self._mesh
        if mesh.is_disabled:
            args, kwargs = self._signature.fill(self._direct(), self._timeout_s, args, kwargs)
            return self._function(*args, **kwargs)
        try:
            if self._sharing is not None:
                return self._sharing.run(args, kwargs, lambda: self._find_and_run(args, kwargs))
            return self._find_and_run(args, kwargs)
        except Exception as error:
            if self._fallback is NOTHING or isinstance(error, self._ignore):
                raise
            return self._fallback(*args, **kwargs) if callable(self._fallback) else self._fallback

    def _find_and_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mesh = self._mesh
        began_at = mesh.clock()
        try:
            target = mesh.target(self._service) or mesh.wait_target(self._service, self._timeout_s)
            if target.has_demands:
                target = mesh.meet(target, self._head, self._left_s(began_at))
        except MeshError as error:
            self._unrouted(error, began_at)
            raise
        return self._run(target, began_at, args, kwargs)

    def _run(self, target: TargetView, began_at: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._call(target, began_at)
        try:
            progress = Progress(call, self._mesh, self._ignore)
            if isinstance(progress.step, Sleep):  # an injected delay
                time.sleep(progress.step.seconds)

            def attempt() -> None:
                step = progress.next_attempt()
                if step is None:
                    return
                filled, named = self._signature.fill(step.endpoint, step.timeout_s, args, kwargs)
                try:
                    with attempt_scope(call):
                        value = self._function(*filled, **named)
                except Exception as error:
                    progress.raised(error)
                else:
                    progress.returned(value)

            tenacity.Retrying(
                retry=RetryByPolicy(progress), wait=WaitByPolicy(progress), stop=tenacity.stop_never, sleep=time.sleep
            )(attempt)
            return self._result(progress)
        finally:
            call.close(self._mesh.clock())

    async def arun(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mesh = self._mesh
        if mesh.is_disabled:
            args, kwargs = self._signature.fill(self._direct(), self._timeout_s, args, kwargs)
            return await self._function(*args, **kwargs)
        try:
            if self._sharing is not None:
                return await self._sharing.arun(args, kwargs, lambda: self._find_and_arun(args, kwargs))
            return await self._find_and_arun(args, kwargs)
        except Exception as error:
            if self._fallback is NOTHING or isinstance(error, self._ignore):
                raise
            value = self._fallback(*args, **kwargs) if callable(self._fallback) else self._fallback
            return await value if inspect.isawaitable(value) else value

    async def _find_and_arun(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mesh = self._mesh
        began_at = mesh.clock()
        try:
            target = mesh.target(self._service) or await mesh.wait_target_async(self._service, self._timeout_s)
            if target.has_demands:
                target = await mesh.meet_async(target, self._head, self._left_s(began_at))
        except MeshError as error:
            self._unrouted(error, began_at)
            raise
        return await self._arun(target, began_at, args, kwargs)

    async def _arun(self, target: TargetView, began_at: float, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._call(target, began_at, can_hedge=True)
        try:
            progress = Progress(call, self._mesh, self._ignore)
            if isinstance(progress.step, Sleep):  # an injected delay
                await anyio.sleep(progress.step.seconds)

            async def run(step: Attempt) -> Any:
                filled, named = self._signature.fill(step.endpoint, step.timeout_s, args, kwargs)
                return await self._function(*filled, **named)

            async def attempt() -> None:
                step = progress.next_attempt()
                if step is None:
                    return
                if step.is_raced:
                    await progress.race(step, run)
                    return
                try:
                    with attempt_scope(call), anyio.move_on_after(step.timeout_s) as scope:
                        value = await run(step)
                except Exception as error:
                    progress.raised(error)
                else:
                    if scope.cancelled_caught:
                        progress.timed_out()
                    else:
                        progress.returned(value)

            await tenacity.AsyncRetrying(
                retry=RetryByPolicy(progress),
                wait=WaitByPolicy(progress),
                stop=tenacity.stop_never,
                sleep=anyio.sleep,
            )(attempt)
            return self._result(progress)
        finally:
            call.close(self._mesh.clock())

    def _left_s(self, began_at: float) -> float | None:
        """Return the seconds that are left of `timeout_s`; None: no limit."""
        return None if self._timeout_s is None else max(0.0, began_at + self._timeout_s - self._mesh.clock())

    def _unrouted(self, error: MeshError, began_at: float) -> None:
        """Count a call without a configuration, and say so where it came too late for the call's own time.

        Raises:
            DeadlineExceeded: It did.
        """
        late = None
        if isinstance(error, UnavailableError) and self._left_s(began_at) == 0.0:
            late = DeadlineExceeded(error.message, resource=error.resource)
        method = self._head.method
        count_unrouted(
            self._mesh, late or error, kind="http", authority=self._service, method=method, began_at=began_at
        )
        if late is not None:
            raise late from error

    def _call(self, target: TargetView, began_at: float, *, can_hedge: bool = False) -> Call:
        mesh = self._mesh
        now = mesh.clock()
        known = [seconds for seconds in (self._left_s(began_at), remaining_s(now)) if seconds is not None]
        timeout_s = min(known, default=None)
        return begin_call(mesh, target, self._head, now=now, timeout_s=timeout_s, can_hedge=can_hedge)

    def _direct(self) -> Endpoint:
        return Endpoint(self._service if ":" in self._service else f"{self._service}:80")

    def _result(self, progress: Progress) -> Any:
        error = progress.failure()
        if error is None:
            return progress.value
        raise error
