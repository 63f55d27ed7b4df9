"""The live streams, by group and identity, and the state that each group was sent last."""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from xds_server.delta import DeltaStream
from xds_server.groups import Group
from xds_server.identity import Identity
from xds_server.snapshot import NOTHING, Snapshot, TypeState
from xds_server.sotw import SotwStream
from xds_server.stream import StreamRefused

Machine = SotwStream | DeltaStream


@dataclass(eq=False, slots=True)
class LiveStream:
    """One open stream.

    Attributes:
        opened_at: Monotonic seconds.
        wake: Set when its writer should look for something to do.
        end: Why the server ends it; None while it goes on.
    """

    machine: Machine
    group: Group
    peer: str
    opened_at: float
    identity: Identity | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    end: StreamRefused | None = None

    def finish(self, reason: StreamRefused) -> None:
        self.end = reason
        self.wake.set()


class Hub:
    """Hands each publish to the streams that it concerns. All of it runs on the server's event loop."""

    def __init__(self) -> None:
        self._snapshots: dict[Group, Snapshot] = {}
        self._streams: dict[Group, set[LiveStream]] = {}

    @property
    def groups(self) -> tuple[Group, ...]:
        """Groups with a published state."""
        return tuple(self._snapshots)

    def snapshot(self, group: Group) -> Snapshot | None:
        return self._snapshots.get(group)

    def streams(self) -> Iterator[LiveStream]:
        for streams in self._streams.values():
            yield from streams

    def has_streams(self, group: Group) -> bool:
        return bool(self._streams.get(group))

    def add(self, stream: LiveStream) -> None:
        self._streams.setdefault(stream.group, set()).add(stream)

    def remove(self, stream: LiveStream) -> None:
        """Forget a stream; harmless when it is forgotten already."""
        streams = self._streams.get(stream.group, set())
        streams.discard(stream)
        if not streams:
            self._streams.pop(stream.group, None)

    def forget(self, group: Group) -> None:
        """Drop the state of a group that nobody is in."""
        self._snapshots.pop(group, None)

    def publish(self, snapshots: Mapping[Group, Snapshot], now: float) -> dict[Group, int]:
        """Replace the state of groups, and return how many streams of each group whose state changed are concerned.

        Equal content changes nothing and reaches nobody (VER-2).
        """
        concerned: dict[Group, int] = {}
        for group, snapshot in snapshots.items():
            previous = self._snapshots.get(group, NOTHING)
            self._snapshots[group] = snapshot
            changes = snapshot.changes_since(previous)
            if not changes:
                continue
            concerned[group] = 0
            for stream in self._streams.get(group, ()):
                if stream.machine.publish(snapshot, changes, now):
                    concerned[group] += 1
                    stream.wake.set()
        return concerned

    def publish_secrets(self, identity: Identity, secrets: TypeState) -> None:
        for stream in self.streams():
            if stream.identity == identity:
                stream.machine.publish_secrets(secrets)
                stream.wake.set()
