"""Counters of the server, in Prometheus' text format on request. No node is named in them (OBS-2)."""

from collections import Counter
from dataclasses import dataclass, field

from xds_server.ordering import PUSH_ORDER, short_name
from xds_server.stream import Response
from xds_server.wire import DeltaRequest, Request


def _kind(type_url: str) -> str:
    """Return a label value; clients choose type URLs, so unknown ones share one."""
    return short_name(type_url) if type_url in PUSH_ORDER else "unknown"


@dataclass(slots=True)
class Statistics:
    """Totals since start, by type where it applies."""

    streams_opened: int = 0
    streams_closed: int = 0
    streams_refused: int = 0
    write_timeouts: int = 0
    publishes: int = 0
    publishes_refused: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    responses: Counter[str] = field(default_factory=Counter)
    response_bytes: Counter[str] = field(default_factory=Counter)

    def received(self, request: Request | DeltaRequest, type_url: str) -> None:
        """Count a request.

        Args:
            type_url: What it is about; on a stream for one type it need not say so itself.
        """
        kind = _kind(type_url)
        self.requests[kind] += 1
        if request.error is not None:
            self.rejections[kind] += 1

    def sent(self, response: Response) -> None:
        kind = _kind(response.type_url)
        self.responses[kind] += 1
        self.response_bytes[kind] += len(response.data)

    def exposition(self) -> str:
        """Return all counters in the text format that Prometheus scrapes."""
        lines: list[str] = []
        plain = {
            "streams_opened": self.streams_opened,
            "streams_closed": self.streams_closed,
            "streams_refused": self.streams_refused,
            "write_timeouts": self.write_timeouts,
            "publishes": self.publishes,
            "publishes_refused": self.publishes_refused,
        }
        for name, value in plain.items():
            lines += [f"# TYPE xds_server_{name}_total counter", f"xds_server_{name}_total {value}"]
        by_type = {
            "requests": self.requests,
            "rejections": self.rejections,
            "responses": self.responses,
            "response_bytes": self.response_bytes,
        }
        for name, counter in by_type.items():
            lines.append(f"# TYPE xds_server_{name}_total counter")
            lines += [f'xds_server_{name}_total{{type="{kind}"}} {count}' for kind, count in sorted(counter.items())]
        return "\n".join(lines) + "\n"
