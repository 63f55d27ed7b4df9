"""Documents from files and folders, and word when any of them changes."""

import os
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import watchfiles

from xds_server.codes import UNREADABLE_FILE
from xds_server.model import Document, Finding, Position, Severity
from xds_server.sources.yaml_text import parse

SUFFIXES = frozenset({".yaml", ".yml", ".json"})

# Some 40,000 VirtualServices.
MAX_FILE_BYTES = 16 << 20

# A change is reported once writes have paused this long; a save is a handful of system calls within a millisecond.
DEBOUNCE_MS = 20


def load(paths: Sequence[str]) -> tuple[tuple[Document, ...], tuple[Finding, ...]]:
    """Read every document under the paths.

    Args:
        paths: Files, or folders that are searched recursively for `*.yaml`, `*.yml` and `*.json`; hidden ones are
            left out. A file given by name is read whatever its suffix.

    Returns:
        The documents in the order of the paths, files of a folder by name, and what could not be read. Never raises for
        anything that a file contains.
    """
    documents: list[Document] = []
    findings: list[Finding] = []
    seen: set[str] = set()
    for path in paths:
        if not os.path.exists(path):
            findings.append(_unreadable(path, "no such file or folder"))
            continue
        for file in _files(Path(path), findings):
            if (real := os.path.realpath(file)) in seen:
                continue  # named twice, for example as a file and within its folder
            seen.add(real)
            try:
                text = _read(file, is_named=str(file) == path)
            except (OSError, ValueError) as error:
                findings.append(_unreadable(str(file), _reason(error)))
                continue
            more_documents, more_findings = parse(text, str(file))
            documents += more_documents
            findings += more_findings
    return tuple(documents), tuple(findings)


async def watch(paths: Sequence[str]) -> AsyncIterator[None]:
    """Yield once after each change of a file under the paths, until cancelled.

    A file is watched through its folder, so an editor that replaces it (writes a new one and renames it over the old),
    or a Kubernetes volume that swaps a symlink, is seen too. A path that does not exist is watched through its nearest
    existing parent.
    """
    targets = [Path(path).absolute() for path in paths]
    roots = {str(_watched(target)) for target in targets}

    def is_ours(_change: watchfiles.Change, changed: str) -> bool:
        place = Path(changed)
        return any(target == place or target in place.parents or place in target.parents for target in targets)

    async for _changes in watchfiles.awatch(
        *roots,
        watch_filter=is_ours,
        debounce=DEBOUNCE_MS,
        step=DEBOUNCE_MS // 2,
        # A lone file is watched through its folder, and that may be large: a home directory, or /tmp.
        recursive=any(target.is_dir() for target in targets),
    ):
        yield None


def _files(path: Path, findings: list[Finding]) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return

    def refused(error: OSError) -> None:
        findings.append(_unreadable(str(error.filename), _reason(error)))

    for folder, subfolders, names in os.walk(path, onerror=refused, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix in SUFFIXES:
                yield Path(folder, name)


def _read(path: Path, *, is_named: bool) -> str:
    """Return a file's text.

    Args:
        is_named: It was given by its own name, so it may be a pipe.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, too large or not UTF-8.
    """
    # Not blocking: a named pipe in a folder would hold up every later change.
    waiting = 0 if is_named else os.O_NONBLOCK
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | waiting), "rb") as file:
        if not is_named and not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is not a file")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
    return content.decode("utf-8-sig")


def _watched(path: Path) -> Path:
    if path.is_dir():
        return path
    for parent in path.parents:
        if parent.is_dir():
            return parent
    return path


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8 text"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _unreadable(path: str, reason: str) -> Finding:
    return Finding(Severity.ERROR, UNREADABLE_FILE, f"cannot read {path}: {reason}", Position(path, 1, 1))
