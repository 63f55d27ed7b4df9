"""Outlier detection: takes out a host by its results, and lets it come back.

Three consecutive counters per host: server errors (5xx), gateway errors (502, 503, 504), and, with
`split_external_local_origin_errors`, failures that happened on our side of the wire. The fifth in a row (by default)
takes the host out for `base_ejection_time`, longer each time it happens again, and a host that behaves is forgiven one
step per interval. Beside that each interval ends with a look at how the hosts compare (`meshlib.resilience.success_rate`
has the rules); their results are only counted in clusters with hosts enough for a comparison. However bad it looks, at most `max_ejection_percent` of the hosts are out at a time, and there is no
implicit "at least one": with the default of 10 % a cluster of nine hosts never loses any, as in Envoy.

With `probation` a host whose time is over stays out and is tried: so many successes in a row bring it back, and a
failure takes it out again at once, for longer. It counts as out all the while.

Source: Envoy, `DetectorImpl`; each rule is quoted by its section of Envoy's "Outlier detection" page.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from meshlib.model.cluster import OutlierDetection
from meshlib.ports import Lock, Rng
from meshlib.resilience.success_rate import Tally, below_success_rate, over_failure_percentage

__all__ = ["Ejection", "EjectionReason", "OutlierDetector", "Trial", "Unejection"]


class EjectionReason(Enum):
    CONSECUTIVE_5XX = "consecutive_5xx"
    CONSECUTIVE_GATEWAY_FAILURE = "consecutive_gateway_failure"
    CONSECUTIVE_LOCAL_ORIGIN_FAILURE = "consecutive_local_origin_failure"
    SUCCESS_RATE = "success_rate"
    LOCAL_ORIGIN_SUCCESS_RATE = "local_origin_success_rate"
    FAILURE_PERCENTAGE = "failure_percentage"
    LOCAL_ORIGIN_FAILURE_PERCENTAGE = "local_origin_failure_percentage"
    PROBATION = "probation"


@dataclass(frozen=True, slots=True)
class Ejection:
    """A host is to be taken out.

    Attributes:
        ejection_time_s: At least this long; it ends with a sweep.
    """

    address: str
    reason: EjectionReason
    ejection_time_s: float


@dataclass(frozen=True, slots=True)
class Unejection:
    """A host is to come back."""

    address: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A host's time is over, and it is to be tried."""

    address: str


class _Host:
    """Counters of one host.

    Attributes:
        external: What the peer answered, in this interval; without the split all results.
        local: With the split: whether it could be reached.
        multiplier: Of the ejection time.
        ejected_at: None: it is in.
        unejected_at: When it came back last.
        to_prove: Successes that it needs to come back; 0: it is not on probation.
    """

    __slots__ = (
        "consecutive_5xx",
        "consecutive_gateway",
        "consecutive_local",
        "ejected_at",
        "external",
        "jitter_s",
        "local",
        "multiplier",
        "to_prove",
        "unejected_at",
    )

    def __init__(self) -> None:
        self.external = Tally()
        self.local = Tally()
        self.consecutive_5xx = 0
        self.consecutive_gateway = 0
        self.consecutive_local = 0
        self.multiplier = 0
        self.ejected_at: float | None = None
        self.jitter_s = 0.0
        self.unejected_at: float | None = None
        self.to_prove = 0


class OutlierDetector:
    """The detector of one cluster. Any thread may record; the lock guards the counters.

    Attributes:
        config: Swapped by `update`.
        ejections_active: Hosts that are out or on probation; at most `max_ejection_percent` of all.
        ejections_overflow: Ejections refused because of that limit.
        ejections_detected: Detections, enforced or not.
    """

    __slots__ = (
        "_compares",
        "_hosts",
        "_lock",
        "_swept_at",
        "config",
        "ejections_active",
        "ejections_detected",
        "ejections_overflow",
    )

    def __init__(self, config: OutlierDetection, addresses: Iterable[str], now: float) -> None:
        self.config = config
        self._lock = Lock()
        self._hosts = {address: _Host() for address in addresses}
        self._compares = self._has_enough()
        self._swept_at = now
        self.ejections_active = 0
        self.ejections_overflow = 0
        self.ejections_detected = 0

    def update(self, config: OutlierDetection, addresses: Iterable[str], anew: Collection[str] = ()) -> None:
        """Take over a configuration and the hosts; those that stay keep their counters, others start fresh.

        Args:
            anew: Start fresh though they are known.
        """
        with self._lock:
            self.config = config
            known = self._hosts if not anew else {key: host for key, host in self._hosts.items() if key not in anew}
            self._hosts = {address: known.get(address) or _Host() for address in addresses}
            self._compares = self._has_enough()
            self.ejections_active = sum(host.ejected_at is not None for host in self._hosts.values())

    def _has_enough(self) -> bool:
        """Whether there are hosts enough for either comparison."""
        config = self.config
        return len(self._hosts) >= min(config.success_rate_minimum_hosts, config.failure_percentage_minimum_hosts)

    def is_ejected(self, address: str) -> bool:
        """Whether a host is out."""
        host = self._hosts.get(address)
        return host is not None and host.ejected_at is not None

    def is_on_probation(self, address: str) -> bool:
        """Whether a host is out and tried."""
        host = self._hosts.get(address)
        return host is not None and host.to_prove > 0

    def record_code(self, address: str, code: int, now: float, rng: Rng) -> Ejection | Unejection | None:
        """Count a response, or what stands for one.

        Args:
            code: HTTP status, or its equivalent.

        Returns:
            The host's ejection, decided and noted, or its return from probation; the caller carries it out.
        """
        host = self._hosts.get(address)
        if host is None:
            return None
        if self._compares:
            with self._lock:
                host.external.total += 1
                host.external.succeeded += code < 500
        if host.ejected_at is not None:
            # "Already ejected hosts are ignored."
            return self._tried(address, host, now, rng, is_success=code < 500) if host.to_prove else None
        if code < 500:
            # The usual case of a small cluster takes no lock: resets are plain assignments.
            if host.consecutive_5xx or host.consecutive_gateway:
                host.consecutive_5xx = 0
                host.consecutive_gateway = 0
            return None
        config, ejection = self.config, None
        with self._lock:
            if code in (502, 503, 504):
                host.consecutive_gateway += 1
                if host.consecutive_gateway == config.consecutive_gateway_failure:
                    host.consecutive_gateway = 0
                    ejection = self._detect(
                        address,
                        host,
                        EjectionReason.CONSECUTIVE_GATEWAY_FAILURE,
                        config.enforcing_consecutive_gateway_failure,
                        now,
                        rng,
                    )
            else:
                host.consecutive_gateway = 0
            host.consecutive_5xx += 1
            if host.consecutive_5xx == config.consecutive_5xx:
                host.consecutive_5xx = 0
                ejection = ejection or self._detect(
                    address, host, EjectionReason.CONSECUTIVE_5XX, config.enforcing_consecutive_5xx, now, rng
                )
        return ejection

    def record_local_failure(self, address: str, code: int, now: float, rng: Rng) -> Ejection | Unejection | None:
        """Count a failure on our side: no connection, a reset, a timeout.

        Args:
            code: What stands for it when local errors are not split from the others.
        """
        config = self.config
        if not config.split_external_local_origin_errors:
            return self.record_code(address, code, now, rng)
        host = self._hosts.get(address)
        if host is None:
            return None
        if host.to_prove:
            return self._tried(address, host, now, rng, is_success=False)
        with self._lock:
            host.local.total += 1
            if host.ejected_at is not None:
                return None
            host.consecutive_local += 1
            if host.consecutive_local != config.consecutive_local_origin_failure:
                return None
            host.consecutive_local = 0
            return self._detect(
                address,
                host,
                EjectionReason.CONSECUTIVE_LOCAL_ORIGIN_FAILURE,
                config.enforcing_consecutive_local_origin_failure,
                now,
                rng,
            )

    def record_connected(self, address: str) -> None:
        """Note that a connection worked: ends a run of local failures. Without the split it means nothing."""
        if not self.config.split_external_local_origin_errors:
            return
        host = self._hosts.get(address)
        if host is not None:
            with self._lock:
                host.local.total += 1
                host.local.succeeded += 1
                host.consecutive_local = 0

    def _tried(
        self, address: str, host: _Host, now: float, rng: Rng, *, is_success: bool
    ) -> Ejection | Unejection | None:
        """Count a result of a host on probation."""
        with self._lock:
            if not host.to_prove:
                return None  # another result has decided
            if not is_success:
                return self._take_out(address, host, EjectionReason.PROBATION, now, rng)
            host.to_prove -= 1
            if host.to_prove:
                return None
            self._bring_back(host, now)
            return Unejection(address)

    def _detect(
        self, address: str, host: _Host, reason: EjectionReason, enforcing_percent: int, now: float, rng: Rng
    ) -> Ejection | None:
        """Decide on an ejection. The lock is held."""
        config = self.config
        if host.ejected_at is not None:
            return None
        self.ejections_detected += 1
        percent = 100 * (self.ejections_active + 1) / len(self._hosts)
        if percent > config.max_ejection_percent and not (config.always_eject_one_host and self.ejections_active == 0):
            self.ejections_overflow += 1
            return None
        if enforcing_percent < 100 and rng.random() * 100 >= enforcing_percent:
            return None
        self.ejections_active += 1
        return self._take_out(address, host, reason, now, rng)

    def _take_out(self, address: str, host: _Host, reason: EjectionReason, now: float, rng: Rng) -> Ejection:
        """The lock is held."""
        config = self.config
        host.ejected_at = now
        host.to_prove = 0
        base_s, max_s = config.base_ejection_time_s, self._max_s()
        if host.multiplier * base_s < max_s + base_s:
            host.multiplier += 1
        # Whole milliseconds, both ends included.
        host.jitter_s = int(rng.random() * (config.max_ejection_time_jitter_s * 1000 + 1)) / 1000
        return Ejection(address, reason, self._time_s(host))

    def _max_s(self) -> float:
        return max(self.config.max_ejection_time_s, self.config.base_ejection_time_s)

    def _time_s(self, host: _Host) -> float:
        return min(self.config.base_ejection_time_s * host.multiplier, self._max_s()) + host.jitter_s

    def uneject(self, address: str, now: float) -> bool:
        """Bring a host back before its time: an active health check has passed. False: it is not out."""
        host = self._hosts.get(address)
        with self._lock:
            if host is None or host.ejected_at is None or not self.config.check_unejects:
                return False
            self._bring_back(host, now)
            return True

    def _bring_back(self, host: _Host, now: float) -> None:
        """The lock is held."""
        host.ejected_at = None
        host.to_prove = 0
        host.unejected_at = now
        host.consecutive_5xx = host.consecutive_gateway = host.consecutive_local = 0
        self.ejections_active -= 1

    def sweep(self, now: float, rng: Rng) -> "tuple[Unejection | Ejection | Trial, ...]":
        """Close the interval when it is over: bring back hosts whose time is over, take out those that compare badly.

        Hosts that behaved are forgiven a step.

        Args:
            now: Not before the previous call's.

        Returns:
            The changes, in the order decided; nothing before the interval is over.
        """
        if now - self._swept_at < self.config.interval_s:
            return ()
        with self._lock:
            self._swept_at = now
            changes: list[Unejection | Ejection | Trial] = []
            probation = self.config.probation
            for address, host in self._hosts.items():
                if host.ejected_at is None or now - host.ejected_at < self._time_s(host):
                    continue
                if probation is None:
                    self._bring_back(host, now)
                    changes.append(Unejection(address))
                elif not host.to_prove:
                    host.to_prove = probation.successes
                    changes.append(Trial(address))
            changes += self._compare(now, rng)
            for host in self._hosts.values():
                if (
                    host.multiplier
                    and host.ejected_at is None
                    and host.unejected_at is not None
                    and now - host.unejected_at >= self.config.interval_s
                ):
                    host.multiplier -= 1
        return tuple(changes)

    def _compare(self, now: float, rng: Rng) -> list[Ejection]:
        """Take out who stands out by the results of the interval, and begin to count anew. The lock is held."""
        config = self.config
        external, local = [], []
        for address, host in self._hosts.items():
            if host.ejected_at is None:
                external.append((address, host.external))
                local.append((address, host.local))
            # New tallies: those at hand are still to be read.
            host.external, host.local = Tally(), Tally()
        if not self._compares:
            return []
        rules = (
            (below_success_rate, external, EjectionReason.SUCCESS_RATE, config.enforcing_success_rate),
            (over_failure_percentage, external, EjectionReason.FAILURE_PERCENTAGE, config.enforcing_failure_percentage),
            (
                below_success_rate,
                local,
                EjectionReason.LOCAL_ORIGIN_SUCCESS_RATE,
                config.enforcing_local_origin_success_rate,
            ),
            (
                over_failure_percentage,
                local,
                EjectionReason.LOCAL_ORIGIN_FAILURE_PERCENTAGE,
                config.enforcing_failure_percentage_local_origin,
            ),
        )
        found = (
            self._detect(address, self._hosts[address], reason, enforcing, now, rng)
            for outliers, tallies, reason, enforcing in rules
            for address in outliers(tallies, config)
        )
        return [ejection for ejection in found if ejection is not None]
