"""Runs the active health checks of all clusters: one thread with an event loop, started when there is something to check.

The thread keeps the times and carries probes out; what a result means is decided by the cluster. Not more than
`MAX_AT_ONCE` checks are under way, and a check that waits for its turn has not begun: its time limit is its own.

Before a fork the thread ends; both sides start another one when they go on.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.errors import MeshError
from meshlib.events import HealthChecked, Hook
from meshlib.model.endpoint import Endpoint
from meshlib.model.health import GrpcProbe, HealthCheck, HttpProbe
from meshlib.ports import Clock, Rng
from meshlib.resilience.health_check import CheckFailure, CheckResult, probe_of
from meshlib.runtime.tls import client_context
from meshlib.view import ClusterState, View

__all__ = ["HealthCheckRunner"]

_LOG = logging.getLogger(__name__)
MAX_AT_ONCE: Final = 64
STOP_TIMEOUT_S: Final = 5.0

Key = tuple[int, str]
"""Identity of the cluster's state, and the endpoint's address."""


class _Entry:
    """One endpoint that is checked."""

    __slots__ = ("cluster", "state", "task", "timer")

    def __init__(self, cluster: ClusterState, state: EndpointState) -> None:
        self.cluster = cluster
        self.state = state
        self.timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None

    def end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if self.task is not None:
            self.task.cancel()


class HealthCheckRunner:
    """`step` and `close` may be called by any thread, though by one at a time."""

    def __init__(
        self, view: Callable[[], View], *, clock: Clock, rng: Rng, emit: Hook, changed: Callable[[], None]
    ) -> None:
        """Make a runner; no thread yet.

        Args:
            changed: Called when a cluster has had its first round of checks.
        """
        self._view = view
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._changed = changed
        # Guarded by the lock.
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        # Of the thread alone.
        self._entries: dict[Key, _Entry] = {}
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)

    def step(self) -> None:
        """Follow the view: endpoints that are new are checked, those gone are not any more."""
        is_needed = self._view().has_checks
        with self._lock:
            if self._loop is None:
                if not is_needed:
                    return
                self._entries = {}
                self._turns = asyncio.Semaphore(MAX_AT_ONCE)
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(loop,), name="meshlib-health", daemon=True)
                self._thread.start()
            self._loop.call_soon_threadsafe(self._follow)

    def close(self) -> None:
        """End the thread; `step` starts it again."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is not None:
                loop.call_soon_threadsafe(loop.stop)
        if thread is not None and thread is not threading.current_thread():
            thread.join(STOP_TIMEOUT_S)

    def after_fork_in_child(self) -> None:
        """Forget the thread, which is not here."""
        self._lock = threading.Lock()
        self._loop = self._thread = None
        self._entries = {}

    # The thread.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            for entry in self._entries.values():
                entry.end()
            running = asyncio.all_tasks(loop)
            for task in running:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*running, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _follow(self) -> None:
        wanted: dict[Key, tuple[ClusterState, EndpointState]] = {}
        for cluster in self._view().clusters.values():
            if not isinstance(cluster, ClusterState) or cluster.checks is None:
                continue
            states = cluster.states
            for address in cluster.checks.addresses:
                state = states.get(address)
                if state is not None:
                    wanted[id(cluster), address] = (cluster, state)
        for key in [key for key, entry in self._entries.items() if wanted.get(key, ())[1:] != (entry.state,)]:
            self._entries.pop(key).end()
        for key, (cluster, state) in wanted.items():
            if key not in self._entries and cluster.checks is not None:
                entry = self._entries[key] = _Entry(cluster, state)
                self._later(entry, cluster.checks.first_wait_s(self._rng))

    def _later(self, entry: _Entry, wait_s: float) -> None:
        loop = asyncio.get_event_loop()
        entry.timer = loop.call_later(wait_s, partial(self._begin, entry))

    def _begin(self, entry: _Entry) -> None:
        entry.task = asyncio.get_event_loop().create_task(self._check(entry))

    async def _check(self, entry: _Entry) -> None:
        cluster, state = entry.cluster, entry.state
        checks = cluster.checks
        if checks is None:
            return
        try:
            async with self._turns:
                result = await self._probe(cluster, state.endpoint, checks.config)
            was_warming = checks.is_warming
            turn = cluster.check_ended(state, result, self._clock(), self._rng)
        except Exception:
            # A bug must not end the checks of this endpoint for good.
            _LOG.exception("error in a health check of %s; it is repeated", state.address)
            self._later(entry, checks.config.interval_s)
            return
        if turn is None:
            return
        self._later(entry, turn.wait_s)
        failure = "" if result.failure is None else result.failure.value
        for change in turn.events:
            self._emit(HealthChecked(cluster.name, state.endpoint, change, failure, result.reason, turn.is_first))
        if was_warming and not checks.is_warming:
            self._changed()

    async def _probe(self, cluster: ClusterState, endpoint: Endpoint, config: HealthCheck) -> CheckResult:
        # Loads HTTP/2, which a process without checks has no use for.
        from meshlib.runtime.health_probes import ProbeTarget, needed_alpn, run_probe

        probe = probe_of(config, self._rng)
        try:
            tls = cluster.tls_for_check(endpoint, config)
            context = None
            if tls is not None:
                context = client_context(tls, self._view().secrets, default_alpn=needed_alpn(probe))
        except MeshError as error:
            return CheckResult(CheckFailure.NETWORK, reason=str(error))
        address = _address(endpoint, config)
        target = ProbeTarget(
            address,
            context,
            "" if tls is None else tls.sni,
            _authority(cluster.name, endpoint, config),
            # A place of its own for checks is one address.
            endpoint.dials if address == endpoint.address else (),
        )
        try:
            async with asyncio.timeout(config.timeout_s):
                return await run_probe(probe, target)
        except TimeoutError:
            return CheckResult(CheckFailure.NETWORK_TIMEOUT, reason=f"no answer within {config.timeout_s:g} s")


def _address(endpoint: Endpoint, config: HealthCheck) -> str:
    """Return where an endpoint is checked: what it says itself, else what the check says, else where it serves."""
    own = endpoint.check
    address = endpoint.address if own is None or not own.address else own.address
    port = (0 if own is None else own.port) or config.alt_port
    if not port or address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def _authority(cluster: str, endpoint: Endpoint, config: HealthCheck) -> str:
    if endpoint.check is not None and endpoint.check.hostname:
        return endpoint.check.hostname
    match config.probe:
        case HttpProbe(host=name) | GrpcProbe(authority=name) if name:
            return name
        case _:
            return cluster
