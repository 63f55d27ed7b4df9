"""Tables that take long to make, remembered by what they were made of."""

from collections.abc import Callable
from typing import Generic, TypeVar

from meshlib.ports import Lock

__all__ = ["Remembered"]

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """The ones used last. Any thread may ask; two that ask for the same at once may both make it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._found: dict[K, V] = {}  # the one used last is the last

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return what was made of a key, making it if need be."""
        with self._lock:
            found = self._found.pop(key, None)
            if found is not None:
                self._found[key] = found
        if found is None:
            found = make()
            with self._lock:
                self._found[key] = found
                if len(self._found) > self._limit:
                    del self._found[next(iter(self._found))]
        return found
