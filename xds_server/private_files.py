"""Files that only their owner may read, never half written."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


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
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = _write_beside(path, make(), 0o600)
    try:
        os.link(temporary, path)  # unlike a rename it fails if the file is there by now
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_bytes()


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
