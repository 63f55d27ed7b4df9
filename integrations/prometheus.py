"""Prometheus: the standard metrics of a mesh at `/metrics`.

meshlib.integrations.prometheus.serve(mesh, port=15020)             # a server of its own, on loopback
registry.register(meshlib.integrations.prometheus.MeshCollector(mesh))   # or beside the application's own metrics
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshlib.admin.certificates import CERTIFICATE_EXPIRY, CERTIFICATE_EXPIRY_HELP, CERTIFICATE_LABELS
from meshlib.admin.metrics import LABELS, StandardMetrics

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["MeshCollector", "MetricsServer", "serve"]


class MeshCollector(Collector):
    """Hands the metrics of a mesh to a Prometheus registry."""

    def __init__(self, mesh: "Mesh") -> None:
        self._mesh = mesh
        self._metrics: StandardMetrics = mesh.metrics

    def collect(self) -> Iterator[Metric]:
        """Return the metric families, as of now."""
        total = CounterMetricFamily("istio_requests_total", "Requests by source and destination.", labels=LABELS)
        duration = HistogramMetricFamily("istio_request_duration_milliseconds", "Duration of requests.", labels=LABELS)
        bounds = [str(float(bound)) for bound in self._metrics.buckets_ms] + ["+Inf"]
        for sample in self._metrics.requests():
            total.add_metric(sample.labels, sample.count)
            cumulated, buckets = 0, []
            for bound, count in zip(bounds, sample.buckets, strict=True):
                cumulated += count
                buckets.append((bound, cumulated))
            duration.add_metric(sample.labels, buckets, sample.sum_ms)
        yield total
        yield duration
        attempts = CounterMetricFamily("meshlib_attempts_total", "Attempts by outcome.", labels=("cluster", "outcome"))
        for (cluster, outcome), number in self._metrics.attempts().items():
            attempts.add_metric((cluster, outcome), number)
        yield attempts
        ejections = CounterMetricFamily(
            "meshlib_ejections_total", "Ejections by outlier detection.", labels=("cluster", "reason")
        )
        for (cluster, reason), number in self._metrics.ejections().items():
            ejections.add_metric((cluster, reason), number)
        yield ejections
        mirrored = CounterMetricFamily(
            "meshlib_mirrored_total", "Copies of requests to mirrors, by outcome.", labels=("cluster", "outcome")
        )
        for (cluster, outcome), number in self._metrics.mirrored().items():
            mirrored.add_metric((cluster, outcome), number)
        yield mirrored
        expiry = GaugeMetricFamily(CERTIFICATE_EXPIRY, CERTIFICATE_EXPIRY_HELP, labels=CERTIFICATE_LABELS)
        for certificate in self._mesh.certificates():
            if certificate.expires_at is not None:
                expiry.add_metric([getattr(certificate, label) for label in CERTIFICATE_LABELS], certificate.expires_at)
        yield expiry


class MetricsServer:
    """A running `/metrics` server.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, mesh: "Mesh", host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(MeshCollector(mesh))
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def serve(mesh: "Mesh", *, host: str = "127.0.0.1", port: int = 15020) -> MetricsServer:
    """Serve `/metrics` on a thread of its own.

    Args:
        mesh: Whose metrics.
        host: Loopback by default: metrics tell who talks to whom.
        port: Istio's 15020 by default; 0: a free one.

    Raises:
        OSError: The port is taken.
    """
    return MetricsServer(mesh, host, port)
