"""JSON values that know their own place, so that every error can name it.

A member that is null counts as absent, and a key that an object has twice is an error, as in C-core.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

from meshlib.errors import BootstrapError

__all__ = ["JsonPlace", "parse_json"]

_DURATION = re.compile(r"(\d{1,12})(\.\d{1,9})?s", re.ASCII)
MAX_DURATION_S: Final = 315_576_000_000
"""Ten thousand years: the range of `google.protobuf.Duration`."""


class JsonPlace:
    """An object or array of a JSON document.

    Attributes:
        value: The Python data.
        pointer: JSON pointer (RFC 6901); empty for the whole document.
    """

    __slots__ = ("origin", "pointer", "value")

    def __init__(self, value: Any, pointer: str, origin: str) -> None:
        self.value = value
        self.pointer = pointer
        self.origin = origin

    def fail(self, reason: str, key: str | int | None = None) -> NoReturn:
        """Raise a BootstrapError for this place or for one of its members."""
        pointer = self.pointer if key is None else self._pointer(key)
        raise BootstrapError(f"bootstrap {self.origin}: at {pointer or '/'}: {reason}")

    def has(self, key: str) -> bool:
        return self._get(key, None) is not None

    def string(self, key: str) -> str:
        """Return the member, or the empty string if it is absent."""
        value = self._get(key, "")
        if not isinstance(value, str):
            self.fail(f"must be a string, is {_kind(value)}", key)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            self.fail(f"is no text: {error.reason}", key)
        return value

    def boolean(self, key: str) -> bool:
        value = self._get(key, False)
        if not isinstance(value, bool):
            self.fail(f"must be true or false, is {_kind(value)}", key)
        return value

    def integer(self, key: str, default: int, *, least: int, most: int) -> int:
        """Return the member, a whole number from `least` to `most`, or the default if it is absent."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"must be a whole number, is {_kind(value)}", key)
        if self.has(key) and not least <= value <= most:
            self.fail(f"must be from {least} to {most}, is {value}", key)
        return value

    def duration(self, key: str, default: float) -> float:
        """Return the seconds of a proto JSON duration such as `"600s"`; not negative."""
        if not self.has(key):
            return default
        match = _DURATION.fullmatch(self.string(key))
        seconds = float(match[1] + (match[2] or "")) if match else math.nan
        if not 0 <= seconds <= MAX_DURATION_S:
            self.fail('must be a duration such as "600s"', key)
        return seconds

    def object(self, key: str) -> "JsonPlace":
        """Return the member; an empty object if it is absent."""
        return self._child(key, self._get(key, {}), Mapping)

    def array(self, key: str) -> "JsonPlace":
        """Return the member; an empty array if it is absent."""
        return self._child(key, self._get(key, []), list)

    def objects(self) -> "Iterator[JsonPlace]":
        """Iterate over the elements of this array, each of which must be an object."""
        for index, value in enumerate(self.value):
            yield self._child(index, value, Mapping)

    def members(self) -> "Iterator[tuple[str, JsonPlace]]":
        """Iterate over the members of this object, each of which must be an object."""
        for key, value in self.value.items():
            yield key, self._child(key, value, Mapping)

    def _get(self, key: str, default: Any) -> Any:
        value = self.value.get(key)
        return default if value is None else value

    def _child(self, key: str | int, value: Any, kind: type) -> "JsonPlace":
        if not isinstance(value, (list, tuple) if kind is list else kind):
            self.fail(f"must be {'an array' if kind is list else 'an object'}, is {_kind(value)}", key)
        return JsonPlace(value, self._pointer(key), self.origin)

    def _pointer(self, key: str | int) -> str:
        return f"{self.pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def parse_json(text_or_data: str | Mapping[str, Any], origin: str) -> JsonPlace:
    """Return the document, which must be an object.

    Raises:
        BootstrapError: The text is not JSON.
    """
    value: Any = text_or_data
    if isinstance(text_or_data, str):
        try:
            value = json.loads(text_or_data, parse_constant=_refuse_constant, object_pairs_hook=_members)
        except (ValueError, RecursionError) as error:
            raise BootstrapError(f"bootstrap {origin}: not valid JSON: {error}") from error
    root = JsonPlace(value, "", origin)
    if not isinstance(value, Mapping):
        root.fail(f"must be an object, is {_kind(value)}")
    return root


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {json.dumps(key)}")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case Mapping():
            return "an object"
        case _:
            return type(value).__name__
