"""The messages of the load reporting stream, to and from bytes."""

from collections.abc import Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from meshlib.protos import message_class
from meshlib.xds.bootstrap import CLIENT_FEATURES, NodeConfig
from meshlib.xds.load_report import NAMED, UTILIZATIONS, ClusterReport, Demand, LocalityReport

__all__ = ["decode_load_response", "encode_load_hello", "encode_load_reports"]

FEATURES: Final = (*CLIENT_FEATURES, "envoy.lrs.supports_send_all_clusters")
_REQUEST: Final = "envoy.service.load_stats.v3.LoadStatsRequest"
_RESPONSE: Final = "envoy.service.load_stats.v3.LoadStatsResponse"


def encode_load_hello(node: NodeConfig) -> bytes:
    """Return the first message of a stream: who we are, without numbers."""
    message = message_class(_REQUEST)()
    message.node.CopyFrom(node.to_proto(client_features=FEATURES))
    data: bytes = message.SerializeToString()
    return data


def encode_load_reports(reports: Sequence[ClusterReport]) -> bytes:
    """Return a report as bytes."""
    message = message_class(_REQUEST)()
    for report in reports:
        stats = message.cluster_stats.add(
            cluster_name=report.cluster,
            cluster_service_name=report.service,
            total_dropped_requests=report.total_dropped,
        )
        for category, count in report.dropped:
            stats.dropped_requests.add(category=category, dropped_count=count)
        stats.load_report_interval.FromNanoseconds(round(report.interval_s * 1e9))
        for locality in report.localities:
            _add_locality(stats.upstream_locality_stats.add(), locality)
    data: bytes = message.SerializeToString()
    return data


def _add_locality(stats: Any, report: LocalityReport) -> None:
    stats.locality.region = report.locality.region
    stats.locality.zone = report.locality.zone
    stats.locality.sub_zone = report.locality.sub_zone
    stats.total_issued_requests = report.issued
    stats.total_successful_requests = report.succeeded
    stats.total_error_requests = report.failed
    stats.total_requests_in_progress = report.in_progress
    for name, metric in sorted(report.metrics.items()):
        if name in UTILIZATIONS:
            entry = getattr(stats, name)
        elif name.startswith(NAMED):
            entry = stats.load_metric_stats.add(metric_name=name)
        else:
            continue
        entry.num_requests_finished_with_metric = metric.count
        entry.total_metric_value = metric.total


def decode_load_response(data: bytes) -> Demand | None:
    """Read a response; None when the bytes are not one (it is ignored)."""
    try:
        message = message_class(_RESPONSE).FromString(data)
    except DecodeError:
        return None
    interval_s = message.load_reporting_interval.ToNanoseconds() / 1e9
    return Demand(message.send_all_clusters, frozenset(message.clusters), interval_s)
