"""Places for certificates and roots that core reads as files, in memory of ours.

The places are named in the bootstrap, so there is a fixed number of them. Core reads a place when a cluster first needs
it, and then once a second as long as something uses it, comparing times of whole seconds. So a place is never changed
while a cluster that core knows of names it; what is rotated moves to another place, and one that was used before is
given time until every old reader has seen the new content.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["Slots"]

CERTIFICATES: Final = 4
"""A process has one identity as a rule; the others take turns in a rotation."""
BUNDLES: Final = 8
"""Trust domains in use at the same time, and their rotation."""
SETTLE_S: Final = 2.5
"""Core's readers look once a second, and compare whole seconds."""


@dataclass(slots=True)
class _Slot:
    name: str
    files: tuple[int, ...]
    content: Any = None
    is_used: bool = False
    written_at: float = 0.0
    ready_at: float = 0.0
    paths: Mapping[str, str] = field(default_factory=dict)


class Slots:
    """The places of one process. Used by one thread; Linux only.

    Raises:
        OSError: There are no files in memory here, or no file descriptors left.
    """

    def __init__(self) -> None:
        self._all: list[int] = []
        self._certificates: list[_Slot] = []
        self._bundles: list[_Slot] = []
        try:
            for number in range(CERTIFICATES):
                self._certificates.append(self._slot(f"certificate-{number}", ("certificate_file", "private_key_file")))
            for number in range(BUNDLES):
                self._bundles.append(self._slot(f"roots-{number}", ("ca_certificate_file",)))
        except BaseException:
            self.close()
            raise

    def _slot(self, name: str, kinds: tuple[str, ...]) -> _Slot:
        files = []
        for _ in kinds:
            file = os.memfd_create("meshlib-core", os.MFD_CLOEXEC)
            self._all.append(file)
            files.append(file)
        # As another process sees it, the path would be its own.
        paths = {kind: f"/proc/self/fd/{file}" for kind, file in zip(kinds, files, strict=True)}
        return _Slot(name, tuple(files), paths=paths)

    @property
    def providers(self) -> Mapping[str, Mapping[str, str]]:
        """Fields of core's `file_watcher`, by provider instance."""
        return {slot.name: slot.paths for slot in (*self._certificates, *self._bundles)}

    def certificate(self, chain_pem: bytes, key_pem: bytes, now: float) -> tuple[str, float] | None:
        """Return the provider instance of a certificate, and from when on it may be named to core; None: no place."""
        return _place(self._certificates, (chain_pem, key_pem), now)

    def bundle(self, ca_pem: bytes, now: float) -> tuple[str, float] | None:
        """As `certificate`, for roots."""
        return _place(self._bundles, (ca_pem,), now)

    def keep(self, names: frozenset[str]) -> None:
        """Say which places are named by clusters, known to core or still to come; the others may be given away."""
        for slot in (*self._certificates, *self._bundles):
            slot.is_used = slot.name in names

    def close(self) -> None:
        """Take everything out of memory."""
        files, self._all = self._all, []
        for file in files:
            os.close(file)


def _place(slots: list[_Slot], content: tuple[bytes, ...], now: float) -> tuple[str, float] | None:
    for slot in slots:
        if slot.content == content:
            slot.is_used = True
            return slot.name, slot.ready_at
    free = [slot for slot in slots if not slot.is_used]
    if not free:
        return None
    slot = min(free, key=lambda one: one.written_at)  # an empty one before all others
    is_new = slot.content is None
    for file, part in zip(slot.files, content, strict=True):
        _write(file, part)
    slot.content = content
    slot.is_used = True
    slot.written_at = now
    slot.ready_at = now if is_new else now + SETTLE_S
    return slot.name, slot.ready_at


def _write(file: int, content: bytes) -> None:
    """Replace what a file holds, whole: another one takes its number."""
    made = os.memfd_create("meshlib-core", os.MFD_CLOEXEC)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(made, view) :]
        os.dup2(made, file, inheritable=False)
    finally:
        os.close(made)
