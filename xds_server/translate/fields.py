"""A small language for what a document may contain, and the strict decoder that reads it.

Decoding checks every field, reports what is wrong at its place, and returns a cleaned copy: wrong and unknown fields are
left out, old names are replaced by new ones, durations are in proto3 JSON form (`1.5s`), and what lacks a required part is
left out itself: an object without a required field, a list with a wrong item. So whoever translates a decoded document may rely on the types of what is there.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import re2

from xds_server.codes import DEPRECATED_FIELD, FIELD_NOT_SUPPORTED, INVALID_REGEX, SCHEMA, UNKNOWN_FIELD
from xds_server.model import Document, Position
from xds_server.translate.report import Report


class _Invalid:
    """The type of `INVALID`."""


INVALID = _Invalid()  # what decode returns for a value that must not be used
MAX_REGEX_BYTES = 1024  # Istio's limit
UINT32_MAX = 2**32 - 1

_GO_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNIT_NS = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
MAX_DURATION_NS = 315_576_000_000 * 10**9  # google.protobuf.Duration's range, about 10,000 years


@dataclass(frozen=True, slots=True)
class At:
    """Where in which document decoding stands, and where to complain."""

    document: Document
    report: Report
    path: tuple[str | int, ...] = ()

    def __truediv__(self, step: str | int) -> "At":
        return At(self.document, self.report, (*self.path, step))

    @property
    def position(self) -> Position | None:
        return self.document.position(*self.path)

    @property
    def written(self) -> Any:
        """What the document says here, before cleaning."""
        value: Any = self.document.content
        for step in self.path:
            value = value[step]
        return value

    @property
    def name(self) -> str:
        """The field's path as people write it: `spec.http[0].fault`."""
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")

    def error(self, message: str, code: str = SCHEMA) -> _Invalid:
        self.report.error(code, f"{self.name}: {message}", self.position)
        return INVALID


class Kind(Protocol):
    """What a field may hold."""

    def decode(self, value: Any, at: At) -> Any:
        """Return the cleaned value, or `INVALID` after reporting why."""


def describe(value: Any) -> str:
    """Name a YAML value's type for people."""
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "nothing" if value is None else type(value).__name__)


@dataclass(frozen=True, slots=True)
class Str:
    """Text. `check` returns what is wrong with it, or an empty string."""

    check: Callable[[str], str] | None = None
    empty: bool = True

    def decode(self, value: Any, at: At) -> Any:
        if not isinstance(value, str):
            hint = f'; write "{str(value).lower()}"' if isinstance(value, bool | int | float) else ""
            return at.error(f"must be a string, not {describe(value)}{hint}")
        if not value and not self.empty:
            return at.error("must not be empty")
        if "\x00" in value or any(0xD800 <= ord(char) <= 0xDFFF for char in value):
            return at.error("must be text without NUL characters and lone surrogates")
        if self.check is not None and (problem := self.check(value)):
            return at.error(problem)
        return value


@dataclass(frozen=True, slots=True)
class Regex:
    """A regular expression in RE2's syntax. `star`: a lone `*`, which is none, is allowed as Istio's word for anything."""

    star: bool = False

    def decode(self, value: Any, at: At) -> Any:
        text = Str(empty=False).decode(value, at)
        if isinstance(text, str) and not (self.star and text == "*"):
            if len(text.encode()) > MAX_REGEX_BYTES:
                return at.error(f"a regular expression may have at most {MAX_REGEX_BYTES} bytes")
            if problem := regex_problem(text):
                return at.error(f"{value!r} is not a regular expression in RE2's syntax: {problem}", INVALID_REGEX)
        return text


def regex_problem(text: str) -> str:
    """Return why RE2 does not accept an expression, or an empty string."""
    options = re2.Options()
    options.log_errors = False  # RE2 would write to stderr
    try:
        re2.compile(text, options)
    except re2.error as error:
        reason = error.args[0]
        return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
    return ""


@dataclass(frozen=True, slots=True)
class Int:
    low: int = 0
    high: int = UINT32_MAX

    def decode(self, value: Any, at: At) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return at.error(f"must be an integer, not {describe(value)}")
        if not self.low <= value <= self.high:
            return at.error(f"must be between {self.low} and {self.high}, not {value}")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    low: float
    high: float

    def decode(self, value: Any, at: At) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return at.error(f"must be a number, not {describe(value)}")
        if not self.low <= value <= self.high:  # false for NaN too
            return at.error(f"must be between {self.low:g} and {self.high:g}, not {value}")
        return value


@dataclass(frozen=True, slots=True)
class Bool:
    def decode(self, value: Any, at: At) -> Any:
        return value if isinstance(value, bool) else at.error(f"must be true or false, not {describe(value)}")


@dataclass(frozen=True, slots=True)
class Duration:
    """A duration such as `1.5s`, `100ms` or `1h30m`; decoded to seconds in proto3 JSON form."""

    low_ns: int = 10**6

    def decode(self, value: Any, at: At) -> Any:
        if not isinstance(value, str):
            hint = f"; write {value}s" if isinstance(value, int | float) and not isinstance(value, bool) else ""
            return at.error(f"must be a duration such as 2s or 500ms, not {describe(value)}{hint}")
        if (value != "0" and _GO_DURATION.sub("", value)) or not value:
            return at.error(f"{value!r} is not a duration; write for example 2s, 500ms or 1m30s")
        total = (
            sum(int(float(number) * _UNIT_NS[unit]) for number, unit in _GO_DURATION.findall(value))
            if len(value) < 40
            else -1
        )
        if not self.low_ns <= total <= MAX_DURATION_NS:
            return at.error(f"must be at least {duration_text(self.low_ns)} and a duration that fits, not {value}")
        return duration_text(total)


def duration_text(nanoseconds: int) -> str:
    """Return a duration in proto3 JSON form, exactly."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{seconds}.{rest:09d}".rstrip("0") + "s" if rest else f"{seconds}s"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some words. `other` gives words that exist and are refused, each with what to say about it."""

    words: tuple[str, ...]
    other: Mapping[str, str] = field(default_factory=dict)

    def decode(self, value: Any, at: At) -> Any:
        if isinstance(value, str):
            if value in self.words:
                return value
            if value in self.other:
                return at.error(f"{value} {self.other[value]}", FIELD_NOT_SUPPORTED)
        return at.error(f"must be one of {', '.join(self.words)}, not {value!r:.80}{suggestion(value, self.words)}")


@dataclass(frozen=True, slots=True)
class List:
    item: Kind
    low: int = 0

    def decode(self, value: Any, at: At) -> Any:
        if not isinstance(value, list):
            return at.error(f"must be a list, not {describe(value)}")
        if len(value) < self.low:
            return at.error(f"must have at least {self.low} item{'s' if self.low > 1 else ''}")
        decoded = [self.item.decode(item, at / index) for index, item in enumerate(value)]
        # Leaving single items out would shift the others, and with them the places of later complaints.
        return INVALID if any(item is INVALID for item in decoded) else decoded


@dataclass(frozen=True, slots=True)
class Map:
    """An object with names of the user's choice."""

    value: Kind
    check_key: Callable[[str], str] | None = None

    def decode(self, value: Any, at: At) -> Any:
        if not isinstance(value, dict):
            return at.error(f"must be an object, not {describe(value)}")
        result = {}
        for key, item in value.items():
            if Str(self.check_key).decode(key, at / key) is INVALID:
                continue
            if (decoded := self.value.decode(item, at / key)) is not INVALID:
                result[key] = decoded
        return result


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A field that exists in Istio and is refused here."""

    reason: str = "is not supported yet"

    def decode(self, value: Any, at: At) -> Any:
        return at.error(f"the field {at.path[-1]} {self.reason}", FIELD_NOT_SUPPORTED)


@dataclass(frozen=True, slots=True)
class Unchecked:
    """A field that is accepted as it is and translated to nothing, such as `status`."""

    def decode(self, value: Any, at: At) -> Any:
        return INVALID


@dataclass(frozen=True, slots=True)
class Renamed:
    """A deprecated name: honoured as `new`, unless that is there too."""

    kind: Kind
    new: str

    def decode(self, value: Any, at: At) -> Any:
        at.report.warning(DEPRECATED_FIELD, f"{at.name}: is deprecated; use {self.new}", at.position)
        return self.kind.decode(value, at)


@dataclass(frozen=True, slots=True)
class Obj:
    """An object with known fields.

    Attributes:
        required: Fields without which the object is worth nothing.
        one_of: Groups of which exactly one field must be there.
        at_most_one_of: Groups of which one field may be there.
        any_of: Groups of which at least one field must be there.
        whole: Fields that, once there, must be right, because the object would mean something else without them; `("*",)`:
            all.
        mistaken: Names that people write, and the field that they mean.
        check: Looks at the cleaned object and reports what contradicts; may return `INVALID`.
    """

    fields: Mapping[str, Kind]
    required: tuple[str, ...] = ()
    one_of: tuple[tuple[str, ...], ...] = ()
    at_most_one_of: tuple[tuple[str, ...], ...] = ()
    any_of: tuple[tuple[str, ...], ...] = ()
    whole: tuple[str, ...] = ()
    mistaken: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[dict[str, Any], At], Any] | None = None

    def decode(self, value: Any, at: At) -> Any:
        if not isinstance(value, dict):
            return at.error(f"must be an object, not {describe(value)}")
        result: dict[str, Any] = {}
        for key, item in value.items():
            kind = self.fields.get(key)
            if kind is None:
                self._unknown(key, item, at)
                continue
            decoded = kind.decode(item, at / key)
            if decoded is not INVALID:
                if isinstance(kind, Renamed):
                    if kind.new not in value:
                        result[kind.new] = decoded
                else:
                    result[key] = decoded
        present = frozenset(value)
        for name in self.required:
            if name not in present:
                return at.error(f"{name} is missing")
            if name not in result:
                return INVALID
        if not self._groups_hold(present, frozenset(result), at):
            return INVALID
        if any(name not in result for name in (self.fields if self.whole == ("*",) else self.whole) if name in present):
            return INVALID
        return result if self.check is None else self._checked(result, at)

    def _checked(self, result: dict[str, Any], at: At) -> Any:
        assert self.check is not None
        return INVALID if self.check(result, at) is INVALID else result

    def _unknown(self, key: str, item: Any, at: At) -> None:
        meant = self.mistaken.get(key)
        hint = f"; did you mean {meant}?" if meant else suggestion(key, tuple(self.fields))
        (at / key).error(f"unknown field{hint}", UNKNOWN_FIELD)
        if meant and (kind := self.fields.get(meant)) is not None and isinstance(item, dict):
            kind.decode(item, at / key)  # so that what is wrong inside is found in the same run

    def _groups_hold(self, present: frozenset[str], valid: frozenset[str], at: At) -> bool:
        """Check the groups as written; then tell whether what they ask for is there and right."""
        for group in self.one_of:
            found = [name for name in group if name in present]
            if len(found) != 1:
                given = f"has {' and '.join(found)}" if found else "has none"
                at.error(f"must have exactly one of {', '.join(group)}; it {given}")
                return False
        for group in self.at_most_one_of:
            found = [name for name in group if name in present]
            if len(found) > 1:
                at.error(f"must not have both {' and '.join(found)}")
                return False
        for group in self.any_of:
            if present.isdisjoint(group):
                at.error(f"must have {' or '.join(group)}")
                return False
        return not any(valid.isdisjoint(group) for group in (*self.one_of, *self.any_of))


def suggestion(given: Any, known: "tuple[str, ...]") -> str:
    """Return `; did you mean X?` when a known word is close to the given one, else nothing."""
    if not isinstance(given, str):
        return ""
    folded = {word.lower(): word for word in known}
    close = difflib.get_close_matches(given.lower().replace("_", ""), folded, n=1, cutoff=0.75)
    return f"; did you mean {folded[close[0]]}?" if close else ""
