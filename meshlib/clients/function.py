"""Any function under the policy of a service: `@mesh.call("inventory")`.

    @mesh.call("inventory", method="GET", fallback=0, timeout_s=0.5)
    def in_stock(endpoint: meshlib.Endpoint, sku: str) -> int: ...

    in_stock("ABC")

The mesh picks the endpoint, repeats failed attempts as the route's retry policy says, and counts what happens for
circuit breakers and outlier detection. The endpoint is passed in the place of the parameter called `endpoint`, else as
the first argument; callers leave it out.

What a function raises is how its attempt failed:

    ConnectionRefusedError, unreachable hosts, name errors,   no connection; nothing was sent
      httpx.ConnectError, httpx.ConnectTimeout
    TimeoutError, httpx.TimeoutException                      timeout
    other ConnectionError and OSError, httpx.TransportError   reset
    httpx.HTTPStatusError                                     a response with that status
    `ignore`                                                  none: an answer, passed on to the caller at once
    any other Exception                                       a response with status 500

What calls of one function may share is in `meshlib.clients.sharing`: identical calls under way become one, and
responses are kept for as long as they say.

The loop is tenacity's; its retry, wait and stop strategies answer with the directives of `Call`, which is where the
xDS retry policy is read, so that there is one meaning of it for functions and for requests.
"""

import errno
import functools
import inspect
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar, cast, overload

import anyio
import httpx
import tenacity
from tenacity.retry import retry_base
from tenacity.wait import wait_base

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.clients.function_race import FunctionShell
from meshlib.clients.race import arace
from meshlib.clients.response_cache import ResponseCache
from meshlib.clients.sharing import KeyMaker, Sharing
from meshlib.clients.source import MeshSource
from meshlib.clients.tracing import attempt_scope, begin_call
from meshlib.errors import IdentityError
from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.runtime.context import remaining_s
from meshlib.view import TargetView

__all__ = ["Decorator", "decorate", "outcome_of"]

P = ParamSpec("P")
R = TypeVar("R")

_NOTHING: Final = object()
_NO_CONNECTION = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)
_OK = Response(200)


class Decorator(Protocol):
    """Takes the endpoint off a function's parameters."""

    @overload
    def __call__(self, function: Callable[Concatenate[Endpoint, P], R], /) -> Callable[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]: ...


def outcome_of(error: Exception) -> Outcome:
    """Say how an attempt ended whose function raised; the table is in the module's docstring."""
    match error:
        case IdentityError():
            return Failure(FailureKind.IDENTITY, False, error)
        case httpx.ConnectError() | httpx.ConnectTimeout() | ConnectionRefusedError() | socket.gaierror():
            return Failure(FailureKind.CONNECT, False, error)
        case TimeoutError() | httpx.TimeoutException():
            return Failure(FailureKind.TIMEOUT, True, error)
        case OSError() if error.errno in _NO_CONNECTION:
            return Failure(FailureKind.CONNECT, False, error)
        case OSError() | httpx.TransportError():
            return Failure(FailureKind.RESET, True, error)
        case httpx.HTTPStatusError():
            return Response(error.response.status_code, Headers.of(error.response.headers.multi_items()))
        case _:
            return Response(500)


def decorate(
    mesh: MeshSource,
    service: str,
    *,
    fallback: Any = _NOTHING,
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
            `headers`: a response that varies by others is not kept. With `GET` only.
        key: Makes of the arguments what equal calls have in common. Default: all arguments, which must then be hashable
            or plain lists, dicts and sets.

    Raises:
        TypeError: (from the decorator) It is a generator function.
        ValueError: (from the decorator) `collapse`, `cache` or `key` make no sense together with the method.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function!r} is a generator function; its calls end before its work begins")
        head = RequestHead(method, service, path or f"/{function.__name__}", Headers())
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

            return awaited

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            return policy.run(args, kwargs)

        return called

    return cast(Decorator, wrap)


class _Signature:
    """Where a function wants its endpoint, and whether it wants to know its time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        parameters = inspect.signature(function).parameters
        found = parameters.get("endpoint")
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


class _Progress:
    """One call of a function: where `Call` stands, and what the last attempt gave."""

    def __init__(self, call: Call, mesh: MeshSource, ignore: tuple[type[Exception], ...]) -> None:
        self.call = call
        self.value: Any = _NOTHING
        self.error: Exception | None = None
        self._clock = mesh.clock
        self._ignore = ignore
        self.step: Step = call.start(mesh.clock())

    def next_attempt(self) -> Attempt | None:
        """Return the attempt to make now; None: the call has ended. Any wait that was asked for is over."""
        while isinstance(self.step, Sleep):
            self.step = self.call.slept(self._clock())
        return self.step if isinstance(self.step, Attempt) else None

    def returned(self, value: Any) -> None:
        self.value, self.error = value, None
        self.step = self.call.finished(_OK, self._clock())

    def raised(self, error: Exception) -> None:
        self.error = error
        self.step = self.call.finished(self._meant_by(error), self._clock())

    async def race(self, step: Attempt, run: Callable[[Attempt], Awaitable[Any]]) -> None:
        """Carry the call to its end, with attempts that run beside each other."""
        shell = FunctionShell(self.call, run, returned=_OK, raised=self._meant_by, nothing=_NOTHING)
        self.step = await arace(self.call, shell, step, clock=self._clock)
        self.value, self.error = shell.value, shell.error

    def _meant_by(self, error: Exception) -> Outcome:
        return _OK if isinstance(error, self._ignore) else outcome_of(error)

    def timed_out(self) -> None:
        self.error = None
        self.step = self.call.finished(Failure(FailureKind.TIMEOUT, True), self._clock())

    def failure(self) -> Exception | None:
        """Return what to raise, or None when the last attempt gave a value."""
        if self.value is not _NOTHING:
            return None
        if self.error is None:
            return self.call.error()
        if isinstance(self.error, self._ignore):
            return self.error
        record = self.call.error(str(self.error) or type(self.error).__name__)
        self.error.add_note(f"meshlib: {record}")
        return self.error


class _RetryByPolicy(retry_base):
    """Whether: as `Call` reads the route's retry policy. It also says when to stop, so tenacity's own stop is never."""

    def __init__(self, progress: _Progress) -> None:
        self._progress = progress

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        # tenacity hands over cancellation and interrupts too: those end the loop whatever the policy says. What the
        # function raises is no exception here, but part of the progress.
        outcome = retry_state.outcome
        return not isinstance(self._progress.step, Done) and not (outcome is not None and outcome.failed)


class _WaitByPolicy(wait_base):
    """How long: the policy's backoff."""

    def __init__(self, progress: _Progress) -> None:
        self._progress = progress

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        step = self._progress.step
        return step.seconds if isinstance(step, Sleep) else 0.0


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
            if self._fallback is _NOTHING or isinstance(error, self._ignore):
                raise
            return self._fallback(*args, **kwargs) if callable(self._fallback) else self._fallback

    def _find_and_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mesh = self._mesh
        target = mesh.target(self._service) or mesh.wait_target(self._service)
        if target.has_demands:
            target = mesh.meet(target, self._head)
        return self._run(target, args, kwargs)

    def _run(self, target: TargetView, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._call(target)
        try:
            progress = _Progress(call, self._mesh, self._ignore)
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
                retry=_RetryByPolicy(progress), wait=_WaitByPolicy(progress), stop=tenacity.stop_never, sleep=time.sleep
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
            if self._fallback is _NOTHING or isinstance(error, self._ignore):
                raise
            value = self._fallback(*args, **kwargs) if callable(self._fallback) else self._fallback
            return await value if inspect.isawaitable(value) else value

    async def _find_and_arun(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mesh = self._mesh
        target = mesh.target(self._service) or await mesh.wait_target_async(self._service)
        if target.has_demands:
            target = await mesh.meet_async(target, self._head)
        return await self._arun(target, args, kwargs)

    async def _arun(self, target: TargetView, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._call(target, can_hedge=True)
        try:
            progress = _Progress(call, self._mesh, self._ignore)
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
                retry=_RetryByPolicy(progress),
                wait=_WaitByPolicy(progress),
                stop=tenacity.stop_never,
                sleep=anyio.sleep,
            )(attempt)
            return self._result(progress)
        finally:
            call.close(self._mesh.clock())

    def _call(self, target: TargetView, *, can_hedge: bool = False) -> Call:
        mesh = self._mesh
        now = mesh.clock()
        known = [seconds for seconds in (self._timeout_s, remaining_s(now)) if seconds is not None]
        timeout_s = min(known, default=None)
        return begin_call(mesh, target, self._head, now=now, timeout_s=timeout_s, can_hedge=can_hedge)

    def _direct(self) -> Endpoint:
        return Endpoint(self._service if ":" in self._service else f"{self._service}:80")

    def _result(self, progress: _Progress) -> Any:
        error = progress.failure()
        if error is None:
            return progress.value
        raise error
