"""Attempts of one unary gRPC call that run beside each other, for threads and for event loops.

gRPC's own threads carry the attempts; what is here starts them, waits for whichever ends, and cancels the losers.
"""

import asyncio
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import grpc
import grpc.aio

from meshlib.call import Attempt, Done, RaceStep, Wait
from meshlib.clients.grpc_common import OK
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import AioInvoker, Method, Rpc, SyncInvoker
from meshlib.errors import IdentityError
from meshlib.model.outcome import Failure, FailureKind, Outcome

__all__ = ["AioFlight", "arace_unary", "race_unary"]


class _Flight(NamedTuple):
    """An attempt under way; without a channel it failed before it began."""

    attempt: Attempt
    began_at: float
    channel: EndpointChannel[grpc.Channel] | None
    native: Any
    failure: Failure | None = None


def race_unary(
    invoker: SyncInvoker, method: Method, rpc: Rpc, request: Any, flow: Flow, attempt: Attempt
) -> tuple[Done, Any]:
    """Carry a call on from its first attempt, blocking.

    Returns:
        The end, and gRPC's call object of the last attempt that ended: the winner, or what failed last.
    """
    clock, call = invoker.clock, flow.call
    ended: SimpleQueue[int] = SimpleQueue()
    flights: dict[int, _Flight] = {}
    step: RaceStep = attempt
    last: Any = None
    try:
        while True:
            if isinstance(step, Attempt):
                flights[step.number] = _start(invoker, method, rpc, request, flow, step, ended)
                step = call.racing(clock())
            elif isinstance(step, Wait):
                try:
                    number = ended.get(timeout=step.seconds)
                except Empty:
                    step = call.waited(clock())
                    continue
                flight = flights.pop(number)
                outcome: Outcome
                if flight.channel is None:
                    assert flight.failure is not None
                    outcome = flight.failure
                else:
                    last = flight.native
                    if invoker.is_unsent(last, flight.channel):
                        invoker.release(flight.channel)
                        flights[number] = _start(invoker, method, rpc, request, flow, flight.attempt, ended)
                        step = call.racing(clock())
                        continue
                    is_ok = last.code() is grpc.StatusCode.OK
                    outcome = OK if is_ok else invoker.outcome_of(last, flight.channel, flight.attempt, flight.began_at)
                    invoker.release(flight.channel)
                step = call.ended(flight.attempt, outcome, clock())
            else:
                return step, last
    finally:
        for flight in flights.values():
            if flight.channel is not None:
                flight.native.cancel()
                invoker.release(flight.channel)


def _reporter(ended: "SimpleQueue[int]", number: int) -> Callable[[Any], None]:
    return lambda _: ended.put(number)


def _start(
    invoker: SyncInvoker,
    method: Method,
    rpc: Rpc,
    request: Any,
    flow: Flow,
    step: Attempt,
    ended: "SimpleQueue[int]",
) -> _Flight:
    began_at = invoker.clock()
    try:
        channel = invoker.acquire(step)
    except IdentityError as unable:
        ended.put(step.number)
        return _Flight(step, began_at, None, None, Failure(FailureKind.IDENTITY, False, unable))
    native = invoker.multicallable(channel, method, step).future(
        request, step.timeout_s, invoker.metadata(flow, step, rpc, channel), rpc.credentials, None, rpc.compression
    )
    native.add_done_callback(_reporter(ended, step.number))
    return _Flight(step, began_at, channel, native)


class AioFlight(NamedTuple):
    """An attempt under way on an event loop."""

    attempt: Attempt
    began_at: float
    channel: EndpointChannel[grpc.aio.Channel]
    native: Any


async def arace_unary(
    invoker: AioInvoker,
    method: Method,
    rpc: Rpc,
    request: Any,
    flow: Flow,
    attempt: Attempt,
    stop: "asyncio.Future[None]",
) -> tuple[Done, AioFlight | None, Any]:
    """As `race_unary`, on an event loop.

    Args:
        stop: Ends it when done.

    Returns:
        The end; the attempt that ended last, whose channel the caller releases; and its response, or what it raised.

    Raises:
        asyncio.CancelledError: It was stopped, or this task was cancelled.
    """
    clock, call, channels = invoker.clock, flow.call, invoker.channels
    flights: dict[asyncio.Future[Any], AioFlight] = {}
    step: RaceStep = attempt
    last: AioFlight | None = None
    result: Any = None
    try:
        while not isinstance(step, Done):
            if isinstance(step, Attempt):
                began_at = clock()
                try:
                    channel = invoker.acquire(step)
                except IdentityError as unable:
                    result = unable
                    step = call.ended(step, Failure(FailureKind.IDENTITY, False, unable), clock())
                    continue
                native = invoker.multicallable(channel, method, step)(
                    request,
                    timeout=step.timeout_s,
                    metadata=invoker.metadata(flow, step, rpc, channel),
                    credentials=rpc.credentials,
                    compression=rpc.compression,
                )
                flights[asyncio.ensure_future(_result(native))] = AioFlight(step, began_at, channel, native)
                step = call.racing(clock())
                continue
            done, _ = await asyncio.wait({stop, *flights}, timeout=step.seconds, return_when=asyncio.FIRST_COMPLETED)
            if stop in done:
                raise asyncio.CancelledError()
            if not done:
                step = call.waited(clock())
                continue
            task = next(iter(done))
            if last is not None:
                channels.release(last.channel)
            last, result = flights.pop(task), task.result()
            outcome: Outcome = OK
            if isinstance(result, grpc.aio.AioRpcError) and invoker.is_unsent(result, last.channel):
                again, last = last, None
                channels.release(again.channel)
                step = again.attempt
                continue
            if isinstance(result, grpc.aio.AioRpcError):
                outcome = invoker.outcome_of(result, last.channel, last.attempt, last.began_at)
            step = call.ended(last.attempt, outcome, clock())
    except BaseException:
        if last is not None:
            channels.release(last.channel)
        raise
    finally:
        for task, flight in flights.items():
            flight.native.cancel()
            task.cancel()
            channels.release(flight.channel)
    return step, last, result


async def _result(native: Any) -> Any:
    """Return the response of an attempt, or the error that it ended with."""
    try:
        return await native
    except grpc.aio.AioRpcError as error:
        return error
