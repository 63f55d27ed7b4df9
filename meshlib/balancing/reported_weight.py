"""What load reports say about the weight of a host: requests per second by utilisation.

A weight counts only some time after the first report of an unbroken series (the blackout: a host that has just started
reports what means little), and is forgotten some time after the last.

gRPC and Envoy differ in two small things, which this file decides by the profile of the calls: what an error penalty is
that is not set, and which weight a host has that has no usable one (see `fill_weights`).

Source: gRFC A58, A114; Envoy, `OrcaWeightManager`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median

from meshlib.model.lb_policy import ClientSideWeightedRoundRobin
from meshlib.model.load_report import LoadReport

__all__ = ["ReportedWeight", "fill_weights", "next_weight", "usable_weight", "utilization"]

GRPC_PENALTY = 1.0
HTTP_PENALTY = 0.0
MAX_WEIGHT = float(2**32 - 1)


@dataclass(frozen=True, slots=True)
class ReportedWeight:
    """Attributes:
    last_at: Monotonic seconds of the last report that had a weight, and
    since: of the first one of the series.
    """

    weight: float
    last_at: float
    since: float


def utilization(report: LoadReport, metrics: Sequence[str]) -> float:
    """Return the greatest of the named metrics, else the application's utilisation, else that of the CPU."""
    named = [value for metric in metrics if (value := report.value(metric)) > 0]
    if named:
        return max(named)
    return report.application_utilization if report.application_utilization > 0 else report.cpu_utilization


def next_weight(
    before: ReportedWeight | None,
    report: LoadReport,
    config: ClientSideWeightedRoundRobin,
    now: float,
    *,
    is_grpc: bool,
) -> ReportedWeight | None:
    """Return what is known of a host after a report; one that gives no weight changes nothing."""
    used, qps = utilization(report, config.metrics), report.qps
    if not qps > 0:
        return before
    penalty = config.error_penalty
    if penalty is None:
        penalty = GRPC_PENALTY if is_grpc else HTTP_PENALTY
    if used > 0 or not is_grpc:
        # A58: only a host that reports a utilisation pays for errors; Envoy takes errors alone for one.
        used += report.eps / qps * penalty
    if not used > 0:
        return before
    weight = min(qps / used, MAX_WEIGHT)
    if not is_grpc:
        weight = float(max(1, int(weight)))  # as seen with Envoy 1.40: what is less than 1 counts as 1
    if not weight > 0 or not isfinite(weight):
        return before
    is_new = before is None or now - before.last_at >= config.expiration_s
    return ReportedWeight(weight, now, now if before is None or is_new else before.since)


def usable_weight(known: ReportedWeight | None, config: ClientSideWeightedRoundRobin, now: float) -> float:
    """Return a host's weight; 0.0: it has none that may be used now."""
    if known is None or now - known.last_at >= config.expiration_s:
        return 0.0
    if config.blackout_s > 0 and now - known.since < config.blackout_s:
        return 0.0
    return known.weight


def fill_weights(weights: Sequence[float], *, is_grpc: bool) -> list[float] | None:
    """Give each host without a usable weight one: the mean of the others in gRPC, the median in Envoy.

    Returns:
        None: nobody has one.
    """
    known = [weight for weight in weights if weight > 0]
    if not known:
        return None
    common = sum(known) / len(known) if is_grpc else float(median(known))
    return [weight if weight > 0 else common for weight in weights]
