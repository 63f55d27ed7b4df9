"""A pool of descriptors that is filled as they are looked up.

A process uses a tenth of the 650 files of which messages may come in an `Any`. A pool with all of them takes 9 ms and 8 MB.
"""

from array import array
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["LazyPool"]


class LazyPool:
    """Finds messages, extensions and services by their names.

    Threads may look up the same at the same time: a file is added in one step, and adding it again changes nothing.
    """

    def __init__(self, data: bytes) -> None:
        """Make a pool.

        Args:
            data: The files one after the other, behind their index (`build` of `tools/build_protos.py` says how).
        """
        self._pool: Any = DescriptorPool()  # types for its methods are missing
        self._data = memoryview(data)
        start = 4 + int.from_bytes(data[:4], "big")
        # Lines are taken apart when they are asked for, and positions are plain numbers: thousands of objects here would have
        # the garbage collector go through everything that was imported, 35 ms.
        self._lines = data[4:start].decode().split("\n")
        self._ends = array("L", [start])  # of the descriptor and of the rules of each file in turn
        self._added: set[int] = set()
        self._packages: dict[str, list[int]] = {}
        for number, line in enumerate(self._lines):
            size, rules_size, _, package, _ = f"{line}\t".split("\t", 4)
            self._ends.append(self._ends[-1] + int(size))
            self._ends.append(self._ends[-1] + int(rules_size))
            self._packages.setdefault(package, []).append(number)

    @property
    def symbols(self) -> list[str]:
        """All that can be looked up, but for what is within something else."""
        rows = [line.split("\t") for line in self._lines]
        return [f"{package}.{symbol}" for _, _, _, package, *symbols in rows for symbol in symbols]

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

    def rules_of(self, full_name: str) -> str:
        """Return what the `(validate.rules)` of a message type come to, as JSON; empty: there are none.

        The JSON is an object; `Rules.of` of `tools/build_protos.py` says what it holds.
        """
        number, name = self._file_of(full_name)
        if number is None:
            return ""
        rules = bytes(self._data[self._ends[2 * number + 1] : self._ends[2 * number + 2]]).decode()
        return next((line[len(name) + 1 :] for line in rules.splitlines() if line.startswith(f"{name}\t")), "")

    def _add_for(self, symbol: str) -> None:
        """Add the file which defines something, or what it is within."""
        number, _ = self._file_of(symbol)
        if number is not None:
            self._add(number)

    def _file_of(self, symbol: str) -> tuple[int | None, str]:
        """Return which file defines something, or what it is within, and what it is called within its package."""
        package, _, rest = symbol.rpartition(".")
        while package:
            for number in self._packages.get(package, ()):
                if rest.partition(".")[0] in self._lines[number].split("\t")[4:]:
                    return number, rest
            package, _, last = package.rpartition(".")
            rest = f"{last}.{rest}"
        return None, ""

    def _add(self, number: int) -> None:
        if number in self._added:
            return
        for imported in self._lines[number].split("\t")[2].split():
            self._add(int(imported))
        self._pool.AddSerializedFile(bytes(self._data[self._ends[2 * number] : self._ends[2 * number + 1]]))
        self._added.add(number)
