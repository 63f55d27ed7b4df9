"""What a server's word does to one entry of the cache: its resource is taken, refused, in error, or removed.

- A resource that is refused keeps the value it had, unless the server asked for `fail_on_data_errors`.
- So does one that is removed if the server asked for `ignore_resource_deletion`, until it speaks of it again.

Source: gRFCs A53 and A88.
"""

from typing import Final

from meshlib.events import ResourceAccepted, ResourceRejected
from meshlib.xds.cache import Entry, Key, ResourceState
from meshlib.xds.commands import Command, DeletionIgnored, Report
from meshlib.xds.decode import Decoded
from meshlib.xds.wire import ResourceError

__all__ = ["NOT_FOUND", "Verdicts"]

NOT_FOUND: Final = 5
PERMISSION_DENIED: Final = 7


class Verdicts:
    """Applies them, and remembers which resources are in use although the server deleted them.

    Entries must be of the cache that the streams of one server fill; commands are added to those given.
    """

    def __init__(self, features: frozenset[str]) -> None:
        """Make one that has heard nothing.

        Args:
            features: `server_features` of the bootstrap.
        """
        self._fails_on_data_errors = "fail_on_data_errors" in features
        self._ignores_deletion = "ignore_resource_deletion" in features
        self._undeleted: set[Key] = set()

    def inherit(self, other: "Verdicts") -> None:
        """Go on where another one stops, which is of no use afterwards."""
        self._undeleted = other._undeleted

    def accept(
        self, entry: Entry, decoded: Decoded, body: bytes, version: str, now: float, commands: list[Command]
    ) -> None:
        """Take a resource into use.

        Args:
            decoded: Of `body`; has a value.
        """
        value = entry.value if entry.value is not None and entry.body == body else decoded.value
        if entry.value is not value or entry.is_spare or entry.state is not ResourceState.ACKED:
            commands.append(Report(ResourceAccepted(entry.type_url, entry.name, version)))
        if entry.value is not value:
            entry.updated_at = now
        entry.value, entry.body, entry.version, entry.unused = value, body, version, decoded.unused
        entry.state, entry.error, entry.failed_version = ResourceState.ACKED, "", ""
        entry.is_absent = entry.is_spare = False
        if self._undeleted:
            self._end_undeleted((entry.type_url, entry.name), commands)

    def refuse(self, entry: Entry, error: str, version: str, now: float, commands: list[Command]) -> None:
        """A resource is not valid."""
        self._fail(entry, ResourceState.NACKED, error, version, now, drops=True)
        commands.append(Report(ResourceRejected(entry.type_url, entry.name, version, error)))

    def report(
        self, entry: Entry, error: ResourceError, version: str, now: float, commands: list[Command], *, deletes: bool
    ) -> None:
        """The server cannot give a resource, and says why.

        Args:
            deletes: NOT_FOUND means that a resource in use was removed. Else it is an error beside the value (A88).
        """
        if entry.is_spare:
            entry.drop_value()
        text = error.message or ("does not exist" if error.code == NOT_FOUND else f"error code {error.code}")
        final = error.code in (NOT_FOUND, PERMISSION_DENIED)
        self._fail(entry, ResourceState.RECEIVED_ERROR, text, version, now, drops=final)
        if error.code == NOT_FOUND and deletes and not self._ignores_deletion:
            entry.drop_value()
        entry.is_absent = error.code == NOT_FOUND and entry.value is None
        commands.append(Report(ResourceRejected(entry.type_url, entry.name, version, text)))

    def remove(self, entry: Entry, version: str, now: float, commands: list[Command]) -> None:
        """The server does not have a resource that is in use any more."""
        entry.state, entry.error, entry.failed_at = ResourceState.DOES_NOT_EXIST, "was removed", now
        entry.failed_version = version
        if not self._ignores_deletion or self._fails_on_data_errors:
            entry.drop_value()
            entry.is_absent = True
        elif (key := (entry.type_url, entry.name)) not in self._undeleted:
            self._undeleted.add(key)
            commands.append(DeletionIgnored(key))
        commands.append(Report(ResourceRejected(entry.type_url, entry.name, version, "was removed")))

    def retain(self, type_url: str, keep: frozenset[str], commands: list[Command]) -> None:
        """Forget what was deleted of all other resources of a type."""
        for key in sorted(key for key in self._undeleted if key[0] == type_url and key[1] not in keep):
            self._end_undeleted(key, commands)

    def _end_undeleted(self, key: Key, commands: list[Command]) -> None:
        if key in self._undeleted:
            self._undeleted.discard(key)
            commands.append(DeletionIgnored(key, is_over=True))

    def _fail(self, entry: Entry, state: ResourceState, error: str, version: str, now: float, *, drops: bool) -> None:
        entry.state, entry.error, entry.failed_version, entry.failed_at = state, error, version, now
        entry.is_spare = entry.is_absent = False
        if self._fails_on_data_errors and drops:
            entry.drop_value()
