"""Outlier detection of gRPC calls: hosts are compared when an interval ends, and at no other time.

A call that ended with OK is a success, any other a failure, whoever ended it; one that never got a connection is none of
the host's. At the end of an interval two rules are applied, each if it is on: *success rate* takes out who is below the
mean by more than so many standard deviations, *failure percentage* whose share of failures is more than a number. Then who
behaved is forgiven a step, and who has been out for long enough comes back. The ceiling is looked at before each ejection,
so it may be passed by one host: with one that is more than 0 there is always one that can go.

With `probation` a host whose time is over is tried first, as in `meshlib.resilience.outlier`.

Source: gRFC A50, "Outlier Detection Behavior"; the counts are per endpoint (A61).
"""

from collections.abc import Iterable

from meshlib.model.cluster import OutlierDetection
from meshlib.ports import Lock, Rng
from meshlib.resilience.outlier import Ejection, EjectionReason, Trial, Unejection
from meshlib.resilience.success_rate import Tally, success_rate_threshold

__all__ = ["IntervalDetector", "compares_grpc_calls"]


def compares_grpc_calls(config: OutlierDetection | None) -> bool:
    """Whether either rule is on. What is not set of `enforcing_success_rate` is 100: that rule is on then."""
    return config is not None and (config.enforcing_success_rate > 0 or config.enforcing_failure_percentage > 0)


class _Host:
    """What is known of one host.

    Attributes:
        tally: Of the interval that runs.
        multiplier: Of the ejection time.
        ejected_at: None: it is in.
        to_prove: Successes that it needs to come back; 0: it is not on probation.
    """

    __slots__ = ("ejected_at", "multiplier", "tally", "to_prove")

    def __init__(self) -> None:
        self.tally = Tally()
        self.multiplier = 0
        self.ejected_at: float | None = None
        self.to_prove = 0


class IntervalDetector:
    """The detector of one cluster's gRPC calls. Any thread may record; the lock guards the counters.

    Attributes:
        config: Swapped by `update`.
        ejections_active: Hosts that are out or on probation.
    """

    __slots__ = ("_compares", "_hosts", "_lock", "_swept_at", "config", "ejections_active")

    def __init__(self, config: OutlierDetection, addresses: Iterable[str], now: float) -> None:
        self.config = config
        self.ejections_active = 0
        self._lock = Lock()
        self._hosts = {address: _Host() for address in addresses}
        self._compares = self._has_enough()
        self._swept_at = now

    def update(self, config: OutlierDetection, addresses: Iterable[str]) -> None:
        """Take over a configuration and the hosts; those that stay keep what is known of them, the interval goes on."""
        with self._lock:
            self.config = config
            self._hosts = {address: self._hosts.get(address) or _Host() for address in addresses}
            self._compares = self._has_enough()
            self.ejections_active = sum(host.ejected_at is not None for host in self._hosts.values())

    def _has_enough(self) -> bool:
        """Whether there are hosts enough for a rule that is on."""
        config, count = self.config, len(self._hosts)
        return (config.enforcing_success_rate > 0 and count >= config.success_rate_minimum_hosts) or (
            config.enforcing_failure_percentage > 0 and count >= config.failure_percentage_minimum_hosts
        )

    def is_ejected(self, address: str) -> bool:
        """Whether a host is out."""
        host = self._hosts.get(address)
        return host is not None and host.ejected_at is not None

    def is_on_probation(self, address: str) -> bool:
        """Whether a host is out and tried."""
        host = self._hosts.get(address)
        return host is not None and host.to_prove > 0

    def record(self, address: str, now: float, *, is_success: bool) -> Ejection | Unejection | None:
        """Count a call.

        Returns:
            What it decides for a host on probation; the caller carries it out.
        """
        host = self._hosts.get(address)
        if host is None or not (self._compares or host.to_prove):
            return None  # the usual case of a small cluster takes no lock
        with self._lock:
            host.tally.total += 1
            host.tally.succeeded += is_success
            if not host.to_prove:
                return None
            if not is_success:
                return self._eject(address, host, EjectionReason.PROBATION, now)
            host.to_prove -= 1
            if host.to_prove:
                return None
            self._bring_back(host)
            return Unejection(address)

    def uneject(self, address: str, now: float) -> bool:
        """Bring a host back before its time: an active health check has passed. False: it is not out."""
        host = self._hosts.get(address)
        with self._lock:
            if host is None or host.ejected_at is None or not self.config.check_unejects:
                return False
            self._bring_back(host)
            return True

    def sweep(self, now: float, rng: Rng) -> tuple[Unejection | Ejection | Trial, ...]:
        """Close the interval when it is over.

        Args:
            now: Not before the previous call's.

        Returns:
            The changes, in the order decided; nothing before the interval is over.
        """
        config = self.config
        if now - self._swept_at < config.interval_s:
            return ()
        with self._lock:
            self._swept_at = now
            tallies = {address: host.tally for address, host in self._hosts.items()}
            for host in self._hosts.values():
                host.tally = Tally()
            changes: list[Unejection | Ejection | Trial] = []
            changes += self._by_success_rate(tallies, now, rng)
            changes += self._by_failure_percentage(tallies, now, rng)
            for address, host in self._hosts.items():
                if host.ejected_at is None:
                    host.multiplier = max(0, host.multiplier - 1)
                elif now > host.ejected_at + self._time_s(host):
                    if config.probation is None:
                        self._bring_back(host)
                        changes.append(Unejection(address))
                    elif not host.to_prove:
                        host.to_prove = config.probation.successes
                        changes.append(Trial(address))
        return tuple(changes)

    # --- the lock is held ----------------------------------------------------------------------------------------

    def _by_success_rate(self, tallies: dict[str, Tally], now: float, rng: Rng) -> list[Ejection]:
        config = self.config
        rates = _rates(tallies, config.success_rate_request_volume)
        if not config.enforcing_success_rate or not rates or len(rates) < config.success_rate_minimum_hosts:
            return []
        required = success_rate_threshold(list(rates.values()), config.success_rate_stdev_factor)
        found = [address for address, rate in rates.items() if rate < required]
        return self._enforce(found, EjectionReason.SUCCESS_RATE, config.enforcing_success_rate, now, rng)

    def _by_failure_percentage(self, tallies: dict[str, Tally], now: float, rng: Rng) -> list[Ejection]:
        config = self.config
        rates = _rates(tallies, config.failure_percentage_request_volume)
        enforcing = config.enforcing_failure_percentage
        if not enforcing or not rates or len(rates) < config.failure_percentage_minimum_hosts:
            return []
        found = [address for address, rate in rates.items() if 100.0 - rate > config.failure_percentage_threshold]
        return self._enforce(found, EjectionReason.FAILURE_PERCENTAGE, enforcing, now, rng)

    def _enforce(
        self, addresses: list[str], reason: EjectionReason, enforcing_percent: int, now: float, rng: Rng
    ) -> list[Ejection]:
        ejections = []
        for address in addresses:
            # "If the percentage of ejected addresses is greater than or equal to max_ejection_percent, stop."
            if 100 * self.ejections_active >= self.config.max_ejection_percent * len(self._hosts):
                break
            if rng.random() * 100 < enforcing_percent:
                ejections.append(self._eject(address, self._hosts[address], reason, now))
        return ejections

    def _eject(self, address: str, host: _Host, reason: EjectionReason, now: float) -> Ejection:
        self.ejections_active += host.ejected_at is None
        host.ejected_at = now
        host.to_prove = 0
        host.multiplier += 1
        return Ejection(address, reason, self._time_s(host))

    def _bring_back(self, host: _Host) -> None:
        host.ejected_at = None
        host.to_prove = 0
        self.ejections_active -= 1

    def _time_s(self, host: _Host) -> float:
        config = self.config
        longest_s = max(config.max_ejection_time_s, config.base_ejection_time_s)
        return min(config.base_ejection_time_s * host.multiplier, longest_s)


def _rates(tallies: dict[str, Tally], volume: int) -> dict[str, float]:
    """Return the share of successes, 0-100, of the hosts with so many calls."""
    return {address: tally.rate for address, tally in tallies.items() if tally.total >= max(volume, 1)}
