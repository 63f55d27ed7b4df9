"""Hosts with queues, clients with the real `Call`, and a clock that jumps from one event to the next.

A host has workers; a request that finds none free waits its turn, for as long as it takes, also when its client has long
gone: servers rarely know. That is what makes overload feed on itself.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from random import Random

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.clients.tracing import begin_call
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.filters import LimitFilter, ListedLimit
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.snapshot import Snapshot
from meshlib.testing import FakeMesh, mesh_source, service

__all__ = ["Answer", "Client", "Host", "World"]

HEAD = RequestHead("GET", "service", "/", Headers())


class World:
    """The clock and what is to happen."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.rng = Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def clock(self) -> float:
        return self.now

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        heappush(self._events, (self.now + max(delay_s, 0.0), next(self._order), action))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now, _, action = heappop(self._events)
            action()
        self.now = until_s


@dataclass
class Host:
    """One server.

    Attributes:
        service_s: Mean of the time that a worker needs for a request; the times are exponential.
        workers: Requests at a time.
        slowness: At a time, by how much longer everything takes.
        failures: At a time, the share of requests that fail at once (503), without a worker.
    """

    address: str
    world: World
    service_s: float = 0.010
    workers: int = 4
    slowness: Callable[[float], float] = lambda now: 1.0
    failures: Callable[[float], float] = lambda now: 0.0
    served: int = 0
    _busy: int = 0
    _queue: deque[Callable[[int], None]] = field(default_factory=deque)

    def ask(self, answer: Callable[[int], None]) -> None:
        if self.world.rng.random() < self.failures(self.world.now):
            self.world.later(0.001, lambda: answer(503))
        elif self._busy < self.workers:
            self._work(answer)
        else:
            self._queue.append(answer)

    def _work(self, answer: Callable[[int], None]) -> None:
        self._busy += 1
        self.served += 1
        rng = self.world.rng
        self.world.later(
            rng.expovariate(1 / (self.service_s * self.slowness(self.world.now))), lambda: self._done(answer)
        )

    def _done(self, answer: Callable[[int], None]) -> None:
        self._busy -= 1
        if self._queue:
            self._work(self._queue.popleft())
        answer(200)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller saw.

    Attributes:
        at: When the call began.
        attempts: None for a call that the mesh refused before it was sent.
    """

    at: float
    duration_s: float
    is_good: bool
    attempts: int


class Client:
    """One process that calls the service at random moments."""

    def __init__(
        self,
        world: World,
        hosts: Sequence[Host],
        template: Cluster | None = None,
        *,
        rate: float,
        timeout_s: float = 1.0,
        retry: RetryPolicy | None = None,
        limits: Sequence[LimitFilter] = (),
    ) -> None:
        """
        Args:
            template: Options of the cluster.
            rate: Calls per second, on average.
        """
        self.world = world
        self.answers: list[Answer] = []
        self._hosts = {host.address: host for host in hosts}
        self._rate = rate
        snapshot = service("service", *self._hosts, template=template, timeout_s=timeout_s, retry=retry)
        self._mesh: FakeMesh = mesh_source(
            _limited(snapshot, limits), clock=world.clock, rng=Random(world.rng.random())
        )
        world.later(world.rng.expovariate(rate), self._call)
        world.later(1.0, self._tick)

    def _tick(self) -> None:
        self._mesh.sweep()
        self.world.later(1.0, self._tick)

    def _call(self) -> None:
        self.world.later(self.world.rng.expovariate(self._rate), self._call)
        now = self.world.now
        call = begin_call(self._mesh, self._mesh.wait_target("service"), HEAD, now=now, timeout_s=None)
        self._obey(call, call.start(now), now)

    def _obey(self, call: Call, step: Step, began_at: float) -> None:
        world = self.world
        match step:
            case Attempt():
                self._attempt(call, step, began_at)
            case Sleep(seconds=seconds):
                world.later(seconds, lambda: self._obey(call, call.slept(world.now), began_at))
            case Done(result=result):
                is_good = isinstance(result, Response) and result.status < 500
                self.answers.append(Answer(began_at, world.now - began_at, is_good, call.attempts))
                call.close(world.now)

    def _attempt(self, call: Call, attempt: Attempt, began_at: float) -> None:
        is_open = True

        def finish(outcome: Outcome) -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._obey(call, call.finished(outcome, self.world.now), began_at)

        self._hosts[attempt.endpoint.address].ask(lambda status: finish(Response(status)))
        if attempt.timeout_s is not None:
            self.world.later(attempt.timeout_s, lambda: finish(Failure(FailureKind.TIMEOUT, request_sent=True)))


def _limited(snapshot: Snapshot, limits: Sequence[LimitFilter]) -> Snapshot:
    if not limits:
        return snapshot
    target = snapshot.targets["service"]
    listed = tuple(ListedLimit(f"limit {number}", limit) for number, limit in enumerate(limits))
    listener = replace(target.listener, limits=listed)  # type: ignore[union-attr]
    return replace(snapshot, targets={"service": replace(target, listener=listener)})  # type: ignore[arg-type]


def cluster(**options: object) -> Cluster:
    """Make the options of a cluster."""
    return Cluster("service", EdsDiscovery("service"), **options)  # type: ignore[arg-type]
