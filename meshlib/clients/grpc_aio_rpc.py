"""One RPC of an aio mesh channel, as the call object that the caller gets.

The first attempt starts at once, without a task of ours when the service is known: `await stub.Method(request)` costs
no more tasks than with grpc.aio. Whoever awaits first then drives the call through its retries; when an attempt fails
and nobody awaits, a task does. Cancelling the awaiting task, or `cancel()`, cancels the attempt and gives everything
back.
"""

import asyncio
import contextlib
import weakref
from abc import abstractmethod
from typing import Any

import grpc
import grpc.aio

from meshlib.call import Attempt, Done, Sleep, Step
from meshlib.clients.grpc_aio_asked import Known, said_by, true_error
from meshlib.clients.grpc_aio_held import AioHeld, Running
from meshlib.clients.grpc_common import OK
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_errors import AioMeshRpcError
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_race import arace_unary
from meshlib.errors import IdentityError, MeshError
from meshlib.model.outcome import Failure, FailureKind, Outcome
from meshlib.runtime.context import peek_request
from meshlib.view import TargetView

__all__ = ["AioRpc", "Over"]


class AioRpc(AioHeld):
    """What the four kinds of call objects share. Belongs to one event loop.

    Until it is settled, a call is in one of: waiting for the configuration (no flow), an attempt under way (`_native`
    and no pending step), something left to do that takes time (`_pending`), committed to an endpoint.
    """

    def start(self, running: Running) -> None:
        """Begin the RPC.

        Args:
            running: It is in there until it ends.

        Raises:
            grpc.aio.UsageError: The channel was closed.
        """
        invoker = self._invoker
        if invoker.is_closed or invoker.abandoned:
            invoker.check_open()
        self._running = running
        running.add(self._ref)
        if peek_request() is not None:
            self._rpc.cap(self._began_at)
        try:
            target = invoker.mesh.target(invoker.authority)
        except MeshError as error:
            if not self._rpc.wait_for_ready:
                path = self._method.heads.plain.path
                self._error = invoker.refused(error, AioMeshRpcError, path, self._began_at)
                self._settle(self._error.code())
                return
            target = None
        if target is None or (target.has_demands and invoker.must_wait(target, self._method, self._rpc)):
            self._ensure_driver()
            return
        now = self._began_at
        flow = self._flow = self._make_flow(target, now, self._rpc.timeout_s)
        self._launch(flow, flow.start(now))
        if self._pending is not None:
            self._ensure_driver()

    def go_on(self, running: Running, flow: Flow, step: Step) -> None:
        """As `start`, for an RPC that has a flow already.

        Args:
            step: What the flow has come to.
        """
        self._running = running
        running.add(self._ref)
        self._flow = flow
        self._launch(flow, step)
        if self._pending is not None:
            self._ensure_driver()

    def _make_flow(self, target: TargetView, now: float, timeout_s: float | None) -> Flow:
        can_hedge = self._method.kind == "unary_unary"
        return self._invoker.flow(target, self._method, self._rpc, now=now, timeout_s=timeout_s, can_hedge=can_hedge)

    # Attempts.

    def _launch(self, flow: Flow, step: Step, error: BaseException | None = None) -> None:
        """Start an attempt if the step is one, conclude the call if it is over; a pause is left pending.

        Args:
            error: What the attempt before raised.
        """
        invoker = self._invoker
        while isinstance(step, Attempt):
            if step.is_raced:
                self._pending = step
                return
            try:
                channel = invoker.acquire_from(self._channels, step)
            except IdentityError as unable:
                step = flow.finished(Failure(FailureKind.IDENTITY, False, unable), invoker.clock())
                continue
            self._channel = channel
            self._attempt = step
            now = self._attempt_began_at = invoker.clock()
            self._native = self._send(flow, step, channel, now)
            return
        if isinstance(step, Done):
            self._error = invoker.ended(flow, step, error, AioMeshRpcError)
            self._settle(self._error.code())
        else:
            self._pending = step

    def _send(self, flow: Flow, attempt: Attempt, channel: EndpointChannel[grpc.aio.Channel], now: float) -> Any:
        """Start an attempt on a channel; returns gRPC's call."""
        self._status = None
        native = self._invoker.multicallable(channel, self._method, attempt)(
            self._request if self._replay is None else self._replay.reader(),
            timeout=self._native_timeout_s(flow, attempt, now),
            metadata=self._invoker.metadata(flow, attempt, self._rpc, channel),
            credentials=self._rpc.credentials,
            compression=self._rpc.compression,
        )
        native.add_done_callback(Over(self._ref))
        return native

    def _native_timeout_s(self, flow: Flow, attempt: Attempt, now: float) -> float | None:
        return attempt.timeout_s

    @abstractmethod
    async def _next(self) -> Any:
        """Wait for what commits an attempt: the response, or the first message."""

    @abstractmethod
    def _has_first(self, flow: Flow, first: Any) -> None:
        """The attempt brought what it was to bring."""

    async def _drive(self) -> None:
        """Get to the response, the first message, or the end."""
        invoker = self._invoker
        if self._flow is None:
            try:
                target = await invoker.wait(self._method, self._rpc, self._began_at)
                target = await invoker.meet(target, self._method, self._rpc, self._began_at)
            except AioMeshRpcError as error:
                self._error = error
                self._settle(error.code())
                return
            now, timeout_s = invoker.clock(), self._rpc.timeout_s
            if timeout_s is not None:
                timeout_s -= now - self._began_at
            self._flow = self._make_flow(target, now, timeout_s)
            self._launch(self._flow, self._flow.start(now))
        flow = self._flow
        while not self._is_over and not self._is_committed:
            step, self._pending = self._pending, None
            if isinstance(step, Sleep):
                await self._sleep(step.seconds)
                self._launch(flow, flow.slept(invoker.clock()))
                continue
            if isinstance(step, Attempt):
                await self._race(flow, step)
                continue
            try:
                first = await self._next()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                if not self._is_over:
                    self._failed(flow, true_error(error, self._status))
            else:
                if not self._is_over:
                    self._has_first(flow, first)

    async def _race(self, flow: Flow, attempt: Attempt) -> None:
        """Have attempts run beside each other, to the end of the call."""
        stop = self._pause = self._loop.create_future()
        try:
            done, last, result = await arace_unary(
                self._invoker, self._method, self._rpc, self._request, flow, attempt, stop
            )
        finally:
            self._pause = None
        if last is not None:
            self._native, self._channel = last.native, last.channel
            self._attempt, self._attempt_began_at = last.attempt, last.began_at
        if self._is_over:
            self._release_channel()
        elif done.result is OK:
            self._first = result
            self._settle(grpc.StatusCode.OK)
        else:
            self._release_channel()
            self._launch(flow, flow.raced(done, self._invoker.clock()), result)

    def _failed(self, flow: Flow, error: grpc.aio.AioRpcError | TimeoutError) -> None:
        channel, attempt = self._channel, self._attempt
        assert channel is not None and attempt is not None
        is_committed = self._replay is not None and self._replay.is_committed
        if not isinstance(error, TimeoutError) and self._invoker.is_unsent(error, channel) and not is_committed:
            self._channel = None
            self._channels.release(channel)
            self._launch(flow, attempt)
            return
        if isinstance(error, TimeoutError):
            outcome: Outcome = Failure(FailureKind.TIMEOUT, True, error)
        else:
            outcome = self._invoker.outcome_of(error, channel, attempt, self._attempt_began_at)
        self._channel = None
        self._channels.release(channel)
        if is_committed:
            flow.commit()
        self._launch(flow, flow.finished(outcome, self._invoker.clock()), error)

    async def _sleep(self, seconds: float) -> None:
        pause = self._pause = self._loop.create_future()
        timer = self._loop.call_later(seconds, _wake, pause)
        try:
            await pause
        finally:
            timer.cancel()
            self._pause = None

    async def _driven(self) -> None:
        """Wait until the call is committed or over, and drive it there if nobody else does."""
        while not self._is_over and not self._is_committed:
            try:
                if self._driver is not None:
                    await asyncio.shield(self._driver)
                elif self._task is not None and asyncio.current_task() is not self._task:
                    await asyncio.shield(self._task)
                else:
                    await self._drive_alone()
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self._is_cancelled:
            raise asyncio.CancelledError()

    async def _drive_alone(self) -> None:
        driver = self._driver = self._loop.create_future()
        try:
            await self._drive()
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._settle(grpc.StatusCode.CANCELLED)
            raise
        finally:
            self._driver = None
            driver.set_result(None)

    def _ensure_driver(self) -> None:
        if self._driver is None and self._task is None and not self._is_over:
            self._task = self._loop.create_task(self._drive_quietly())

    async def _drive_quietly(self) -> None:
        try:
            # A cancelled call is no business of the loop's exception handler.
            with contextlib.suppress(asyncio.CancelledError):
                await self._driven()
        finally:
            self._task = None

    def native_over(self, native: Any) -> None:
        """gRPC says that an attempt has ended; a reader who waits for it is woken after this."""
        if self._replay is not None and native is self._native:
            self._status = said_by(native, self._status)
        if self._is_over:
            return
        if self._is_committed:
            self._loop.create_task(self._settle_from_native())
        elif self._driver is None:
            self._ensure_driver()

    async def _settle_from_native(self) -> None:
        self._settle(await self._native.code())

    async def _final(self) -> Any:
        """Return what knows the status: the attempt, or the error; None when the call was cancelled before it had any."""
        with contextlib.suppress(asyncio.CancelledError):
            if not self._is_cancelled:
                await self._driven()
        if self._is_cancelled and not self._is_committed:
            return None
        return self._native if self._error is None else Known(self._error)

    async def wait_for_connection(self) -> None:
        """Wait until an endpoint has taken the RPC.

        Raises:
            grpc.aio.AioRpcError: None has.
        """
        await self._driven()
        if self._error is not None:
            raise self._error


class Over:
    """gRPC's callback; does not keep the call object alive."""

    __slots__ = ("_rpc",)

    def __init__(self, rpc: "weakref.ref[Any]") -> None:
        self._rpc = rpc

    def __call__(self, native: Any) -> None:
        rpc = self._rpc()
        if rpc is not None:
            rpc.native_over(native)


def _wake(pause: "asyncio.Future[None]") -> None:
    if not pause.done():
        pause.set_result(None)
