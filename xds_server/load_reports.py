"""How much load clients report, kept per cluster, locality and client: totals, and the last reports of each (LRS-2)."""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

RECENT = 60
"""Reports kept per entry: ten minutes at the default interval."""

# Clients choose the names, so their number is bounded; the entry that was not reported on for longest goes first.
MAX_ENTRIES = 20_000
MAX_NAMES = 64


class Locality(NamedTuple):
    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True)
class LocalityLoad:
    """Requests to one locality since the report before.

    Attributes:
        in_progress: Now; the only one that is not a difference.
        metrics: By name: how many requests reported it, and the sum of what they reported.
    """

    locality: Locality
    priority: int = 0
    succeeded: int = 0
    failed: int = 0
    issued: int = 0
    in_progress: int = 0
    metrics: Mapping[str, tuple[int, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClusterLoad:
    """A client's report on one cluster.

    Attributes:
        service: Name of the endpoints' resource, if it is another than the cluster's.
        interval_s: Seconds that it covers.
        dropped: Requests that were dropped on purpose, by category; without one under the empty name.
    """

    cluster: str
    service: str = ""
    interval_s: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)
    localities: tuple[LocalityLoad, ...] = ()


class _Sample(NamedTuple):
    at: float
    interval_s: float
    succeeded: int
    failed: int
    issued: int


@dataclass(slots=True)
class _Entry:
    """Attributes:
    in_progress: By stream; a client may have several for a while.
    """

    succeeded: int = 0
    failed: int = 0
    issued: int = 0
    in_progress: dict[object, int] = field(default_factory=dict)
    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)
    recent: deque[_Sample] = field(default_factory=lambda: deque(maxlen=RECENT))


class _Key(NamedTuple):
    cluster: str
    service: str
    node_id: str
    locality: Locality
    priority: int


class LoadReports:
    """The reports of all clients. `now` is monotonic seconds throughout."""

    def __init__(self) -> None:
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._dropped: OrderedDict[tuple[str, str, str], Counter[str]] = OrderedDict()

    def record(self, node_id: str, stream: object, loads: Iterable[ClusterLoad], now: float) -> None:
        """Add a report to what is known.

        Args:
            stream: Whom the requests in progress are counted for, until `closed`.
        """
        for load in loads:
            if load.dropped:
                self._record_dropped((load.cluster, load.service, node_id), load.dropped)
            for each in load.localities:
                key = _Key(load.cluster, load.service, node_id, each.locality, each.priority)
                entry = self._entries.setdefault(key, _Entry())
                self._entries.move_to_end(key)
                entry.succeeded += each.succeeded
                entry.failed += each.failed
                entry.issued += each.issued
                entry.in_progress[stream] = each.in_progress
                for name, (count, total) in each.metrics.items():
                    if name in entry.metrics or len(entry.metrics) < MAX_NAMES:
                        before = entry.metrics.get(name, (0, 0.0))
                        entry.metrics[name] = before[0] + count, before[1] + total
                entry.recent.append(_Sample(now, load.interval_s, each.succeeded, each.failed, each.issued))
        while len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def closed(self, stream: object) -> None:
        """A stream has ended: nobody can say any more what is in progress there. What was counted stays."""
        for entry in self._entries.values():
            entry.in_progress.pop(stream, None)

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Return everything as JSON data, by cluster and client."""
        found: dict[tuple[str, str, str], dict[str, Any]] = {}

        def client(cluster: str, service: str, node_id: str) -> dict[str, Any]:
            return found.setdefault(
                (cluster, service, node_id),
                {"cluster": cluster, "service": service, "node_id": node_id, "dropped": {}, "localities": []},
            )

        for key, entry in self._entries.items():
            client(*key[:3])["localities"].append(_entry_data(key, entry, now))
        for names, dropped in self._dropped.items():
            client(*names)["dropped"] = dict(sorted(dropped.items()))
        for data in found.values():
            data["localities"].sort(key=lambda each: (each["priority"], each["region"], each["zone"], each["sub_zone"]))
        return [found[names] for names in sorted(found)]

    def _record_dropped(self, names: tuple[str, str, str], dropped: Mapping[str, int]) -> None:
        known = self._dropped.setdefault(names, Counter())
        self._dropped.move_to_end(names)
        for category, count in dropped.items():
            if category in known or len(known) < MAX_NAMES:
                known[category] += count
        while len(self._dropped) > MAX_ENTRIES:
            self._dropped.popitem(last=False)


def _entry_data(key: _Key, entry: _Entry, now: float) -> dict[str, Any]:
    return {
        **key.locality._asdict(),
        "priority": key.priority,
        "succeeded": entry.succeeded,
        "failed": entry.failed,
        "issued": entry.issued,
        "in_progress": sum(entry.in_progress.values()),
        "metrics": {
            name: {"requests": count, "total": total} for name, (count, total) in sorted(entry.metrics.items())
        },
        "recent": [
            {
                "s_ago": round(now - sample.at, 3),
                "interval_s": sample.interval_s,
                "succeeded": sample.succeeded,
                "failed": sample.failed,
                "issued": sample.issued,
            }
            for sample in entry.recent
        ],
    }
