"""What is known of each resource subscribed to: its value in use, its state as CSDS names it, and why.

Also holds the copies from disk of an earlier process ("spare" ones). They stand in for resources that no server has
answered yet, while none can be reached; the server's word, whatever it says, takes their place for good.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from meshlib.model.cluster import Cluster
from meshlib.model.discovery import Collection, FilterConfig, RuntimeLayer, ScopedRoute
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint
from meshlib.model.listener import Listener
from meshlib.model.route import RouteConfiguration, VirtualHost
from meshlib.model.secret import Secret
from meshlib.ports import Pause, no_pause

__all__ = ["CacheShare", "Entry", "Key", "ResourceCache", "ResourceState", "ResourceValue", "Spare"]

ResourceValue = (
    Listener
    | RouteConfiguration
    | ScopedRoute
    | VirtualHost
    | Cluster
    | ClusterLoadAssignment
    | Endpoint
    | Secret
    | FilterConfig
    | RuntimeLayer
    | Collection
)
Key = tuple[str, str]
"""(type URL, resource name)."""
PAUSE_EVERY: Final = 32
"""Entries that are copied."""


class ResourceState(Enum):
    """`ClientResourceStatus` of CSDS (A40, A88)."""

    REQUESTED = 1
    DOES_NOT_EXIST = 2
    ACKED = 3
    NACKED = 4
    RECEIVED_ERROR = 5
    TIMEOUT = 6


@dataclass(slots=True)
class Entry:
    """One resource subscribed to. Changed by the stream's machine only.

    Attributes:
        value: In use, or None. May be there in any state: an error can be ambient.
        body: The bytes that `value` was decoded from.
        version: Of the response that brought `value`.
        error: Why the state is what it is; for people, without secrets.
        failed_version: Of the last response that was refused or named an error.
        is_absent: The server says that it does not exist.
        is_spare: `value` comes from disk; no server has answered for it.
        unused: Fields of the resource that we do not use.
        updated_at: Monotonic seconds of the last change of `value`; 0.0: never.
        failed_at: Monotonic seconds of the last error; 0.0: never.
        expires_at: Monotonic seconds at which `value` must not be used any more; None: it does not expire.
    """

    type_url: str
    name: str
    value: ResourceValue | None = None
    body: bytes = field(default=b"", repr=False)  # may be a private key
    version: str = ""
    state: ResourceState = ResourceState.REQUESTED
    error: str = ""
    failed_version: str = ""
    is_absent: bool = False
    is_spare: bool = False
    unused: tuple[str, ...] = ()
    updated_at: float = 0.0
    failed_at: float = 0.0
    expires_at: float | None = None

    @property
    def is_answered(self) -> bool:
        """Something is known: a value, or the reason why there is none."""
        return self.value is not None or self.state is not ResourceState.REQUESTED

    @property
    def is_collection(self) -> bool:
        """It stands for a subscription to many resources, which have entries of their own."""
        return isinstance(self.value, Collection)

    @property
    def is_open_question(self) -> bool:
        """No server has answered for it: there is nothing, or only a copy from disk."""
        return self.is_spare or not self.is_answered

    def drop_value(self) -> None:
        """Have nothing in use any more."""
        self.value, self.body, self.is_spare, self.unused = None, b"", False, ()


@dataclass(frozen=True, slots=True)
class Spare:
    """One resource as kept on disk.

    Attributes:
        saved_at: Seconds since the epoch at which it was known to be in use.
    """

    type_url: str
    name: str
    version: str
    body: bytes = field(repr=False)  # may be a private key
    saved_at: float


class ResourceCache:
    """Entries by (type URL, name)."""

    def __init__(self) -> None:
        self._entries: dict[Key, Entry] = {}
        self._spares: dict[Key, Spare] = {}
        self._owners: dict[Key, int] = {}  # how many shares hold an entry
        self._touched: set[Key] = set()

    def get(self, type_url: str, name: str) -> Entry | None:
        """Return an entry, for somebody who may change it."""
        key = (type_url, name)
        self._touched.add(key)
        return self._entries.get(key)

    def peek(self, type_url: str, name: str) -> Entry | None:
        """Return an entry, for somebody who will not change it."""
        return self._entries.get((type_url, name))

    def entries(self) -> tuple[Entry, ...]:
        """Return all entries, for somebody who will not change them."""
        return tuple(self._entries.values())

    def take_touched(self) -> frozenset[Key]:
        """Return what may have changed since the last time: whatever was handed out to be changed, or is gone."""
        touched = frozenset(self._touched)
        self._touched.clear()
        return touched

    def value(self, type_url: str, name: str) -> ResourceValue | None:
        entry = self._entries.get((type_url, name))
        return entry.value if entry is not None else None

    def add(self, type_url: str, name: str) -> Entry:
        """Return the entry of a resource, making one in state REQUESTED if need be."""
        key = (type_url, name)
        self._touched.add(key)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(type_url, name)
        return entry

    def retain(self, type_url: str, names: Iterable[str]) -> None:
        """Forget the resources of a type other than these."""
        keep = set(names)
        for key in [key for key in self._entries if key[0] == type_url and key[1] not in keep]:
            del self._entries[key]
            self._touched.add(key)

    def drop(self, type_url: str, name: str) -> None:
        """Forget one resource, if it is there."""
        if self._entries.pop((type_url, name), None) is not None:
            self._touched.add((type_url, name))

    def names(self, type_url: str) -> tuple[str, ...]:
        return tuple(name for kind, name in self._entries if kind == type_url)

    def __iter__(self) -> Iterator[Entry]:
        """All entries, for somebody who may change them."""
        self._touched.update(self._entries)
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    # The copies from disk.

    def add_spares(self, spares: Iterable[Spare]) -> None:
        """Take over what an earlier process left."""
        self._spares.update({(spare.type_url, spare.name): spare for spare in spares})

    def spare(self, type_url: str, name: str) -> Spare | None:
        return self._spares.get((type_url, name))

    def drop_spare(self, type_url: str, name: str) -> None:
        """The server has answered for this resource, or its copy is of no use."""
        self._spares.pop((type_url, name), None)

    @property
    def spares(self) -> Mapping[Key, Spare]:
        return self._spares

    def dump(self, wall: float, pause: Pause = no_pause) -> tuple[Spare, ...]:
        """Return what to keep on disk: all values that a server gave, and the copies that none has answered for yet.

        Args:
            wall: Seconds since the epoch.
            pause: Called now and then.
        """
        result = {}
        for index, (key, entry) in enumerate(self._entries.items(), 1):
            if not index % PAUSE_EVERY:
                pause()
            if entry.value is not None and not entry.is_spare and not entry.is_collection:
                result[key] = Spare(entry.type_url, entry.name, entry.version, entry.body, wall)
        return (*result.values(), *(spare for key, spare in self._spares.items() if key not in result))


class CacheShare(ResourceCache):
    """The cache as the client of one of several servers sees it: the same entries, forgotten when nobody wants them.

    Iterating gives the entries that this share added and did not give up.
    """

    def __init__(self, whole: ResourceCache) -> None:
        self._entries = whole._entries
        self._spares = whole._spares
        self._owners = whole._owners
        self._touched = whole._touched
        self._mine: dict[str, set[str]] = {}

    def add(self, type_url: str, name: str) -> Entry:
        mine = self._mine.setdefault(type_url, set())
        if name not in mine:
            mine.add(name)
            self._owners[type_url, name] = self._owners.get((type_url, name), 0) + 1
        return super().add(type_url, name)

    def retain(self, type_url: str, names: Iterable[str]) -> None:
        mine = self._mine.get(type_url)
        if not mine:
            return
        for name in mine - set(names):
            self.drop(type_url, name)

    def drop(self, type_url: str, name: str) -> None:
        mine = self._mine.get(type_url, set())
        if name not in mine:
            return
        mine.discard(name)
        key = (type_url, name)
        left = self._owners[key] = self._owners[key] - 1
        if not left:
            del self._owners[key]
            self._entries.pop(key, None)
            self._touched.add(key)

    def release(self) -> None:
        """Give everything up: the server is not asked any more."""
        for type_url in tuple(self._mine):
            self.retain(type_url, ())

    def __iter__(self) -> Iterator[Entry]:
        for type_url, names in self._mine.items():
            for name in names:
                entry = self.get(type_url, name)
                if entry is not None:
                    yield entry
