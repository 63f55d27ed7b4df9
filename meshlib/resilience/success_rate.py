"""Which hosts of a cluster stand out by how many of their requests succeed in one interval.

Two rules. *Success rate* compares a host with the others: it stands out when its rate is below the mean by more than
`success_rate_stdev_factor` thousandths of the standard deviation. *Failure percentage* compares it with a fixed
number. Each needs a minimum of hosts with a minimum of requests: a rate of few requests says nothing.

Source: Envoy, `DetectorImpl::processSuccessRateEjections`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from meshlib.model.cluster import OutlierDetection

__all__ = ["Tally", "below_success_rate", "over_failure_percentage", "success_rate_threshold"]


@dataclass(slots=True)
class Tally:
    """The results of one host in one interval; changed as they come in."""

    total: int = 0
    succeeded: int = 0

    @property
    def rate(self) -> float:
        """Share of successes, 0-100; there must have been a result."""
        return 100.0 * self.succeeded / self.total


def success_rate_threshold(rates: Sequence[float], factor: int) -> float:
    """Return the rate below which a host stands out: the mean less `factor` thousandths of the standard deviation.

    Args:
        rates: 0-100; at least one.
        factor: `success_rate_stdev_factor`.
    """
    mean = sum(rates) / len(rates)
    variance = sum((rate - mean) ** 2 for rate in rates) / len(rates)
    return mean - sqrt(variance) * factor / 1000


def below_success_rate(tallies: Sequence[tuple[str, Tally]], config: OutlierDetection) -> tuple[str, ...]:
    """Return the hosts whose rate is below what the others make one expect, in the order given.

    Args:
        tallies: By address, of hosts that are not ejected.
    """
    volume = max(config.success_rate_request_volume, 1)
    rated = [(address, tally.rate) for address, tally in tallies if tally.total >= volume]
    if not rated or len(rated) < config.success_rate_minimum_hosts:
        return ()
    threshold = success_rate_threshold([rate for _, rate in rated], config.success_rate_stdev_factor)
    return tuple(address for address, rate in rated if rate < threshold)


def over_failure_percentage(tallies: Sequence[tuple[str, Tally]], config: OutlierDetection) -> tuple[str, ...]:
    """Return the hosts whose share of failures reaches `failure_percentage_threshold`, in the order given.

    Args:
        tallies: By address, of hosts that are not ejected.
    """
    volume = max(config.failure_percentage_request_volume, 1)
    rated = [(address, tally.rate) for address, tally in tallies if tally.total >= volume]
    if not rated or len(rated) < config.failure_percentage_minimum_hosts:
        return ()
    return tuple(address for address, rate in rated if 100.0 - rate >= config.failure_percentage_threshold)
