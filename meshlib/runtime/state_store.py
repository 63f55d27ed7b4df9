"""The last good configuration on disk, so that a new process works while no management server can be reached.

One file per node, server and token, of mode 0600 in a directory of mode 0700: it holds private keys. It is written to a new
file that takes the old one's place, carries a checksum, and is of limited size and age. A file that cannot be used is
set aside under another name and reported, never half used.

Layout: a line `meshlib-state 1 <SHA-256 of the rest, hex>`, then zlib-compressed JSON.
"""

import base64
import hashlib
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from meshlib.ports import Pause, no_pause
from meshlib.xds.bootstrap import NodeConfig, ServerConfig
from meshlib.xds.cache import Spare

__all__ = ["MAX_AGE_S", "MAX_BYTES", "StateError", "StateStore", "default_directory"]

MAGIC: Final = b"meshlib-state 1 "
MAX_BYTES: Final = 256 * 1024 * 1024
"""Of the JSON: 10,000 clusters with 10 endpoints each need about 30 MB."""
MAX_AGE_S: Final = 7 * 24 * 3600.0
"""A week without any management server; endpoints are long gone by then."""


class StateError(Exception):
    """The copy could not be read or written; the text says why. The mesh works without it."""


def default_directory() -> Path:
    """Return the user's cache directory for meshlib."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "meshlib"


class StateStore:
    """The copy of one node and server. Used by one thread at a time; several processes may share a directory."""

    def __init__(self, directory: Path, node: NodeConfig, server: ServerConfig) -> None:
        # The token's file stands for the identity: another one's certificates are not ours, whatever the node is called.
        tokens = (credentials.path for credentials in server.call_creds)
        key = "\0".join((node.id, node.cluster, server.uri, *tokens)).encode()
        self._directory = directory
        self.path = directory / f"{hashlib.sha256(key).hexdigest()[:32]}.state"

    def load(self, wall: float) -> tuple[Spare, ...]:
        """Read the copy; nothing when there is none.

        Args:
            wall: Seconds since the epoch; older resources than a week are left out.

        Raises:
            StateError: It is corrupt (it has been set aside) or cannot be read.
        """
        try:
            # Not blocking: a named pipe in its place would keep the mesh from starting.
            with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise StateError(f"{self.path} is not a file")
                if status.st_uid != os.getuid() or status.st_mode & 0o077:
                    raise StateError(
                        f"{self.path} is not ours alone (owner {status.st_uid}, mode {status.st_mode & 0o777:o})"
                    )
                data = file.read(MAX_BYTES)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise StateError(f"{self.path} cannot be read: {error.strerror or error}") from error
        try:
            spares = _decode(data)
        except (ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
            aside = self.path.with_suffix(".corrupt")
            with suppress(OSError):
                self.path.replace(aside)
            raise StateError(f"{self.path} is corrupt ({error}); it was set aside as {aside.name}") from None
        return tuple(spare for spare in spares if wall - MAX_AGE_S <= spare.saved_at <= wall + MAX_AGE_S)

    def save(self, spares: Sequence[Spare], pause: Pause = no_pause) -> None:
        """Replace the copy.

        Args:
            pause: Called between resources.

        Raises:
            StateError: It cannot be written, is too large, or the directory is open to others.
        """
        data = _encode(spares, pause)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self._directory.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                raise StateError(f"{self._directory} may be written by others (mode {status.st_mode & 0o777:o})")
            descriptor, name = tempfile.mkstemp(dir=self._directory, prefix=self.path.stem, suffix=".new")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, self.path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
        except OSError as error:
            raise StateError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _encode(spares: Sequence[Spare], pause: Pause = no_pause) -> bytes:
    deflate = zlib.compressobj(1)
    parts, size, mark = [], 0, '{"resources": ['
    for spare in _in_order(spares, pause):
        pause()
        body64 = base64.b64encode(spare.body).decode()
        row = json.dumps([spare.type_url, spare.name, spare.version, spare.saved_at, body64])
        text = f"{mark}{row}".encode()
        mark, size = ",", size + len(text)
        if size > MAX_BYTES:
            raise StateError(f"the configuration is too large to keep on disk (the limit is {MAX_BYTES} bytes)")
        parts.append(deflate.compress(text))
    parts.append(deflate.compress(b"]}" if spares else b'{"resources": []}'))
    parts.append(deflate.flush())
    body = b"".join(parts)
    return MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _in_order(spares: Sequence[Spare], pause: Pause) -> Iterator[Spare]:
    """Give them by type and name. Each type is sorted by itself, as nothing else runs while a list is sorted."""
    by_type: dict[str, list[Spare]] = {}
    for spare in spares:
        by_type.setdefault(spare.type_url, []).append(spare)
    for type_url in sorted(by_type):
        pause()
        yield from sorted(by_type[type_url], key=attrgetter("name"))


def _decode(data: bytes) -> list[Spare]:
    head, _, body = data.partition(b"\n")
    if not head.startswith(MAGIC):
        raise ValueError("not a state file of this version")
    if hashlib.sha256(body).hexdigest().encode() != head[len(MAGIC) :]:
        raise ValueError("the checksum does not match")
    inflate = zlib.decompressobj()
    text = inflate.decompress(body, MAX_BYTES)
    if inflate.unconsumed_tail:
        raise ValueError("too large")
    document: Any = json.loads(text)
    return [
        Spare(str(type_url), str(name), str(version), base64.b64decode(body64), float(saved_at))
        for type_url, name, version, saved_at, body64 in document["resources"]
    ]
