"""Errors that gRPC users already catch, with what the mesh knows of the call.

An error of the mesh itself is a `grpc.RpcError`. Its trailing metadata hold a `google.rpc.Status` with an `ErrorInfo`
(reason: the response flag; domain `meshlib`; metadata: cluster, endpoints, attempts), which `grpc_status.rpc_status`
reads. An error of a server keeps its own details. Both have an attribute `mesh`, a `CallInfo`.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import grpc
import grpc.aio

from meshlib.errors import DeadlineExceeded, MeshError
from meshlib.model.outcome import Failure, FailureKind, LocalReply

__all__ = [
    "CANCELLED",
    "CLOSED",
    "DETAILS_KEY",
    "DOMAIN",
    "AioMeshRpcError",
    "AnyFuture",
    "CallInfo",
    "MeshRpcError",
    "Refusal",
    "refusal_of_failure",
    "refusal_of_mesh_error",
    "refusal_of_reply",
    "run_callbacks",
    "status_of_http",
]

_LOG = logging.getLogger(__name__)

if TYPE_CHECKING:
    # Generic in the stubs only.
    AnyFuture = grpc.Future[Any]
else:
    AnyFuture = grpc.Future

# The words of gRPC.
CANCELLED = "Locally cancelled by application!"
CLOSED = "Channel closed!"

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "meshlib"

_CODES = {code.value[0]: code for code in grpc.StatusCode}

# gRPC's "HTTP to gRPC Status Code Mapping" (doc/http-grpc-status-mapping.md); the fault filter uses it too (A33).
_HTTP_TO_GRPC = {
    400: grpc.StatusCode.INTERNAL,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.UNIMPLEMENTED,
    429: grpc.StatusCode.UNAVAILABLE,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}

# Where a reply brings no text of its own.
_REPLY_TEXTS = {"UO": "circuit breaker drop", "FI": "Fault injected"}


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What the mesh knows of a call that failed.

    Attributes:
        cluster: Empty when no route was found.
        endpoints: Tried, in order, `host:port`.
        attempts: Number of attempts made; 0: nothing was sent.
        flag: Envoy's response flags, or empty.
    """

    cluster: str = ""
    endpoints: tuple[str, ...] = ()
    attempts: int = 0
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the mesh itself ends a call."""

    code: grpc.StatusCode
    details: str
    cause: MeshError


class _Metadatum(NamedTuple):
    key: str
    value: str | bytes


def _trailing(code: grpc.StatusCode, details: str, info: CallInfo) -> tuple[_Metadatum, ...]:
    if code is grpc.StatusCode.CANCELLED and not info.flag:
        return ()  # by the caller, who knows
    # Here, not on top: only errors need these modules.
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no stubs

    reason = info.flag.partition(",")[0] or "UNAVAILABLE"
    metadata = {
        "cluster": info.cluster,
        "endpoint": info.endpoints[-1] if info.endpoints else "",
        "endpoints": ",".join(info.endpoints),
        "attempts": str(info.attempts),
    }
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    status = status_pb2.Status(code=code.value[0], message=details, details=[packed])
    return (_Metadatum(DETAILS_KEY, status.SerializeToString()),)


class MeshRpcError(grpc.RpcError, grpc.Call, AnyFuture):
    """A call that the mesh ended, for sync callers: the error is also the finished call, as grpc's own errors are.

    Attributes:
        mesh: Cluster, endpoints, attempts, flag.
    """

    def __init__(self, code: grpc.StatusCode, details: str, info: CallInfo) -> None:
        super().__init__(details)
        self._code = code
        self._details = details
        self.mesh = info

    def __str__(self) -> str:
        return f"<{type(self).__name__} {self._code.name}: {self._details}>"

    __repr__ = __str__

    def __reduce__(self) -> Any:
        return (type(self), (self._code, self._details, self.mesh))

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def debug_error_string(self) -> str:
        return f"{self._code.name}:{self._details}"

    def initial_metadata(self) -> tuple[_Metadatum, ...]:
        return ()

    def trailing_metadata(self) -> tuple[_Metadatum, ...]:  # type: ignore[override]  # two bases disagree
        return _trailing(self._code, self._details, self.mesh)

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> NoReturn:
        raise self

    def exception(self, timeout: float | None = None) -> "MeshRpcError":
        return self

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        return self.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        fn(self)

    def __iter__(self) -> "MeshRpcError":
        return self

    def __next__(self) -> NoReturn:
        raise self


def run_callbacks(callbacks: Iterable[Callable[[], None]]) -> None:
    """Run the callbacks of a call that is over; one that raises keeps none of the others from it, as in gRPC."""
    for callback in callbacks:
        try:
            callback()
        except Exception:
            _LOG.exception("Exception in callback %r", callback)


class AioMeshRpcError(grpc.aio.AioRpcError):
    """A call that the mesh ended, for `grpc.aio` callers.

    Attributes:
        mesh: Cluster, endpoints, attempts, flag.
    """

    def __init__(self, code: grpc.StatusCode, details: str, info: CallInfo) -> None:
        super().__init__(
            code,
            grpc.aio.Metadata(),
            grpc.aio.Metadata(*((item.key, item.value) for item in _trailing(code, details, info))),
            details=details,
            debug_error_string=f"{code.name}:{details}",
        )
        self.mesh = info

    def __reduce__(self) -> Any:
        return (type(self), (self.code(), self.details(), self.mesh))


def status_of_http(status: int) -> grpc.StatusCode:
    """Return the gRPC status of an HTTP status; one that is not in gRPC's table is UNKNOWN."""
    return _HTTP_TO_GRPC.get(status, grpc.StatusCode.UNKNOWN)


def refusal_of_reply(reply: LocalReply, cause: Callable[..., MeshError]) -> Refusal:
    """Translate a local reply: its own gRPC status, or the mapping of its HTTP status.

    Args:
        cause: `Call.error`.
    """
    if reply.grpc_status is not None:
        code = _CODES.get(reply.grpc_status, grpc.StatusCode.UNKNOWN)
    elif reply.flag == "FI":
        code = status_of_http(reply.status)  # A33
    else:
        # Whatever leads nowhere, redirects and direct responses included (A28).
        code = grpc.StatusCode.UNAVAILABLE
    text = _REPLY_TEXTS.get(reply.flag, "")
    if not text and reply.grpc_status is not None:
        text = reply.body.decode("utf-8", "replace")
    if not text and not reply.flag:
        text = "Matching route has inappropriate action"
    explained = cause()
    if reply.flag != "FI" and explained.message:
        text = f"{text}: {explained.message}" if text else explained.message
    error = cause(text)
    return Refusal(code, str(error), error)


def refusal_of_failure(failure: Failure, cause: Callable[..., MeshError]) -> Refusal:
    """Translate an attempt that brought no response and is not repeated."""
    last = _last_error(failure.error)
    code = grpc.StatusCode.UNAVAILABLE
    if failure.kind is FailureKind.TIMEOUT:
        code, text = grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"
    elif failure.kind in (FailureKind.CONNECT, FailureKind.IDENTITY):
        text = f"connections to all backends failing; last error: {last}"
    else:
        text = last
    error = cause(text)
    return Refusal(code, str(error), error)


def refusal_of_mesh_error(error: MeshError) -> Refusal:
    """Translate an error that came before there was a call: unknown service, configuration not there."""
    late = isinstance(error, DeadlineExceeded)
    return Refusal(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.UNAVAILABLE, str(error), error)


def _last_error(error: BaseException | None) -> str:
    if isinstance(error, grpc.RpcError):
        return (error.details() or str(error)).removeprefix("failed to connect to all addresses; last error: ")
    return str(error) if error is not None else "unknown"
