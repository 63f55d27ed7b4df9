"""What every RPC of a sync mesh channel goes through: its target, its attempts, its errors."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from meshlib.call import Attempt, Done
from meshlib.clients.grpc_channels import EndpointChannel, MeshChannels, Options
from meshlib.clients.grpc_common import HeadMaker, Metadata, attempt_metadata, classify_error
from meshlib.clients.grpc_errors import CallInfo, MeshRpcError, refusal_of_mesh_error
from meshlib.clients.grpc_flow import Flow, pause_s
from meshlib.clients.source import MeshSource
from meshlib.errors import MeshError
from meshlib.model.outcome import Outcome
from meshlib.view import TargetView

__all__ = ["Invoker", "Method", "Options", "Rpc"]


@dataclass(slots=True, eq=False)
class Method:
    """One method of a channel.

    Attributes:
        kind: `unary_unary`, `unary_stream`, `stream_unary` or `stream_stream`.
        serializer: For requests; streams of requests are serialised once, before they get to gRPC.
    """

    kind: str
    heads: HeadMaker
    serializer: Callable[[Any], bytes] | None
    deserializer: Callable[[bytes], Any] | None


@dataclass(slots=True, eq=False)
class Rpc:
    """What a caller said about one RPC."""

    timeout_s: float | None = None
    metadata: Metadata | None = None
    credentials: grpc.CallCredentials | None = None
    wait_for_ready: bool | None = None
    compression: grpc.Compression | None = None


class Invoker:
    """One mesh channel's way to the mesh and to the endpoints."""

    def __init__(
        self,
        mesh: MeshSource,
        authority: str,
        channels: MeshChannels,
        options: Options,
        compression: grpc.Compression | None,
    ) -> None:
        self.mesh = mesh
        self.authority = authority
        self.clock = mesh.clock
        self.is_closed = False
        self._channels = channels.sync
        self._options = options
        self._compression = compression
        # Ends of streams that were dropped by their callers. Finalizers run anywhere, also while this thread holds the
        # very lock that giving back needs, so they only leave a note here; the next RPC does it.
        self.abandoned: deque[Callable[[], None]] = deque()

    def begin(self, method: Method, rpc: Rpc) -> Flow:
        """Make the flow of an RPC; waits for the configuration of a service used for the first time.

        Raises:
            MeshRpcError: There is none, or not in time.
            ValueError: The channel was closed.
        """
        if self.is_closed:
            raise ValueError("Cannot invoke RPC on closed channel!")
        if self.abandoned:
            self.collect()
        now = self.clock()
        timeout_s = rpc.timeout_s
        try:
            target = self.mesh.target(self.authority)
        except MeshError as error:
            if not rpc.wait_for_ready:
                raise self.refused(error) from error
            target = None
        head = method.heads(rpc.metadata)
        if target is None:
            target = self._wait(rpc, now)
            if timeout_s is not None:
                timeout_s -= self.clock() - now
                now = self.clock()
        return Flow(
            self.mesh,
            self.authority,
            target,
            head,
            now=now,
            timeout_s=timeout_s,
            wait_for_ready=bool(rpc.wait_for_ready),
        )

    def _wait(self, rpc: Rpc, began_at: float) -> TargetView:
        pauses = 0
        while True:
            left_s = None if rpc.timeout_s is None else rpc.timeout_s - (self.clock() - began_at)
            try:
                return self.mesh.wait_target(self.authority, None if left_s is None else max(left_s, 0.0))
            except MeshError as error:
                left_s = None if rpc.timeout_s is None else rpc.timeout_s - (self.clock() - began_at)
                if left_s is not None and left_s <= 0:
                    raise self.refused(error, is_late=True) from error
                if not rpc.wait_for_ready or self.is_closed:
                    raise self.refused(error) from error
                time.sleep(pause_s(pauses) if left_s is None else min(pause_s(pauses), left_s))
                pauses += 1

    def refused(self, error: MeshError, *, is_late: bool = False) -> MeshRpcError:
        """Translate an error from before there was a call."""
        refusal = refusal_of_mesh_error(error)
        code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else refusal.code
        return MeshRpcError(code, refusal.details, CallInfo(error.cluster, error.endpoints, error.attempts, error.flag))

    def acquire(self, attempt: Attempt) -> EndpointChannel[grpc.Channel]:
        """Take the channel of an attempt.

        Raises:
            IdentityError: We cannot show who we are, or could not check who the peer is.
        """
        return self._channels.acquire(self.mesh.view, attempt, self._options, self._compression)

    def release(self, channel: EndpointChannel[grpc.Channel]) -> None:
        """Give a channel back."""
        self._channels.release(channel)

    def multicallable(self, channel: EndpointChannel[grpc.Channel], method: Method, attempt: Attempt) -> Any:
        """Return what carries out an attempt."""
        serializer = None if method.kind.startswith("stream") else method.serializer
        return channel.multicallable(method.kind, attempt.head.path, serializer, method.deserializer)

    def metadata(self, flow: Flow, attempt: Attempt, rpc: Rpc) -> Any:
        """Return the metadata of an attempt."""
        return attempt_metadata(flow.call.head, attempt.head, rpc.metadata)

    def outcome_of(
        self, error: Any, channel: EndpointChannel[grpc.Channel], attempt: Attempt, began_at: float
    ) -> Outcome:
        """Classify what an attempt raised; `error` is a `grpc.RpcError` that is a finished call too."""
        timeout_s = attempt.timeout_s
        code = error.code()
        return classify_error(
            code,
            error.details(),
            (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())),
            dialled=channel.dialled,
            # gRPC's own clock decides; ours may be a moment behind.
            timed_out=timeout_s is not None and self.clock() - began_at >= timeout_s - 0.01,
            error=error,
            refused_by=channel.refused_by,
        )

    def ended(self, flow: Flow, done: Done, error: Any) -> grpc.RpcError:
        """Return what the caller gets of an RPC without success, and give back what it holds.

        Args:
            error: What the last attempt raised, or None.
        """
        refusal = flow.refusal(done)
        if refusal is None:
            error.mesh = flow.info()
            flow.close(self.clock(), error.code().value[0])
            result: grpc.RpcError = error
            return result
        flow.close(self.clock(), refusal.code.value[0])
        made = MeshRpcError(refusal.code, refusal.details, flow.info())
        made.__cause__ = refusal.cause
        return made

    def collect(self) -> None:
        """Give back what abandoned streams hold."""
        while self.abandoned:
            try:
                give_back = self.abandoned.popleft()
            except IndexError:  # another thread was faster
                return
            give_back()
