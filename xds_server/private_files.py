"""Files that only their owner may read, never half written.

What is read is checked as well: a key that others could read, or a folder where others could put one of theirs, is
refused, as `ssh` does.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

_MAX_BYTES = 1 << 20

TRUSTED_OWNERS = frozenset({0})
"""Users beside ourselves whose files are taken: root could change ours too."""


def private_folder(path: Path) -> None:
    """Make a folder of mode 0700 unless it is there; one that others can write to, or own, is refused.

    Raises:
        OSError: It cannot be made.
        ValueError: It is not ours alone to write to; the text says what to do.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = path.stat()
    if status.st_uid not in TRUSTED_OWNERS | {os.geteuid()}:
        raise ValueError(
            f"{path} belongs to user {status.st_uid}, who could replace the keys in it; use a folder of ours"
        )
    if status.st_mode & 0o022:
        raise ValueError(f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}): chmod go-w it")


def read_private(path: Path) -> bytes:
    """Return the content of a file that nobody else can read.

    Raises:
        OSError: It cannot be read.
        ValueError: Others can read or replace it, or it is no file of normal size; the text says what to do.
    """
    # Not blocking: opening a named pipe would wait for its writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is not a file")
        if status.st_uid not in TRUSTED_OWNERS | {os.geteuid()}:
            raise ValueError(f"{path} belongs to user {status.st_uid}; it must be ours")
        if status.st_mode & 0o077:
            raise ValueError(f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):o}): chmod 600 it")
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes")
    return content


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step; a reader sees the old or the new content.

    Raises:
        OSError: The directory cannot be written.
    """
    temporary = _write_beside(path, content, mode)
    try:
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def create_private(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return a file's content; if it does not exist, make it with mode 0600.

    Two processes that do this at once end up with the same content: only one creates the file.

    Raises:
        OSError: It can be neither read nor made.
        ValueError: Others can read or replace it.
    """
    private_folder(path.parent)
    try:
        return read_private(path)
    except FileNotFoundError:
        pass
    temporary = _write_beside(path, make(), 0o600)
    try:
        os.link(temporary, path)  # unlike a rename it fails if the file is there by now
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return read_private(path)


def _write_beside(path: Path, content: bytes, mode: int) -> Path:
    # mkstemp makes the file with mode 0600, so the content is private from the first byte.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
