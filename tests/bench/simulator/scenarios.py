"""What is played, and what it comes to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meshlib.model.cluster import CircuitBreakers, Cluster, OutlierDetection, Probation
from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl, LimitFilter
from meshlib.model.lb_policy import LeastRequest, PeakEwma, Random, RoundRobin, SlowStart
from meshlib.model.retry import RetryPolicy

from .world import Answer, Client, Host, World, cluster

__all__ = ["OVERLOAD", "Run", "failing_host", "overload", "recovering_host", "slow_host"]

HOSTS = 10
WORKERS = 4
SERVICE_S = 0.010
CAPACITY = HOSTS * WORKERS / SERVICE_S
"""Requests per second that all hosts together can serve: 4,000."""
UNLIMITED = CircuitBreakers(max_requests=2**31, max_retries=2**31, max_connections=2**31, max_pending_requests=2**31)


@dataclass(frozen=True)
class Run:
    """One way of doing it, and how it went.

    Attributes:
        served: Requests that each host served.
    """

    name: str
    answers: Sequence[Answer]
    served: Sequence[int]

    def between(self, start: float, end: float) -> list[Answer]:
        return [answer for answer in self.answers if start <= answer.at < end]

    def percentile_ms(self, percentile: float, start: float, end: float) -> float:
        """Return a percentile of the durations of good calls."""
        durations = sorted(answer.duration_s for answer in self.between(start, end) if answer.is_good)
        return 1000 * durations[min(len(durations) - 1, int(len(durations) * percentile / 100))] if durations else 0.0

    def failed(self, start: float, end: float) -> float:
        """Return the share of calls that failed."""
        found = self.between(start, end)
        return sum(not answer.is_good for answer in found) / max(1, len(found))

    def goodput(self, start: float, end: float) -> float:
        """Return good answers per second."""
        return sum(answer.is_good for answer in self.between(start, end)) / (end - start)


def _play(
    name: str,
    seconds: float,
    load: float,
    template: Cluster | None,
    *,
    seed: int,
    first: dict[str, object] | None = None,
    retry: RetryPolicy | None = None,
    timeout_s: float = 1.0,
    limits: Sequence[LimitFilter] = (),
    clients: int = 4,
    hosts: int = HOSTS,
) -> Run:
    """Let some clients call for some time.

    Args:
        load: Share of the hosts' capacity.
        first: What is special about the first host.
    """
    world = World(seed)
    made = [
        Host(f"10.0.0.{n}:80", world, SERVICE_S, WORKERS, **(first or {} if n == 1 else {}))  # type: ignore[arg-type]
        for n in range(1, hosts + 1)
    ]
    rate = load * hosts * WORKERS / SERVICE_S / clients
    callers = [
        Client(world, made, template, rate=rate, retry=retry, timeout_s=timeout_s, limits=limits)
        for _ in range(clients)
    ]
    world.run(seconds)
    answers = sorted((answer for caller in callers for answer in caller.answers), key=lambda answer: answer.at)
    return Run(name, answers, [host.served for host in made])


POLICIES = (
    ("round robin", RoundRobin()),
    ("random", Random()),
    ("least request", LeastRequest()),
    ("peak EWMA", PeakEwma()),
)


def slow_host(*, seed: int = 1, seconds: float = 20.0, load: float = 0.5) -> list[Run]:
    """One host of ten takes ten times as long: for the policies that don't look, its queue grows and grows."""
    return [
        _play(name, seconds, load, cluster(lb_policy=policy, circuit_breakers=UNLIMITED), seed=seed, first=_slow())
        for name, policy in POLICIES
    ]


def _slow() -> dict[str, object]:
    return {"slowness": lambda now: 10.0}


def failing_host(*, seed: int = 1, seconds: float = 30.0, load: float = 0.5) -> list[Run]:
    """From the tenth second to the twentieth one host answers 503 at once, which makes it look idle."""
    first: dict[str, object] = {"failures": lambda now: 1.0 if 10 <= now < 20 else 0.0}
    outlier = OutlierDetection(consecutive_5xx=5, base_ejection_time_s=3.0, interval_s=1.0)
    probation = replace(outlier, probation=Probation())
    retry = RetryPolicy(frozenset({"5xx"}), num_retries=2)
    least = LeastRequest()
    ways = (
        ("round robin", cluster(circuit_breakers=UNLIMITED), None),
        ("least request", cluster(lb_policy=least, circuit_breakers=UNLIMITED), None),
        (
            "least request, ejection",
            cluster(lb_policy=least, circuit_breakers=UNLIMITED, outlier_detection=outlier),
            None,
        ),
        (
            "least request, ejection, probation",
            cluster(lb_policy=least, circuit_breakers=UNLIMITED, outlier_detection=probation),
            None,
        ),
        (
            "least request, ejection, retries",
            cluster(lb_policy=least, circuit_breakers=UNLIMITED, outlier_detection=outlier),
            retry,
        ),
    )
    return [_play(name, seconds, load, template, seed=seed, first=first, retry=way) for name, template, way in ways]


def recovering_host(*, seed: int = 1, seconds: float = 30.0, load: float = 0.6) -> list[Run]:
    """A host comes back cold after an ejection: its first seconds are slow, and the more it gets the longer they hurt."""
    first: dict[str, object] = {
        "failures": lambda now: 1.0 if 5 <= now < 8 else 0.0,
        # Cold from the eighth second on, warm ten seconds later.
        "slowness": lambda now: max(1.0, 6.0 - (now - 8) / 2) if now >= 8 else 1.0,
    }
    outlier = OutlierDetection(consecutive_5xx=5, base_ejection_time_s=3.0, interval_s=1.0)
    ways = (
        ("round robin", RoundRobin()),
        ("round robin, slow start", RoundRobin(SlowStart(window_s=15.0))),
    )
    return [
        _play(
            name,
            seconds,
            load,
            cluster(lb_policy=policy, circuit_breakers=UNLIMITED, outlier_detection=outlier),
            seed=seed,
            first=first,
        )
        for name, policy in ways
    ]


OVERLOAD = 3.0
"""Times the capacity."""


def overload(*, seed: int = 1, seconds: float = 20.0, hosts: int = HOSTS) -> list[Run]:
    """Three times as many calls as the hosts can serve.

    Without limits each call fails after its time-out, its attempts are worked on all the same, and retries add to it.
    """
    retry = RetryPolicy(frozenset({"5xx"}), num_retries=3, per_try_timeout_s=0.25)
    adaptive = AdaptiveConcurrency(update_interval_s=0.1, min_rtt_interval_s=30.0)
    budget = CircuitBreakers(max_requests=2**31, retry_budget_percent=20.0, max_connections=2**31)
    ways: tuple[tuple[str, Cluster, tuple[LimitFilter, ...]], ...] = (
        ("three retries, no limits", cluster(circuit_breakers=UNLIMITED), ()),
        ("retry budget", cluster(circuit_breakers=budget), ()),
        ("retry budget, admission control", cluster(circuit_breakers=budget), (AdmissionControl(max_rejection=0.95),)),
        ("retry budget, adaptive concurrency", cluster(circuit_breakers=budget), (adaptive,)),
    )
    return [
        _play(name, seconds, OVERLOAD, template, seed=seed, retry=retry, limits=limits, hosts=hosts)
        for name, template, limits in ways
    ]
