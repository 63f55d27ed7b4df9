"""What every RPC of a mesh channel goes through: its target, its attempts, its errors."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grpc
import grpc.aio

from meshlib.call import Attempt, Done
from meshlib.clients.grpc_channels import Channels, MeshChannels
from meshlib.clients.grpc_common import HeadMaker, Metadata, attempt_metadata, classify_error
from meshlib.clients.grpc_endpoint import EndpointChannel, Options
from meshlib.clients.grpc_errors import AioMeshRpcError, CallInfo, MeshRpcError, refusal_of_mesh_error
from meshlib.clients.grpc_flow import Flow, pause_s
from meshlib.clients.source import MeshSource
from meshlib.clients.unrouted import count_unrouted, flag_of
from meshlib.errors import MeshError
from meshlib.events import Meter
from meshlib.model.outcome import Outcome
from meshlib.model.request import RequestHead
from meshlib.runtime.context import peek_request, remaining_s
from meshlib.runtime.core import is_unsent
from meshlib.view import TargetView, View

__all__ = ["AioInvoker", "Invoker", "Method", "Rpc", "SyncInvoker", "left_s"]

C = TypeVar("C")
E = TypeVar("E", MeshRpcError, AioMeshRpcError)
Express = Callable[[TargetView], tuple[View, Meter | None] | None]


@dataclass(slots=True, eq=False)
class Method:
    """One method of a channel.

    Attributes:
        kind: `unary_unary`, `unary_stream`, `stream_unary` or `stream_stream`.
        serializer: For requests.
        sent_serializer: What gRPC is given: streams of requests are serialised once, before they get there.
    """

    kind: str
    heads: HeadMaker
    serializer: Callable[[Any], bytes] | None
    deserializer: Callable[[bytes], Any] | None
    sent_serializer: Callable[[Any], bytes] | None = field(init=False)

    def __post_init__(self) -> None:
        self.sent_serializer = None if self.kind.startswith("stream") else self.serializer


@dataclass(slots=True, eq=False)
class Rpc:
    """What a caller said about one RPC."""

    timeout_s: float | None = None
    metadata: Metadata | None = None
    credentials: grpc.CallCredentials | None = None
    wait_for_ready: bool | None = None
    compression: grpc.Compression | None = None

    def __post_init__(self) -> None:
        if self.metadata is not None and type(self.metadata) is not tuple:
            self.metadata = tuple(self.metadata)  # what can be read once only is read by routes, and sent by attempts

    def cap(self, now: float) -> None:
        """Let it take no longer than the request which this process is serving meanwhile, if any."""
        inbound_s = remaining_s(now)
        if inbound_s is not None and (self.timeout_s is None or inbound_s < self.timeout_s):
            self.timeout_s = inbound_s


class Invoker(Generic[C]):
    """One mesh channel's way to the mesh and to the endpoints: what sync and aio have in common.

    Attributes:
        channels: Those to use here and now.
        express: Says whether calls to a target need a `Call`, and who counts those that do not; None: all do.

    Args:
        authority: What the mesh is asked for.
        options: Channel arguments for the endpoints' channels.
    """

    if TYPE_CHECKING:

        @property
        def channels(self) -> Channels[C]: ...

    def __init__(
        self, mesh: MeshSource, authority: str, options: Options, compression: grpc.Compression | None
    ) -> None:
        self.mesh = mesh
        self.authority = authority
        self.clock = mesh.clock
        self.express: Express | None = getattr(mesh, "_express", None)
        self.is_closed = False
        self._options = options
        self._compression = compression
        self._known_metadata: tuple[RequestHead, RequestHead, Any] | None = None
        # Ends of calls that were dropped by their callers. Finalizers run anywhere, also while this thread holds the
        # very lock that giving back needs, so they only leave a note here; the next RPC does it.
        self.abandoned: deque[Callable[[], None]] = deque()

    def refused(self, error: MeshError, make: type[E], method: str, began_at: float, *, is_late: bool = False) -> E:
        """Translate and count an error from before there was a call; `is_late`: in which the RPC's own time ended."""
        refusal = refusal_of_mesh_error(error)
        code = grpc.StatusCode.DEADLINE_EXCEEDED if is_late else refusal.code
        made = make(code, refusal.details, CallInfo(error.cluster, error.endpoints, error.attempts, flag_of(error)))
        made.__cause__ = error
        count_unrouted(
            self.mesh,
            error,
            kind="grpc",
            authority=self.authority,
            method=method,
            began_at=began_at,
            grpc_status=code.value[0],
        )
        return made

    def closed(self) -> Exception:
        """Return what gRPC raises for RPCs on a closed channel."""
        return ValueError("Cannot invoke RPC on closed channel!")

    def check_open(self) -> None:
        """Refuse RPCs on a closed channel, and give back what dropped calls hold.

        Raises:
            ValueError: The channel was closed; grpc's own exception. `grpc.aio.UsageError` for event loops.
        """
        if self.is_closed:
            raise self.closed()
        if self.abandoned:
            self.collect()

    def flow(
        self,
        target: TargetView,
        method: Method,
        rpc: Rpc,
        *,
        now: float,
        timeout_s: float | None,
        can_hedge: bool = False,
    ) -> Flow:
        """Make the flow of an RPC.

        Args:
            timeout_s: What is left of the RPC's own.
            can_hedge: Its attempts can run beside each other.
        """
        heads = method.heads
        head = heads.plain if rpc.metadata is None else heads(rpc.metadata)
        return Flow(
            self.mesh,
            self.authority,
            target,
            head,
            now,
            timeout_s,
            bool(rpc.wait_for_ready),
            can_hedge,
        )

    def acquire(self, attempt: Attempt) -> EndpointChannel[C]:
        """Take the channel of an attempt.

        Raises:
            IdentityError: We cannot show who we are, or could not check who the peer is.
        """
        return self.channels.acquire(self.mesh.view, attempt, self._options, self._compression)

    def acquire_from(self, channels: Channels[C], attempt: Attempt) -> EndpointChannel[C]:
        """As `acquire`, when the channels to use are known."""
        return channels.acquire(self.mesh.view, attempt, self._options, self._compression)

    def multicallable(self, channel: EndpointChannel[C], method: Method, attempt: Attempt) -> Any:
        """Return what carries out an attempt."""
        return channel.multicallable(method.kind, attempt.head.path, method.sent_serializer, method.deserializer)

    def metadata(self, flow: Flow, attempt: Attempt, rpc: Rpc, channel: EndpointChannel[C]) -> Any:
        """Return the metadata of an attempt."""
        sent = attempt.head
        if rpc.metadata is not None:
            metadata = attempt_metadata(flow.head, sent, rpc.metadata)
        else:
            # Calls without metadata share their heads.
            known = self._known_metadata
            if known is None or known[0] is not sent or known[1] is not flow.head:
                known = self._known_metadata = (sent, flow.head, attempt_metadata(flow.head, sent, None))
            metadata = known[2]
        return channel.steered(metadata) if channel.core is not None else metadata

    def is_unsent(self, error: Any, channel: EndpointChannel[C]) -> bool:
        """Whether core could not send an attempt, which is to be made over the relay then, as if nothing had been."""
        core = channel.core
        if core is None or not is_unsent(error, core.node_id):
            return False
        self.channels.distrust(channel)
        return True

    def outcome_of(self, error: Any, channel: EndpointChannel[C], attempt: Attempt, began_at: float) -> Outcome:
        """Classify what an attempt raised; `error` is a `grpc.RpcError` that knows the metadata too."""
        timeout_s = attempt.timeout_s
        return classify_error(
            error.code(),
            error.details(),
            (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())),
            dialled=channel.dialled,
            # gRPC's own clock decides; ours may be a moment behind.
            timed_out=timeout_s is not None and self.clock() - began_at >= timeout_s - 0.01,
            error=error,
            refused_by=channel.refused_by,
        )

    def ended(self, flow: Flow, done: Done, error: Any, make: type[E]) -> Any:
        """Return what the caller gets of an RPC without success, and give back what it holds.

        Args:
            error: What the last attempt raised, or None.
            make: Makes the mesh's own errors.
        """
        refusal = flow.refusal(done)
        if refusal is None:
            error.mesh = flow.info()
            flow.close(self.clock(), error.code().value[0])
            return error
        flow.close(self.clock(), refusal.code.value[0])
        made = make(refusal.code, refusal.details, flow.info())
        made.__cause__ = refusal.cause
        return made

    def collect(self) -> None:
        """Give back what dropped calls hold."""
        while self.abandoned:
            try:
                give_back = self.abandoned.popleft()
            except IndexError:  # another thread was faster
                return
            give_back()


class SyncInvoker(Invoker[grpc.Channel]):
    """For threads."""

    channels: Channels[grpc.Channel]

    def __init__(
        self,
        mesh: MeshSource,
        authority: str,
        channels: MeshChannels | None,
        options: Options,
        compression: grpc.Compression | None,
    ) -> None:
        """Make an invoker.

        Args:
            channels: None: attempts go elsewhere, `acquire` and `release` are overridden.
        """
        super().__init__(mesh, authority, options, compression)
        if channels is not None:
            self.channels = channels.sync

    def begin(self, method: Method, rpc: Rpc, *, can_hedge: bool = False) -> Flow:
        """Make the flow of an RPC; waits for the configuration of a service used for the first time.

        Raises:
            MeshRpcError: There is none, or not in time.
            ValueError: The channel was closed.
        """
        if self.is_closed or self.abandoned:
            self.check_open()
        now = self.clock()
        if peek_request() is not None:
            rpc.cap(now)
        try:
            target = self.mesh.target(self.authority)
        except MeshError as error:
            if not rpc.wait_for_ready:
                raise self.refused(error, MeshRpcError, method.heads.plain.path, now) from error
            target = None
        timeout_s = rpc.timeout_s
        if target is None or target.has_demands:
            began_at = now
            if target is None:
                target = self._wait(method, rpc, began_at)
            if target.has_demands:
                target = self._meet(target, method, rpc, began_at)
            now = self.clock()
            if timeout_s is not None:
                timeout_s -= now - began_at
        heads = method.heads
        head = heads.plain if rpc.metadata is None else heads(rpc.metadata)
        wait = bool(rpc.wait_for_ready)
        return Flow(self.mesh, self.authority, target, head, now, timeout_s, wait, can_hedge)

    def release(self, channel: EndpointChannel[grpc.Channel]) -> None:
        """Give a channel back."""
        self.channels.release(channel)

    def _wait(self, method: Method, rpc: Rpc, began_at: float) -> TargetView:
        pauses = 0
        while True:
            try:
                limit_s = left_s(rpc, began_at, self.clock())
                return self.mesh.wait_target(self.authority, limit_s, fails_fast=not rpc.wait_for_ready)
            except MeshError as error:
                rest_s = left_s(rpc, began_at, self.clock())
                if rest_s == 0.0:
                    raise self.refused(error, MeshRpcError, method.heads.plain.path, began_at, is_late=True) from error
                if not rpc.wait_for_ready or self.is_closed:
                    raise self.refused(error, MeshRpcError, method.heads.plain.path, began_at) from error
                time.sleep(pause_s(pauses) if rest_s is None else min(pause_s(pauses), rest_s))
                pauses += 1

    def _meet(self, target: TargetView, method: Method, rpc: Rpc, began_at: float) -> TargetView:
        try:
            return self.mesh.meet(target, method.heads(rpc.metadata), left_s(rpc, began_at, self.clock()))
        except MeshError as error:
            raise self.refused(error, MeshRpcError, method.heads.plain.path, began_at) from error


class AioInvoker(Invoker[grpc.aio.Channel]):
    """For event loops; a mesh channel may be used in any number of them."""

    def __init__(
        self,
        mesh: MeshSource,
        authority: str,
        channels: MeshChannels,
        options: Options,
        compression: grpc.Compression | None,
    ) -> None:
        super().__init__(mesh, authority, options, compression)
        self._all = channels
        self._last: tuple[asyncio.AbstractEventLoop, Channels[grpc.aio.Channel]] | None = None

    def closed(self) -> Exception:
        """As grpc.aio has it."""
        return grpc.aio.UsageError("Channel is closed.")

    @property
    def channels(self) -> Channels[grpc.aio.Channel]:
        loop = asyncio.get_running_loop()
        last = self._last
        if last is None or last[0] is not loop:
            self._last = last = (loop, self._all.aio(loop))
        return last[1]

    async def wait(self, method: Method, rpc: Rpc, began_at: float) -> TargetView:
        """Wait for the configuration of a service that is used for the first time.

        Raises:
            AioMeshRpcError: There is none, or not in time.
        """
        pauses = 0
        while True:
            try:
                limit_s = left_s(rpc, began_at, self.clock())
                return await self.mesh.wait_target_async(self.authority, limit_s, fails_fast=not rpc.wait_for_ready)
            except MeshError as error:
                rest_s = left_s(rpc, began_at, self.clock())
                if rest_s == 0.0:
                    raise self.refused(
                        error, AioMeshRpcError, method.heads.plain.path, began_at, is_late=True
                    ) from error
                if not rpc.wait_for_ready or self.is_closed:
                    raise self.refused(error, AioMeshRpcError, method.heads.plain.path, began_at) from error
                await asyncio.sleep(pause_s(pauses) if rest_s is None else min(pause_s(pauses), rest_s))
                pauses += 1

    async def meet(self, target: TargetView, method: Method, rpc: Rpc, began_at: float) -> TargetView:
        """Wait for what this RPC needs of a target and nobody has needed yet.

        Raises:
            AioMeshRpcError: The target cannot be used any more.
        """
        if not target.has_demands:
            return target
        try:
            return await self.mesh.meet_async(target, method.heads(rpc.metadata), left_s(rpc, began_at, self.clock()))
        except MeshError as error:
            raise self.refused(error, AioMeshRpcError, method.heads.plain.path, began_at) from error

    def must_wait(self, target: TargetView, method: Method, rpc: Rpc) -> bool:
        """Whether an RPC needs what the target does not have yet."""
        return target.has_demands and bool(target.unmet(method.heads(rpc.metadata)))


def left_s(rpc: Rpc, began_at: float, now: float) -> float | None:
    """Return the time left of an RPC, not below 0; None: no limit."""
    return None if rpc.timeout_s is None else max(rpc.timeout_s - (now - began_at), 0.0)
