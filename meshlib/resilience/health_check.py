"""Active health checks: what a result means for an endpoint, and when the next check is due.

An endpoint of a checked cluster is out until its first check, which alone decides: a fresh process gets to work fast.
After that it takes `healthy_threshold` successes in a row to come back, and `unhealthy_threshold` failures of the
network, or with a status that is called retriable, to be taken out. Any other failure takes it out at once: a service
that says it is not well is believed.

While a cluster has had no request at all it is checked at the leisurely `no_traffic_interval`.

Source: Envoy, "Health checking" and `HealthCheckerImplBase`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from meshlib.matching import compile_string
from meshlib.model.health import HealthCheck, HttpProbe, Probe
from meshlib.model.request import Headers
from meshlib.ports import Rng

__all__ = [
    "IMMEDIATE_FAILURE",
    "CheckFailure",
    "CheckResult",
    "CheckTurn",
    "EndpointCheck",
    "has_parts",
    "judge_http",
    "probe_of",
]

IMMEDIATE_FAILURE = "x-envoy-immediate-health-check-fail"


class CheckFailure(Enum):
    """What a check failed for, in the words of Envoy's health check events."""

    ACTIVE = "ACTIVE"
    PASSIVE = "PASSIVE"
    NETWORK = "NETWORK"
    NETWORK_TIMEOUT = "NETWORK_TIMEOUT"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check came to.

    Attributes:
        failure: None: it passed.
        is_retriable: The failure takes the endpoint out only after some in a row.
        is_degraded: It passed, but others are to be preferred.
        is_immediate: The endpoint asks not even to be counted any more.
        reason: For people.
    """

    failure: CheckFailure | None = None
    is_retriable: bool = False
    is_degraded: bool = False
    is_immediate: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CheckTurn:
    """What follows from a result.

    Attributes:
        wait_s: Until the next check.
        is_news: The endpoint's state is another than before.
        events: `eject_unhealthy`, `add_healthy`, `health_check_failure`, `successful_health_check`,
            `degraded_healthy_host` or `no_longer_degraded_host`, in order.
        is_first: It was the first result.
    """

    wait_s: float
    is_news: bool
    events: tuple[str, ...]
    is_first: bool


class EndpointCheck:
    """What is known of one endpoint by its checks. One thread at a time.

    Attributes:
        is_failed: It is out.
        is_degraded: It works, but others are to be preferred.
        is_first: No check has ended yet.
    """

    __slots__ = ("_asked_out", "_healthy", "_unhealthy", "_waits", "is_degraded", "is_failed", "is_first")

    def __init__(self, *, waits: bool = False) -> None:
        """Begin.

        Args:
            waits: The endpoint is not counted before its first check (`ignore_new_hosts_until_first_hc`).
        """
        self.is_failed = True
        self.is_degraded = False
        self.is_first = True
        self._waits = waits
        self._asked_out = False
        self._healthy = 0
        self._unhealthy = 0

    @property
    def is_excluded(self) -> bool:
        """Not even counted: it asked for that, or waits for its first check where new endpoints do."""
        return self._waits or self._asked_out

    def ended(self, result: CheckResult, config: HealthCheck, rng: Rng, *, has_traffic: bool) -> CheckTurn:
        """Take a result in.

        Args:
            has_traffic: The cluster has had requests.
        """
        before = (self.is_failed, self.is_degraded, self.is_excluded)
        was_first, self.is_first = self.is_first, False
        # The first result ends the waiting of a new endpoint, whatever it is.
        self._waits = False
        events: list[str] = []
        if result.failure is None:
            is_pending = self._passed(result, config, events, was_first=was_first)
        else:
            is_pending = self._failed(result.failure, result, config, events, was_first=was_first)
        is_news = before != (self.is_failed, self.is_degraded, self.is_excluded)
        wait_s = self._wait_s(config, rng, is_healthy=result.failure is None, is_pending=is_pending, has=has_traffic)
        return CheckTurn(wait_s, is_news, tuple(events), was_first)

    def anew(self) -> "EndpointCheck":
        """Return the check of the same endpoint for a host that is made anew: its state stays, the next result is a first."""
        made = EndpointCheck(waits=self._waits)
        made.is_failed, made.is_degraded = self.is_failed, self.is_degraded
        return made

    def fail_at_once(self) -> bool:
        """Take the endpoint out because its answer to a request asks for it; True: that is news."""
        was = (self.is_failed, self.is_excluded)
        self._healthy = 0
        self.is_failed = self._asked_out = True
        return was != (True, True)

    def _passed(self, result: CheckResult, config: HealthCheck, events: list[str], *, was_first: bool) -> bool:
        self._unhealthy = 0
        is_pending = has_changed = False
        if self.is_failed:
            self._healthy += 1
            if was_first or self._healthy >= config.healthy_threshold:
                self.is_failed = self._asked_out = False
                self._healthy = 0
                has_changed = True
                events.append("add_healthy")
            else:
                is_pending = True
        if not has_changed and config.always_log_success:
            events.append("successful_health_check")
        if result.is_degraded != self.is_degraded:
            self.is_degraded = result.is_degraded
            events.append("degraded_healthy_host" if result.is_degraded else "no_longer_degraded_host")
        return is_pending

    def _failed(
        self, failure: CheckFailure, result: CheckResult, config: HealthCheck, events: list[str], *, was_first: bool
    ) -> bool:
        self._healthy = 0
        is_pending = False
        is_of_network = failure in (CheckFailure.NETWORK, CheckFailure.NETWORK_TIMEOUT)
        if not self.is_failed:
            self._unhealthy += 1
            if not (is_of_network or result.is_retriable) or self._unhealthy >= config.unhealthy_threshold:
                self.is_failed = True
                self._unhealthy = 0
                events.append("eject_unhealthy")
            else:
                is_pending = True
        if result.is_immediate:
            self._asked_out = True
        if was_first or config.always_log_failures:
            events.append("health_check_failure")
        return is_pending

    def _wait_s(self, config: HealthCheck, rng: Rng, *, is_healthy: bool, is_pending: bool, has: bool) -> float:
        if not has:
            is_settled = is_healthy and not is_pending
            wait_s = config.no_traffic_healthy_interval_s if is_settled else config.no_traffic_interval_s
        elif is_healthy:
            wait_s = config.healthy_edge_interval_s if is_pending else config.interval_s
        else:
            wait_s = config.unhealthy_edge_interval_s if is_pending else config.unhealthy_interval_s
        jitter_s = wait_s * config.interval_jitter_percent / 100
        if jitter_s:
            wait_s += rng.random() * jitter_s
        if config.interval_jitter_s:
            wait_s += rng.random() * config.interval_jitter_s
        if config.max_wait_s is not None:
            wait_s = min(wait_s, config.max_wait_s)
        return max(wait_s, config.min_wait_s, 0.001)


def probe_of(config: HealthCheck, rng: Rng) -> Probe:
    """Return what one check asks: some may do without the name of the service."""
    probe = config.probe
    if config.verify_percent >= 100 or not isinstance(probe, HttpProbe) or probe.service_name is None:
        return probe
    return probe if rng.getrandbits(64) % 100 < config.verify_percent else replace(probe, service_name=None)


def judge_http(probe: HttpProbe, status: int, headers: Headers, body: bytes) -> CheckResult:
    """Return what the answer to an HTTP check means.

    Args:
        body: Its first bytes, as many as the probe wants.
    """
    is_immediate = IMMEDIATE_FAILURE in headers
    if not _is_in(status, probe.expected):
        return CheckResult(
            CheckFailure.ACTIVE,
            is_retriable=_is_in(status, probe.retriable),
            is_immediate=is_immediate,
            reason=f"status {status}",
        )
    if not has_parts(probe.receive, body):
        return CheckResult(CheckFailure.ACTIVE, is_immediate=is_immediate, reason="the body is not as expected")
    if probe.service_name is not None:
        said = headers.get("x-envoy-upstream-healthchecked-cluster") or ""
        if not compile_string(probe.service_name)(said):
            return CheckResult(CheckFailure.ACTIVE, reason=f"it is {said or 'an unnamed service'}")
    return CheckResult(is_degraded="x-envoy-degraded" in headers)


def has_parts(parts: Sequence[bytes], body: bytes) -> bool:
    """Whether all parts are in a body, one after the other."""
    at = 0
    for part in parts:
        found = body.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _is_in(status: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(start <= status < end for start, end in ranges)
