"""RPCs with metadata, below a request that is being served, with hooks and with spans: the same with a `Call` and without.

Each case is asked of two meshes, of which only one may do without; what servers, callers, hooks and exporters see of it is
compared.
"""

import asyncio
import contextlib
import contextvars
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import context as otel_context
from opentelemetry import propagate
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from meshlib.admin.metrics import StandardMetrics
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import close_channels
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.events import AttemptFinished, CallFinished, Event, Meter
from meshlib.model.matcher import HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import Route, RouteAction, RouteMatcher, SingleCluster
from meshlib.model.snapshot import Snapshot
from meshlib.runtime.context import InboundContext, entered
from meshlib.testing import SeededRng, any_path, cluster, merge, service, target
from meshlib.testing.source import FakeMesh
from meshlib.view import ClusterState, TargetView, View

UNARY = "/test.Service/Unary"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
B3 = (("x-b3-traceid", "463ac35c9f6413ad"), ("x-b3-spanid", "a2fb4a1d1a96d312"))
IDS = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}")
HANDED = (("x-request-id", "7"), ("priority", "u=1"), *B3)


class ToldMesh(FakeMesh):
    """A mesh whose calls may be without a `Call` if it `is_express`.

    Attributes:
        metrics: Count what happens; None: hooks take events.
    """

    def __init__(self, *, is_express: bool, is_metered: bool, provider: TracerProvider | None) -> None:
        super().__init__(
            Snapshot(),
            clock=time.monotonic,
            rng=SeededRng(7),
            guard_unsafe=True,
            is_disabled=False,
            tracer_provider=provider,
        )
        self.is_express = is_express
        self.metrics = StandardMetrics()
        self._meter = self.metrics if is_metered else None

    def _express(self, target: TargetView) -> tuple[View, Meter | None] | None:
        is_same = self.view.targets.get(target.name) is target
        return (self.view, self._meter) if self.is_express and is_same else None

    def emit(self, event: Event) -> None:
        super().emit(event)
        self.metrics(event)


class Server:
    """Says what metadata it got, in the order of their names, after as many refusals as asked for."""

    def __init__(self) -> None:
        self.refusals = 0
        handlers = {"Unary": grpc.unary_unary_rpc_method_handler(self._unary)}
        self.pool = futures.ThreadPoolExecutor(4)
        self.grpc = grpc.server(self.pool)
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
        self.address = f"127.0.0.1:{self.grpc.add_insecure_port('127.0.0.1:0')}"
        self.grpc.start()

    def _unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.refusals:
            self.refusals -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "asked to refuse")
        if request == b"wait":
            over = threading.Event()
            context.add_callback(over.set)
            over.wait(20)
        seen = sorted((item.key, item.value) for item in context.invocation_metadata() if item.key != "user-agent")
        return repr([self.address, *seen]).encode()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """Two of them."""
    made = Server(), Server()
    yield made
    for one in made:
        one.grpc.stop(0).wait(5)
        one.pool.shutdown()


def snapshot_of(servers: tuple[Server, Server]) -> Snapshot:
    """One service; calls with `x-canary: yes` go to the second server."""
    retry = RetryPolicy(frozenset({"unavailable"}), num_retries=1, base_interval_s=0.001)
    wanted = HeaderMatcher("x-canary", StringMatcher(StringKind.EXACT, "yes"))
    canary = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), headers=(wanted,))
    routes = (
        Route(canary, RouteAction(SingleCluster("canary")), name="canary"),
        any_path(RouteAction(SingleCluster("stable"), retry=retry), name="stable"),
    )
    stable = service("stable", servers[0].address)
    found = merge(stable, service("canary", servers[1].address))
    made = target("checkout", *routes, include_attempt_count=True)
    return Snapshot(targets={"checkout": made}, clusters=found.clusters, number=1)


Mode = tuple[bool, Any]
METERED: Mode = (True, None)
HOOKED: Mode = (False, None)
TRACED: Mode = (True, ALWAYS_ON)
UNSAMPLED: Mode = (False, ALWAYS_OFF)
Ask = Callable[..., bytes]


class Asked:
    """One mesh, and what there is to see of the RPCs made with it."""

    def __init__(self, servers: tuple[Server, Server], mode: Mode, *, is_express: bool) -> None:
        is_metered, sampler = mode
        self.spans = InMemorySpanExporter()
        provider = None
        if sampler is not None:
            provider = TracerProvider(sampler=sampler)
            provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.mesh = ToldMesh(is_express=is_express, is_metered=is_metered, provider=provider)
        self.servers = servers
        self.mesh.publish(snapshot_of(servers))
        self.found: list[Any] = []

    def ask(self, method: Callable[..., Any], request: bytes = b"x", **options: Any) -> None:
        try:
            self.found.append(method(request, **options))
        except grpc.RpcError as raised:
            error: Any = raised
            self.found += [error.code(), error.details(), error.mesh]
        except Exception as error:
            self.found.append(type(error))

    def seen(self) -> list[Any]:
        """Return it with names in place of what is random or takes time."""
        spans = self.spans.get_finished_spans()
        names = {span.context.span_id: f"{number}" for number, span in enumerate(spans)}
        told = []
        for span in spans:
            parent = None if span.parent is None else names.get(span.parent.span_id, hex(span.parent.span_id))
            told.append((span.name, parent, dict(span.attributes or {}), span.status.status_code))
        ids = {
            f"{span.context.trace_id:032x}-{span.context.span_id:016x}": names[span.context.span_id] for span in spans
        }
        text = IDS.sub(lambda found: ids.get(found[0], found[0] if found[0] in OTHER else "?"), repr(self.found))
        events = []
        for event in self.mesh.events:
            if isinstance(event, AttemptFinished | CallFinished):
                event.duration_s = 0.0
            events.append(event)
        counted = [(sample.labels, sample.count) for sample in self.mesh.metrics.requests()]
        clusters = [self.mesh.cluster(name) for name in ("stable", "canary")]
        counts = [(one.attempts, one.breaker.active, [s.active for s in one.states.values()]) for one in clusters]
        return [text, told, events, counted, dict(self.mesh.metrics.attempts()), counts]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with the cluster of each RPC that needed no `Call`."""
    found: list[str] = []
    before = ClusterState.succeeded

    def succeeded(self: ClusterState, *args: Any) -> Any:
        found.append(self.name)
        return before(self, *args)

    monkeypatch.setattr(ClusterState, "succeeded", succeeded)
    return found


@contextlib.contextmanager
def sync_method(mesh: ToldMesh) -> Iterator[Any]:
    with MeshChannel(mesh, "xds:///checkout") as channel:
        yield channel.unary_unary(UNARY)


@contextlib.contextmanager
def aio_method(mesh: ToldMesh) -> Iterator[Any]:
    """The same of an event loop, whose calls are waited for."""
    with asyncio.Runner() as runner:

        async def opened() -> Any:
            return AioMeshChannel(mesh, "xds:///checkout")

        channel = runner.run(opened())
        method: Any = channel.unary_unary(UNARY)

        def ask(request: bytes, **options: Any) -> Any:
            async def wait() -> Any:
                return await method(request, **options)

            return runner.run(wait(), context=contextvars.copy_context())

        try:
            yield ask
        finally:
            runner.run(channel.close())


Act = Callable[[Asked, Any], None]


def both(
    servers: tuple[Server, Server], taken: list[str], mode: Mode, opened: Any, act: Act, *, express: int
) -> list[Any]:
    """Do the same with a mesh whose calls may do without a `Call`, and with one whose may not.

    Args:
        express: How many RPCs are to have needed none.

    Returns:
        What was seen.
    """
    found = []
    for is_express in (True, False):
        asked = Asked(servers, mode, is_express=is_express)
        try:
            with opened(asked.mesh) as method:
                for _ in range(3):
                    method(b"x")
                taken.clear()
                act(asked, method)
                assert (express if is_express else 0) == len(taken)
        finally:
            close_channels(asked.mesh)
        found.append(asked.seen())
    assert found[0] == found[1]
    return found[0]


modes = pytest.mark.parametrize(
    "mode", [METERED, HOOKED, TRACED, UNSAMPLED], ids=["meter", "hooks", "spans", "unsampled"]
)
kinds = pytest.mark.parametrize("opened", [sync_method, aio_method], ids=["sync", "aio"])


@modes
@kinds
def test_metadata_go_along(servers: Any, taken: Any, mode: Mode, opened: Any) -> None:
    def act(asked: Asked, method: Any) -> None:
        asked.ask(method, metadata=(("key", "1"), ("key", "2"), ("data-bin", b"\x00\xff"), ("cookie", "a=b")))
        asked.ask(method, metadata=[("key", "3")], wait_for_ready=True, timeout=5.0)
        asked.ask(method, metadata=(), timeout=5.0)
        asked.ask(method, wait_for_ready=False)

    seen = both(servers, taken, mode, opened, act, express=4)
    for piece in ("'1'", "'2'", r"\\x00\\xff", "a=b", "x-envoy-attempt-count"):
        assert piece in seen[0]


@modes
@kinds
def test_metadata_of_grpc_aio(servers: Any, taken: Any, mode: Mode, opened: Any) -> None:
    metadata = grpc.aio.Metadata(("key", "1"), ("key", "2"))
    pairs = metadata if opened is aio_method else tuple(metadata)
    both(servers, taken, mode, opened, lambda asked, method: asked.ask(method, metadata=pairs), express=1)


@kinds
def test_metadata_that_routes_look_at(servers: Any, taken: Any, opened: Any) -> None:
    def act(asked: Asked, method: Any) -> None:
        for value in ("yes", "no"):
            asked.ask(method, metadata=(("x-canary", value),))
        asked.ask(method, metadata=(("key", "1"),))

    seen = both(servers, taken, METERED, opened, act, express=1)
    assert servers[1].address in seen[0]


@kinds
def test_metadata_that_concern_the_mesh_or_the_transport(servers: Any, taken: Any, opened: Any) -> None:
    def act(asked: Asked, method: Any) -> None:
        asked.servers[0].refusals = 1
        asked.ask(method, metadata=(("x-envoy-max-retries", "0"),))
        asked.servers[0].refusals = 0
        asked.ask(method, metadata=(("x-envoy-attempt-count", "9"),))
        asked.ask(method, metadata=(("grpc-timeout", "5S"),))
        asked.ask(method, metadata=(("te", "gzip"),))

    both(servers, taken, METERED, opened, act, express=0)


@kinds
def test_metadata_that_are_none(servers: Any, taken: Any, opened: Any) -> None:
    def act(asked: Asked, method: Any) -> None:
        for metadata in (((1, "x"),), (("a", "b", "c"),), (1,), (([], "x"),), (("key", 1),), (("Key", "x"),)):
            asked.ask(method, metadata=metadata, timeout=5.0)
        asked.ask(method, metadata=iter([("key", "1")]), timeout=5.0)

    both(servers, taken, METERED, opened, act, express=0)


@modes
@kinds
def test_calls_that_always_have_metadata(servers: Any, taken: Any, mode: Mode, opened: Any) -> None:
    """Their way is left by the first of them; the second finds the channel."""
    for is_express in (True, False):
        asked = Asked(servers, mode, is_express=is_express)
        taken.clear()
        with opened(asked.mesh) as method:
            for number in range(6):
                asked.ask(method, metadata=(("x-canary", "yes"), ("key", f"{number}")))
            assert [] == taken
            for number in range(6):
                asked.ask(method, metadata=(("key", f"{number}"),))
            assert (["stable"] * 4 if is_express else []) == taken
        close_channels(asked.mesh)


@modes
@kinds
def test_below_a_request_that_is_served(servers: Any, taken: Any, mode: Mode, opened: Any) -> None:
    def act(asked: Asked, method: Any) -> None:
        with entered(InboundContext(deadline=time.monotonic() + 30, attempt=2, handed_on=HANDED)):
            asked.ask(method)
            asked.ask(method, metadata=(("key", "1"), ("x-request-id", "mine")), timeout=5.0)
            asked.ask(method, metadata=(("x-b3-traceid", "1"),))
        with entered(InboundContext(handed_on=(("x-canary", "yes"),))):
            asked.ask(method)
        with entered(InboundContext()):
            asked.ask(method, timeout=5.0)

    seen = both(servers, taken, mode, opened, act, express=4)
    assert "'x-request-id', 'mine'" in seen[0].replace("\\", "") and "463ac35c9f6413ad" in seen[0]


@modes
@kinds
def test_deadlines_of_a_request_that_is_served(servers: Any, taken: Any, mode: Mode, opened: Any) -> None:
    def act(asked: Asked, method: Any) -> None:
        with entered(InboundContext(deadline=time.monotonic() + 0.3)):
            asked.ask(method, b"wait", timeout=20.0, metadata=(("key", "1"),))
            asked.ask(method)  # nobody waits any more

    began_at = time.monotonic()
    seen = both(servers, taken, mode, opened, act, express=0)
    assert "DEADLINE_EXCEEDED" in seen[0] and time.monotonic() - began_at < 15


@modes
@kinds
def test_what_is_refused_is_repeated_with_all_that_it_brought(
    servers: Any, taken: Any, mode: Mode, opened: Any
) -> None:
    def act(asked: Asked, method: Any) -> None:
        for refusals in (1, 2):
            asked.servers[0].refusals = refusals
            with entered(InboundContext(deadline=time.monotonic() + 30, handed_on=HANDED)):
                asked.ask(method, metadata=[("key", "1"), ("data-bin", b"\x00")], timeout=20.0)
        # A caller who is itself repeating leaves repeating to its own caller.
        asked.servers[0].refusals = 1
        with entered(InboundContext(attempt=2)):
            asked.ask(method, metadata=(("key", "1"),))
        asked.servers[0].refusals = 0

    seen = both(servers, taken, mode, opened, act, express=0)
    assert "'x-envoy-attempt-count', '2'" in seen[0].replace("\\", "")


@pytest.mark.parametrize("mode", [METERED, TRACED], ids=["meter", "spans"])
@kinds
def test_traces_that_came_in_or_are_the_applications_own(servers: Any, taken: Any, mode: Mode, opened: Any) -> None:
    def act(asked: Asked, method: Any) -> None:
        asked.ask(method, metadata=(("traceparent", OTHER), ("key", "1")))
        token = otel_context.attach(propagate.extract({"traceparent": OTHER, "baggage": "a=1"}))
        try:
            asked.ask(method)
            asked.ask(method, metadata=(("baggage", "b=2"),))
        finally:
            otel_context.detach(token)

    seen = both(servers, taken, mode, opened, act, express=3)
    assert "4bf92f3577b34da6a3ce929d0e0e4736" in repr(seen) and "a=1" in seen[0]


@kinds
def test_waiting_for_somebody_to_be_ready(servers: Any, taken: Any, opened: Any) -> None:
    """Nobody is there any more when a call begins, and somebody is again while it waits."""

    def act(asked: Asked, method: Any) -> None:
        state = asked.mesh.cluster("stable")
        asked.ask(method, wait_for_ready=True, timeout=5.0)
        config = state.config
        empty = cluster("stable")
        state.update(empty, time.monotonic())
        asked.ask(method, timeout=5.0)
        asked.ask(method, wait_for_ready=True, timeout=0.2)
        back = threading.Timer(0.1, state.update, (config, time.monotonic()))
        back.start()
        asked.ask(method, wait_for_ready=True, timeout=20.0, metadata=(("key", "1"),))
        back.join()

    # How often they look for somebody depends on time.
    texts = []
    for is_express in (True, False):
        asked = Asked(servers, METERED, is_express=is_express)
        with opened(asked.mesh) as method:
            for _ in range(3):
                method(b"x")
            taken.clear()
            act(asked, method)
            assert (["stable"] if is_express else []) == taken
        close_channels(asked.mesh)
        texts.append(asked.seen()[0])
    assert texts[0] == texts[1] and "DEADLINE_EXCEEDED" in texts[0] and "'key'" in texts[0].replace("\\", "")


@pytest.mark.parametrize("mode", [HOOKED, TRACED], ids=["hooks", "spans"])
def test_aio_calls_that_are_given_up(servers: Any, taken: Any, mode: Mode) -> None:
    async def main(mesh: ToldMesh) -> None:
        async with AioMeshChannel(mesh, "xds:///checkout") as channel:
            method: Any = channel.unary_unary(UNARY)
            for _ in range(3):
                await method(b"x")
            for give_up in (lambda call: call.cancel(), lambda call: None):
                with entered(InboundContext(deadline=time.monotonic() + 30, handed_on=HANDED)):
                    call = method(b"wait", metadata=(("key", "1"),))
                await asyncio.sleep(0.01)
                give_up(call)
                del call
                await asyncio.sleep(0.01)

    found = []
    for is_express in (True, False):
        asked = Asked(servers, mode, is_express=is_express)
        asyncio.run(main(asked.mesh))
        found.append(asked.seen())
        close_channels(asked.mesh)
    assert found[0] == found[1]


def test_aio_calls_given_up_in_the_context_of_another_span_make_none(servers: Any, taken: Any) -> None:
    async def main(mesh: ToldMesh) -> None:
        async with AioMeshChannel(mesh, "xds:///checkout") as channel:
            method: Any = channel.unary_unary(UNARY)
            for _ in range(3):
                await method(b"x")
            assert mesh.tracing.is_idle()
            call = method(b"wait")
            token = otel_context.attach(propagate.extract({"traceparent": OTHER}))
            call.cancel()
            otel_context.detach(token)

    asked = Asked(servers, METERED, is_express=True)
    asyncio.run(main(asked.mesh))
    close_channels(asked.mesh)
    assert [] == asked.seen()[1]
