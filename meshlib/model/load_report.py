"""What a service says about its own load (ORCA, `xds.data.orca.v3.OrcaLoadReport`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["LoadReport"]

NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One report. Numbers that it does not give are 0.

    Attributes:
        cpu_utilization: 1.0 is what the host has; may be more.
        mem_utilization: 0.0-1.0.
        application_utilization: In the service's own measure, 1.0 is full.
        qps: Requests per second, of all clients.
        eps: Errors per second.
        utilization: Of other resources, 0.0-1.0.
        named_metrics: The service's own.
        request_cost: Of the one request.
    """

    cpu_utilization: float = 0.0
    mem_utilization: float = 0.0
    application_utilization: float = 0.0
    qps: float = 0.0
    eps: float = 0.0
    utilization: Mapping[str, float] = field(default_factory=lambda: NOTHING, hash=False)
    named_metrics: Mapping[str, float] = field(default_factory=lambda: NOTHING, hash=False)
    request_cost: Mapping[str, float] = field(default_factory=lambda: NOTHING, hash=False)

    def value(self, metric: str) -> float:
        """Return a metric by its name in configurations: a field's, `named_metrics.<key>` or `utilization.<key>`; or 0."""
        match metric:
            case "cpu_utilization":
                return self.cpu_utilization
            case "mem_utilization":
                return self.mem_utilization
            case "application_utilization":
                return self.application_utilization
        kind, _, key = metric.partition(".")
        if kind == "named_metrics":
            return self.named_metrics.get(key, 0.0)
        return self.utilization.get(key, 0.0) if kind == "utilization" else 0.0
