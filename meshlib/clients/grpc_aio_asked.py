"""What a call of grpc.aio can be asked, for call objects of ours that learn only at some time who knows the answers."""

from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

import grpc
import grpc.aio

from meshlib.clients.grpc_errors import CANCELLED

__all__ = ["Asked", "Known", "Said", "metadata_of", "now_of", "said_by", "true_error"]


class Asked(ABC):
    """The questions of a `grpc.aio.Call` that wait for an answer."""

    @abstractmethod
    async def _final(self) -> Any:
        """Return what knows the status: the call or attempt, or an error; None: it was cancelled before there was any."""

    async def initial_metadata(self) -> grpc.aio.Metadata:
        final = await self._final()
        found: grpc.aio.Metadata = grpc.aio.Metadata() if final is None else await final.initial_metadata()
        return self._marked(found)

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        final = await self._final()
        found: grpc.aio.Metadata = grpc.aio.Metadata() if final is None else await final.trailing_metadata()
        return found

    async def code(self) -> grpc.StatusCode:
        final = await self._final()
        found: grpc.StatusCode = grpc.StatusCode.CANCELLED if final is None else await final.code()
        return found

    async def details(self) -> str:
        final = await self._final()
        found: str = CANCELLED if final is None else await final.details()
        return found

    async def debug_error_string(self) -> str:
        final = await self._final()
        found: str = "" if final is None else await final.debug_error_string()
        return found

    def _marked(self, metadata: grpc.aio.Metadata) -> grpc.aio.Metadata:
        """Return initial metadata with what the mesh adds."""
        return metadata


class Known:
    """An error, asked as a call is."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    async def initial_metadata(self) -> Any:
        return self._error.initial_metadata()

    async def trailing_metadata(self) -> Any:
        return self._error.trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        return self._error.code()

    async def details(self) -> str | None:
        return self._error.details()

    async def debug_error_string(self) -> str:
        return self._error.debug_error_string() or ""


def _is_from_core(error: Any) -> bool:
    return (
        isinstance(error, grpc.aio.AioRpcError)
        and error.code() is grpc.StatusCode.INTERNAL
        and error.details() == "Internal error from Core"
    )


def said_by(native: Any, before: grpc.aio.AioRpcError | None) -> grpc.aio.AioRpcError:
    """Return the status of an attempt whose end its callback has just been told of, before anything can change it.

    Args:
        before: What this said at an earlier end of the same attempt: older versions tell of an overwritten status too.
    """
    status = _status_of(native)
    return before if before is not None and _is_from_core(status) else status


def true_error(error: Any, status: grpc.aio.AioRpcError | None) -> Any:
    """Return what the peer said, when grpc.aio has put its own trouble in the place of it.

    A status that arrives while a request message is being sent is overwritten by "Internal error from Core", as the
    message cannot be sent any more (seen with 1.85, in one of twenty refused streams).

    Args:
        error: What grpc.aio raised.
        status: What `said_by` said when the attempt ended.
    """
    if status is not None and _is_from_core(error) and status.code() is not grpc.StatusCode.OK:
        return status
    return error


def _status_of(native: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        now_of(native.code()),
        now_of(native.initial_metadata()),
        now_of(native.trailing_metadata()),
        details=now_of(native.details()),
        debug_error_string=now_of(native.debug_error_string()),
    )


class Said:
    """What a peer said of an attempt that streams requests: the callback at the attempt's end.

    A call of grpc.aio is asked at once: a message that cannot be sent any more overwrites the status, see `true_error`.
    """

    _status: grpc.aio.AioRpcError | None = None

    def __call__(self, native: Any) -> None:
        self._status = said_by(native, self._status)

    def true(self, error: Any) -> Any:
        """Return the error that it has come to, for the one that was raised."""
        return true_error(error, self._status)


def metadata_of(pairs: Any) -> grpc.aio.Metadata:
    """Return metadata of pairs."""
    return grpc.aio.Metadata(*pairs)


def now_of(answer: Coroutine[Any, Any, Any]) -> Any:
    """Return what a coroutine answers that does not have to wait."""
    try:
        answer.send(None)
    except StopIteration as stop:
        return stop.value
    answer.close()
    raise RuntimeError("the status of a finished call is not there")
