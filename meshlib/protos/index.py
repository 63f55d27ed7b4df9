"""A pool of descriptors that is filled as they are looked up.

A process uses a quarter of the 650 files of which messages may come in an `Any`. A pool with all of them takes 9 ms and 8 MB.
"""

from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["LazyPool"]


@dataclass(frozen=True, slots=True)
class _File:
    start: int
    end: int
    imports: tuple[int, ...]


class LazyPool:
    """Finds messages, extensions and services by their names.

    Threads may look up the same at the same time: a file is added in one step, and adding it again changes nothing.
    """

    def __init__(self, data: bytes) -> None:
        """Make a pool.

        Args:
            data: The files one after the other, behind their index (`tools/build_protos.py` says how).
        """
        self._pool: Any = DescriptorPool()  # types for its methods are missing
        self._data = memoryview(data)
        self._files: list[_File] = []
        self._added: set[int] = set()
        self._packages: dict[str, list[tuple[int, list[str]]]] = {}
        start = at = 4 + int.from_bytes(data[:4], "big")
        for number, line in enumerate(data[4:start].decode().split("\n")):
            size, imports, package, *symbols = line.split("\t")
            self._files.append(_File(at, at + int(size), tuple(map(int, imports.split()))))
            self._packages.setdefault(package, []).append((number, symbols))
            at += int(size)

    @property
    def symbols(self) -> list[str]:
        """All that can be looked up, but for what is within something else."""
        return [
            f"{package}.{symbol}"
            for package, defined in self._packages.items()
            for _, symbols in defined
            for symbol in symbols
        ]

    def FindMessageTypeByName(self, full_name: str) -> Descriptor:  # protobuf's name, as the others
        """Return a message type.

        Raises:
            KeyError: There is none.
        """
        self._add_for(full_name)
        found: Descriptor = self._pool.FindMessageTypeByName(full_name)
        return found

    def FindExtensionByName(self, full_name: str) -> FieldDescriptor:
        """Return an extension.

        Raises:
            KeyError: There is none.
        """
        self._add_for(full_name)
        found: FieldDescriptor = self._pool.FindExtensionByName(full_name)
        return found

    def FindServiceByName(self, full_name: str) -> ServiceDescriptor:
        """Return a service.

        Raises:
            KeyError: There is none.
        """
        self._add_for(full_name)
        found: ServiceDescriptor = self._pool.FindServiceByName(full_name)
        return found

    def _add_for(self, symbol: str) -> None:
        """Add the file which defines something, or what it is within."""
        package, _, rest = symbol.rpartition(".")
        while package:
            for number, symbols in self._packages.get(package, ()):
                if rest.partition(".")[0] in symbols:
                    self._add(number)
                    return
            package, _, last = package.rpartition(".")
            rest = f"{last}.{rest}"

    def _add(self, number: int) -> None:
        if number in self._added:
            return
        file = self._files[number]
        for imported in file.imports:
            self._add(imported)
        self._pool.AddSerializedFile(bytes(self._data[file.start : file.end]))
        self._added.add(number)
