"""What the demo has measured so far, and how it is shown: a live table, or plain lines without a terminal."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["Board", "Check", "LoadFacts"]


@dataclass(frozen=True, slots=True)
class Check:
    """One assertion and what was seen."""

    claim: str
    held: bool
    seen: str


@dataclass(slots=True)
class LoadFacts:
    """Totals of one load: calls by version, failures, injected delays."""

    versions: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    delayed: int = 0
    early: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return self.versions.total()


class Board:
    """Collects events of the client processes; safe to call from their reader threads."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.acts: list[tuple[str, str]] = []
        self.checks: list[Check] = []
        self.rotations = 0
        self.expires_at = 0.0
        self._lock = threading.Lock()
        self._facts: dict[str, LoadFacts] = {}
        self._latency: dict[tuple[str, str], Counter[int]] = {}
        self._services: dict[tuple[str, str], int] = {}
        self._retries: Counter[tuple[str, str]] = Counter()
        self._ejections: Counter[tuple[str, str]] = Counter()
        self._live: Live | None = None

    # --- collecting

    def on_event(self, event: dict[str, Any]) -> None:
        """Take over one event of a client process."""
        with self._lock:
            if event["event"] == "counts":
                self._count(event)
            elif event["event"] == "mesh":
                self.rotations = event.get("rotations", 0)
                self.expires_at = event.get("expires_at", 0.0)
                self._retries = _by_version(event["retries"])
                self._ejections = _by_version(event["ejections"])
        self.refresh()

    def _count(self, event: dict[str, Any]) -> None:
        facts = self._facts.setdefault(event["name"], LoadFacts())
        facts.versions.update(event["versions"])
        facts.failed += event["failed"]
        facts.delayed += event["delayed"]
        facts.early += event["early"]
        facts.errors += event["errors"]
        service = event["name"].split("/")[0]
        for version, count in event["versions"].items():
            self._services[service, version] = self._services.get((service, version), 0) + count
        for version, buckets in event["latency"].items():
            target = self._latency.setdefault((service, version), Counter())
            target.update({int(bucket): count for bucket, count in buckets.items()})

    def retries(self) -> int:
        """Return the number of repeated attempts so far."""
        with self._lock:
            return self._retries.total()

    def ejections(self) -> int:
        """Return the number of ejections so far."""
        with self._lock:
            return self._ejections.total()

    def facts(self, name: str) -> LoadFacts:
        """Return a copy of what is known of a load."""
        with self._lock:
            facts = self._facts.get(name, LoadFacts())
            return LoadFacts(facts.versions.copy(), facts.failed, facts.delayed, facts.early, list(facts.errors))

    # --- telling

    def begin_act(self, title: str) -> None:
        self.acts.append((title, "running"))
        if self._live is None:
            self.console.print(f"\n{title}", style="bold", highlight=False)
        self.refresh()

    def check(self, claim: str, held: bool, seen: str) -> None:
        """Record an assertion."""
        self.checks.append(Check(claim, held, seen))
        if self._live is None:
            self.console.print(_line(self.checks[-1]))
        self.refresh()

    def note(self, text: str) -> None:
        if self._live is None:
            self.console.print(f"     {text}", style="dim", highlight=False)
        else:
            self._live.console.print(f"     {text}", style="dim", highlight=False)

    def end_act(self, held: bool) -> None:
        self.acts[-1] = (self.acts[-1][0], "held" if held else "FAILED")
        self.refresh()

    def show(self, run: Callable[[], None]) -> None:
        """Run the acts, live in a terminal."""
        if not self.console.is_terminal:
            run()
            return
        with Live(self.screen(), console=self.console, refresh_per_second=8) as live:
            self._live = live
            try:
                run()
            finally:
                live.update(self.screen())
                self._live = None

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self.screen())

    def screen(self) -> RenderableType:
        """Return what the terminal shows now: the acts, the traffic, the newest assertions."""
        acts = Table.grid(padding=(0, 1))
        marks = {"held": ("✓", "green"), "FAILED": ("✗", "red"), "running": ("…", "yellow")}
        for title, state in self.acts:
            mark, style = marks[state]
            acts.add_row(Text(mark, style=style), title)
        lines = [_line(check) for check in self.checks[-12:]]
        return Group(acts, self.table(), *lines)

    def table(self) -> Table:
        """Return the traffic so far, a row for each service and version."""
        table = Table(title="calls seen by the client", title_justify="left")
        for name in ("service", "version"):
            table.add_column(name, no_wrap=True)
        for name in ("requests", "share", "p50 ms", "p99 ms", "retries", "ejected"):
            table.add_column(name, justify="right", no_wrap=True)
        with self._lock:
            totals: Counter[str] = Counter()
            for (service, _), count in self._services.items():
                totals[service] += count
            last = ""
            for (service, version), count in sorted(self._services.items()):
                latency = self._latency[service, version]
                first = service != last
                last = service
                table.add_row(
                    service if first else "",
                    version,
                    f"{count:,}",
                    f"{100 * count / totals[service]:.1f} %",
                    f"{_quantile(latency, 0.5)}",
                    f"{_quantile(latency, 0.99)}",
                    f"{self._retries[service, version]}",
                    f"{self._ejections[service, version]}",
                )
        return table


def _by_version(clusters: dict[str, int]) -> Counter[tuple[str, str]]:
    """Sum up by service and version what was counted by cluster (`outbound|80|v1|checkout.default...`)."""
    result: Counter[tuple[str, str]] = Counter()
    for cluster, count in clusters.items():
        _, _, version, host = cluster.split("|")
        result[host.split(".")[0], version] += count
    return result


def _quantile(buckets: Counter[int], q: float) -> int:
    wanted = q * buckets.total()
    seen = 0
    for bound in sorted(buckets):
        seen += buckets[bound]
        if seen >= wanted:
            return bound
    return 0


def _line(check: Check) -> Text:
    mark = ("  ✓  ", "green") if check.held else ("  ✗  ", "bold red")
    return Text.assemble(mark, check.claim, (f"  [{check.seen}]", "dim"))
