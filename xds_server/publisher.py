"""From sources to streams: load, compile for every group, check, publish all or nothing."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from xds_server.consistency import check
from xds_server.debounce import Debounce
from xds_server.groups import DEFAULT_GROUPS, Group
from xds_server.hub import Hub
from xds_server.model import Compiled, Document, Finding, Instance, Severity
from xds_server.ordering import short_name
from xds_server.snapshot import Snapshot
from xds_server.statistics import Statistics
from xds_server.stream import StreamRefused
from xds_server.waiting import wait_for

_log = logging.getLogger(__name__)

Load = Callable[[], tuple[Sequence[Document], Sequence[Finding]]]
Compile = Callable[[Sequence[Document], Sequence[Instance], Group], Compiled]

# A registration is one event by itself, so it need not wait as long as an editor's several writes.
REGISTRATION_QUIET_S = 0.02

# Groups are named by unauthenticated clients (an Envoy's listen address), so their number is bounded.
MAX_GROUPS = 256
# So are places. Where those decide nothing, one more costs an entry of a table.
MAX_PLACES = 16384


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Attributes:
    depends_on_place: Clients of different places are sent different things.
    """

    snapshots: dict[Group, Snapshot]
    findings: tuple[Finding, ...]
    depends_on_place: bool

    @property
    def is_refused(self) -> bool:
        return has_errors(self.findings)


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.severity is Severity.ERROR for finding in findings)


class Publisher:
    """Keeps the hub's state equal to what documents and registrations say.

    A state with errors is not published: clients keep the last good one, and `findings` says what is wrong. Later
    registrations are compiled with the last good documents.

    Args:
        load: Reads the documents; called in a thread.
        compile_group: Compiles them for one group; called in a thread.
        instances: Returns the registered instances.
        secrets: Names of the secrets that clients can have.
        quiet_s: Pause after which a change of documents is acted on.
        max_wait_s: Longest time that a lasting burst of changes is collected for.
    """

    def __init__(
        self,
        hub: Hub,
        *,
        load: Load,
        compile_group: Compile,
        instances: Callable[[], tuple[Instance, ...]],
        secrets: frozenset[str] = frozenset(),
        statistics: Statistics | None = None,
        quiet_s: float = 0.1,
        max_wait_s: float = 1.0,
    ) -> None:
        self.findings: tuple[Finding, ...] = ()
        self.is_behind = False
        self.publish_count = 0
        self._hub = hub
        self._load = load
        self._compile = compile_group
        self._instances = instances
        self._secrets = secrets
        self._statistics = statistics or Statistics()
        self._documents: Sequence[Document] = ()
        self._depends_on_place = False
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._source_events = Debounce(quiet_s, max_wait_s)
        self._registration_events = Debounce(min(quiet_s, REGISTRATION_QUIET_S), max_wait_s)

    @property
    def is_ready(self) -> bool:
        """Whether a complete state has been published (STR-9)."""
        return self.publish_count > 0

    def sources_changed(self) -> None:
        self._source_events.event(asyncio.get_running_loop().time())
        self._wake.set()

    def registrations_changed(self) -> None:
        self._registration_events.event(asyncio.get_running_loop().time())
        self._wake.set()

    async def run(self) -> None:
        """Act on changes until cancelled. Publishes do not overlap (PSH-2)."""
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            sources = self._source_events.take(loop.time())
            registrations = self._registration_events.take(loop.time())
            if sources or registrations:
                reasons = ["documents"] * sources + ["registrations"] * registrations
                await self.publish(" and ".join(reasons) + " changed", reload=sources)
                continue
            due = [each.due for each in (self._source_events, self._registration_events) if each.due is not None]
            await wait_for(self._wake, min(due) - loop.time() if due else None)

    async def publish(self, reason: str, *, reload: bool) -> bool:
        """Compile and publish now; returns False when the state has errors and the old one stays."""
        async with self._lock:
            for group in self._hub.groups:
                if group not in DEFAULT_GROUPS and not self._hub.has_streams(group):
                    self._hub.forget(group)
            groups = tuple(dict.fromkeys((*DEFAULT_GROUPS, *self._hub.groups)))
            documents = self._documents
            found: tuple[Finding, ...] = ()
            try:
                if reload:
                    loaded, load_findings = await asyncio.to_thread(self._load)
                    documents, found = loaded, tuple(load_findings)
                prepared = await asyncio.to_thread(self._prepare, documents, self._instances(), groups, found)
            except Exception:
                # A fault of ours in one input must not stop later publishes.
                _log.exception("publish failed (%s); clients keep the last good state", reason)
                self.is_behind = True
                self._statistics.publishes_refused += 1
                return False
            self._report(prepared.findings)
            if prepared.is_refused:
                self.is_behind = True
                self._statistics.publishes_refused += 1
                _log.error("not published (%s): the state has errors; clients keep the last good one", reason)
                return False
            self._documents = documents
            self._depends_on_place = prepared.depends_on_place
            self.is_behind = False
            self._publish(prepared, reason)
            return True

    async def snapshot(self, group: Group) -> Snapshot | None:
        """Return the state of a group, compiled now if it is a new one; None before the first publish.

        Raises:
            StreamRefused: The group cannot be had.
        """
        if not self.is_ready:
            return None
        if (snapshot := self._hub.snapshot(group)) is not None:
            return snapshot
        async with self._lock:
            if (snapshot := self._hub.snapshot(group)) is not None:
                return snapshot
            shared = None if self._depends_on_place else self._hub.snapshot(group.anywhere)
            if shared is not None and len(self._hub.groups) < MAX_PLACES:
                self._hub.publish({group: shared}, asyncio.get_running_loop().time())
                return shared
            if self._compiled_groups() >= MAX_GROUPS:
                raise StreamRefused("RESOURCE_EXHAUSTED", f"more than {MAX_GROUPS} different groups of clients")
            prepared = await asyncio.to_thread(self._prepare, self._documents, self._instances(), (group,), ())
            if prepared.is_refused:
                raise StreamRefused("UNAVAILABLE", f"the state for {group.profile} clients has errors: see the log")
            self._hub.publish(prepared.snapshots, asyncio.get_running_loop().time())
            return prepared.snapshots[group]

    def _prepare(
        self,
        documents: Sequence[Document],
        instances: tuple[Instance, ...],
        groups: tuple[Group, ...],
        findings: tuple[Finding, ...],
    ) -> _Prepared:
        """Compile, serialise and check; touches nothing that others see."""
        snapshots: dict[Group, Snapshot] = {}
        collected = list(findings)
        same: dict[Group, Group] = {}  # what a group is like, wherever it is
        depends_on_place = False
        for group in groups:
            if (like := same.get(group.anywhere)) is not None:
                if like in snapshots:
                    snapshots[group] = snapshots[like]
                continue
            compiled = self._compile(documents, instances, group)
            depends_on_place = depends_on_place or compiled.depends_on_place
            if not compiled.depends_on_place:
                same[group.anywhere] = group
            collected += compiled.findings
            if has_errors(compiled.findings):
                continue
            snapshots[group] = Snapshot.build(compiled.resources, self._hub.snapshot(group))
            collected += check(snapshots[group], group=group.profile, secrets=self._secrets)
        return _Prepared(snapshots, tuple(dict.fromkeys(collected)), depends_on_place)

    def _compiled_groups(self) -> int:
        """Return how many different states there are, or too many when there are too many places."""
        groups = self._hub.groups
        if self._depends_on_place or len(groups) >= MAX_PLACES:
            return len(groups)
        return len({group.anywhere for group in groups})

    def _publish(self, prepared: _Prepared, reason: str) -> None:
        before = {group: self._hub.snapshot(group) for group in prepared.snapshots}
        concerned = self._hub.publish(prepared.snapshots, asyncio.get_running_loop().time())
        self.publish_count += 1
        self._statistics.publishes += 1
        if not concerned:
            return
        kinds = {
            short_name(type_url)
            for group in concerned
            if (previous := before[group]) is not None
            for type_url in prepared.snapshots[group].changes_since(previous)
        }
        changed = f", changed: {', '.join(sorted(kinds))}" if kinds else ""
        streams = sum(concerned.values())
        _log.info("publish %d (%s): %d streams concerned%s", self.publish_count, reason, streams, changed)

    def _report(self, findings: tuple[Finding, ...]) -> None:
        """Log findings that were not there the last time; every error of a refused state is new to its author."""
        known = set(self.findings)
        for finding in findings:
            if finding.severity is Severity.ERROR:
                _log.error("%s", finding)
            elif finding not in known:
                _log.log(logging.WARNING if finding.severity is Severity.WARNING else logging.INFO, "%s", finding)
        self.findings = findings
