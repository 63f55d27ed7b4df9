"""The two detectors of a cluster, for HTTP requests and for gRPC calls, and what both together make of an endpoint.

Each hears of the calls of its profile alone and decides by its peer's rules. An endpoint that either has taken out is out
for all calls: there is one picker.
"""

from collections.abc import Collection, Iterable
from typing import TypeAlias

from meshlib.model.cluster import OutlierDetection
from meshlib.model.outcome import NOT_REACHED, Outcome, Response
from meshlib.ports import Rng
from meshlib.resilience.classify import failure_code, http_code
from meshlib.resilience.interval_outlier import IntervalDetector, compares_grpc_calls
from meshlib.resilience.outlier import Ejection, OutlierDetector, Unejection

__all__ = ["Detectors", "next_detectors", "record_grpc", "record_http", "verdict"]

Detectors: TypeAlias = tuple[OutlierDetector | None, IntervalDetector | None]


def next_detectors(
    before: Detectors, config: OutlierDetection | None, addresses: Iterable[str], now: float, anew: Collection[str] = ()
) -> Detectors:
    """Return the detectors of a configuration; those that stay keep what they know.

    Args:
        anew: Hosts that Envoy takes for other ones than before, though their addresses are the same; gRPC does not.
    """
    http, grpc = before
    if config is None:
        return None, None
    if http is None:
        http = OutlierDetector(config, addresses, now)
    else:
        http.update(config, addresses, anew)
    if not compares_grpc_calls(config):
        grpc = None
    elif grpc is None:
        grpc = IntervalDetector(config, addresses, now)
    else:
        grpc.update(config, addresses)
    return http, grpc


def verdict(detectors: Detectors, address: str) -> tuple[bool, bool]:
    """Return whether an endpoint is out, and whether it is tried meanwhile: by all who have taken it out."""
    ejecting = [found for found in detectors if found is not None and found.is_ejected(address)]
    return bool(ejecting), bool(ejecting) and all(found.is_on_probation(address) for found in ejecting)


def record_http(
    detector: OutlierDetector, address: str, outcome: Outcome, now: float, rng: Rng
) -> Ejection | Unejection | None:
    """Count the outcome of an attempt."""
    if not isinstance(outcome, Response):
        return detector.record_local_failure(address, failure_code(outcome), now, rng)
    if detector.config.split_external_local_origin_errors:
        detector.record_connected(address)
    return detector.record_code(address, http_code(outcome), now, rng)


def record_grpc(detector: IntervalDetector, address: str, outcome: Outcome, now: float) -> Ejection | Unejection | None:
    """Count the end of a gRPC call; in gRPC none begins without a connection."""
    if isinstance(outcome, Response):
        return detector.record(address, now, is_success=outcome.grpc_status == 0)
    return None if outcome.kind in NOT_REACHED else detector.record(address, now, is_success=False)
