"""What decoding a resource complains about."""

import re

__all__ = ["Problems"]

_INDEX = re.compile(r"\[\d+\]")


class Problems:
    """Collects errors and unused fields of one resource, by field path (`virtual_hosts[0].routes[2].match`).

    An error refuses the resource as a whole, so a decoder that reports one may return any placeholder and go on: all
    errors of a resource are collected, not only the first.

    Attributes:
        is_trusted: The resource is of a server that may say what only trusted ones may (gRFC A81).
    """

    __slots__ = ("_errors", "_unused", "is_trusted")

    def __init__(self, *, is_trusted: bool = False) -> None:
        self.is_trusted = is_trusted
        self._errors: dict[str, str] = {}
        self._unused: dict[str, str] = {}

    def error(self, path: str, reason: str) -> None:
        """Refuse the resource. Of several errors at one place the first is kept."""
        self._errors.setdefault(path, reason)

    def unused(self, path: str, reason: str = "") -> None:
        """Record a field that has no effect here. Of a repeated field's elements only the first is named."""
        self._unused.setdefault(_INDEX.sub("[]", path), f"{path}: {reason}" if reason else path)

    @property
    def errors(self) -> tuple[str, ...]:
        """Each as `path: reason`, in the order found."""
        return tuple(f"{path}: {reason}" if path else reason for path, reason in self._errors.items())

    @property
    def unused_fields(self) -> tuple[str, ...]:
        """Each as `path` or `path: reason`."""
        return tuple(self._unused.values())

    def __bool__(self) -> bool:
        """Whether there are errors."""
        return bool(self._errors)
