"""OpenTelemetry: the standard metrics of a mesh as observable instruments.

    meshlib.integrations.opentelemetry.export_metrics(mesh)

Only the API is used: with an SDK's meter provider in place the numbers go wherever its readers send them, without one
nothing happens. Nothing is recorded on a request's path; callbacks read what the mesh has aggregated. Spans need no
call at all: clients and servers make them with the global tracer provider.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from meshlib.admin.certificates import CERTIFICATE_EXPIRY, CERTIFICATE_EXPIRY_HELP, CERTIFICATE_LABELS
from meshlib.admin.metrics import LABELS

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["export_metrics"]


def export_metrics(mesh: "Mesh", *, meter: Meter | None = None) -> None:
    """Register observable counters for a mesh's metrics.

    OpenTelemetry has no observable histogram, so the duration comes as Prometheus spells one: `_bucket` with the
    attribute `le`, `_sum` and `_count`.

    Args:
        mesh: Whose metrics.
        meter: Default: `meshlib` of the global meter provider.
    """
    meter = meter or metrics.get_meter("meshlib")
    standard = mesh.metrics
    bounds = [str(float(bound)) for bound in standard.buckets_ms] + ["+Inf"]

    def attributes(labels: tuple[str, ...]) -> dict[str, str]:
        return dict(zip(LABELS, labels, strict=True))

    def requests(options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sample.count, attributes(sample.labels)) for sample in standard.requests()]

    def sums(options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sample.sum_ms, attributes(sample.labels)) for sample in standard.requests()]

    def buckets(options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {**attributes(sample.labels), "le": bound})
            for sample in standard.requests()
            for bound, count in zip(bounds, accumulate(sample.buckets), strict=True)
        ]

    def pairs(
        counts: Callable[[], Mapping[tuple[str, str], int]], second: str
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(count, {"cluster": key[0], second: key[1]}) for key, count in counts().items()]

        return observe

    def expiries(options: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(one.expires_at, {label: getattr(one, label) for label in CERTIFICATE_LABELS})
            for one in mesh.certificates()
            if one.expires_at is not None
        ]

    meter.create_observable_gauge(CERTIFICATE_EXPIRY, [expiries], "s", CERTIFICATE_EXPIRY_HELP)
    meter.create_observable_counter(
        "istio_requests_total", [requests], "{request}", "Requests by source and destination."
    )
    name = "istio_request_duration_milliseconds"
    meter.create_observable_counter(f"{name}_count", [requests], "{request}", "Requests.")
    meter.create_observable_counter(f"{name}_sum", [sums], "ms", "Sum of their durations.")
    meter.create_observable_counter(f"{name}_bucket", [buckets], "{request}", "Requests that took at most `le` ms.")
    meter.create_observable_counter(
        "meshlib_attempts_total", [pairs(standard.attempts, "outcome")], "{attempt}", "Attempts by outcome."
    )
    meter.create_observable_counter(
        "meshlib_ejections_total", [pairs(standard.ejections, "reason")], "{ejection}", "Ejections."
    )
    meter.create_observable_counter(
        "meshlib_mirrored_total", [pairs(standard.mirrored, "outcome")], "{request}", "Copies of requests to mirrors."
    )
