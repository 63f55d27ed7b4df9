"""Writes times as `%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%` and the like ask for.

Formats are those of `strftime` in the C locale, and what Envoy and Abseil have beside them: `%f` and `%1f` to `%9f` (parts
of a second), `%E3S`, `%E*S`, `%E4Y`, `%Ez`, `%:z`, `%ET`. What none of them knows stands as it is written.

Source: Envoy `DateFormatter` and `SystemTimeFormatter`, Abseil `FormatTime`; all of it was asked of Envoy 1.40.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["compile_time"]

_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DEFAULT: Final = "%Y-%m-%dT%H:%M:%E3SZ"
_DEFAULT_LOCAL: Final = "%Y-%m-%dT%H:%M:%E3S%z"
# Envoy looks for these first, wherever a per cent sign stands.
_OWN: Final = re.compile(r"%(?P<digits>[1-9])?f|%s|%E(?P<count>[1-9]|\*)(?P<part>[Sf])")
_TOKEN: Final = re.compile(
    r"%(?:E(?P<digits>[0-9]{1,4})(?P<part>[Sf])|(?P<word>E4Y|E\*z|Ez|ET|:{1,3}z)|(?P<how>[EO]?)(?P<letter>[A-Za-z%]))"
)
_MOST_DIGITS: Final = 18
_MOST: Final = 1024
"""Abseil's limits: of digits that it writes of parts of a second, and of those that may be asked for."""
_OTHERWISE: Final = {"E": frozenset("cnprstuxyCPRXYZ"), "O": frozenset("bdeghjklmprstuwyzBCGHIMPRSTUVWZ")}
"""What glibc writes with these letters before it, which change nothing in the C locale."""

_Writer = Callable[[datetime], str]


def _seconds(at: datetime) -> str:
    return str((at - _EPOCH) // timedelta(seconds=1))


_LETTERS: Final[dict[str, _Writer]] = {
    "a": lambda at: _DAYS[at.weekday()][:3],
    "A": lambda at: _DAYS[at.weekday()],
    "b": lambda at: _MONTHS[at.month - 1][:3],
    "B": lambda at: _MONTHS[at.month - 1],
    "C": lambda at: f"{at.year // 100:02}",
    "d": lambda at: f"{at.day:02}",
    "e": lambda at: f"{at.day:2}",
    "g": lambda at: f"{at.isocalendar().year % 100:02}",
    "G": lambda at: str(at.isocalendar().year),
    "h": lambda at: _MONTHS[at.month - 1][:3],
    "H": lambda at: f"{at.hour:02}",
    "I": lambda at: f"{at.hour % 12 or 12:02}",
    "j": lambda at: f"{_day_of_year(at):03}",
    "k": lambda at: f"{at.hour:2}",
    "l": lambda at: f"{at.hour % 12 or 12:2}",
    "m": lambda at: f"{at.month:02}",
    "M": lambda at: f"{at.minute:02}",
    "p": lambda at: "PM" if at.hour >= 12 else "AM",
    "P": lambda at: "pm" if at.hour >= 12 else "am",
    "s": _seconds,
    "S": lambda at: f"{at.second:02}",
    "t": lambda at: "\t",
    "u": lambda at: str(at.isoweekday()),
    "U": lambda at: f"{(_day_of_year(at) + 6 - at.isoweekday() % 7) // 7:02}",
    "V": lambda at: f"{at.isocalendar().week:02}",
    "w": lambda at: str(at.isoweekday() % 7),
    "W": lambda at: f"{(_day_of_year(at) + 6 - at.weekday()) // 7:02}",
    "y": lambda at: f"{at.year % 100:02}",
    "Y": lambda at: str(at.year),
    "z": lambda at: _zone(at, "", 2),
    "Z": lambda at: at.tzname() or "",
    "%": lambda at: "%",
}
_WHOLES: Final = {
    "c": "%a %b %e %H:%M:%S %Y",
    "D": "%m/%d/%y",
    "F": "%Y-%m-%d",
    "r": "%I:%M:%S %p",
    "R": "%H:%M",
    "T": "%H:%M:%S",
    "x": "%m/%d/%y",
    "X": "%H:%M:%S",
}
_WORDS: Final[dict[str, _Writer]] = {
    "E4Y": lambda at: f"{at.year:04}",
    "ET": lambda at: "T",
    "Ez": lambda at: _zone(at, ":", 2),
    ":z": lambda at: _zone(at, ":", 2),
    "E*z": lambda at: _zone(at, ":", 3),
    "::z": lambda at: _zone(at, ":", 3),
    ":::z": lambda at: _zone(at, ":", 1),
}


def compile_time(text: str, *, is_local: bool) -> Callable[[int], str]:
    """Compile a format of times; empty: the default one.

    Args:
        is_local: In the time zone of this machine, else UTC.

    Returns:
        Writes microseconds since the epoch.
    """
    write = _compile(text or (_DEFAULT_LOCAL if is_local else _DEFAULT))

    def of_time(time_us: int) -> str:
        at = _EPOCH + timedelta(microseconds=time_us)
        return write(at.astimezone() if is_local else at)

    return of_time


def _compile(text: str) -> _Writer:
    parts: list[_Writer] = []
    position = 0
    for found in _OWN.finditer(text):
        before = text[position : found.start()]
        position = found.end()
        parts += _tokens(before + "%S" if found["part"] == "S" else before)
        if found["count"] is not None:
            parts.append(_parts_of_second(found["count"], found["part"]))
        else:
            parts.append(_seconds if found[0] == "%s" else _fraction(int(found["digits"] or 9)))
    parts += _tokens(text[position:])
    return lambda at: "".join([part(at) for part in parts])


def _tokens(text: str) -> list[_Writer]:
    parts: list[_Writer] = []
    position = 0
    for found in _TOKEN.finditer(text):
        parts.append(_literal(text[position : found.start()]))
        parts.append(_token(found))
        position = found.end()
    parts.append(_literal(text[position:]))
    return parts


def _token(found: "re.Match[str]") -> _Writer:
    digits, how, letter = found["digits"], found["how"], found["letter"]
    if digits is not None:
        return _literal(found[0]) if int(digits) > _MOST else _whole_second(int(digits), found["part"])
    if letter is None:
        return _WORDS[found["word"]]
    if how and letter not in _OTHERWISE[how]:
        return _literal(found[0])
    if letter in _WHOLES:
        return _compile(_WHOLES[letter])
    return _LETTERS.get(letter) or _literal(found[0])


def _literal(text: str) -> _Writer:
    return lambda at: text


def _fraction(digits: int) -> _Writer:
    return lambda at: f"{at.microsecond:06}{'0' * _MOST_DIGITS}"[: min(digits, _MOST_DIGITS)]


def _parts_of_second(count: str, part: str) -> _Writer:
    """Compile what `%E3S` has after its seconds, or `%E3f`; `*` stands for as many digits as there are."""
    if count != "*":
        write = _fraction(int(count))
        return write if part == "f" else lambda at: "." + write(at)
    digits: _Writer = lambda at: f"{at.microsecond:06}".rstrip("0")  # noqa: E731
    if part == "f":
        return lambda at: digits(at) or "0"
    return lambda at: f".{digits(at)}".rstrip(".")


def _whole_second(count: int, part: str) -> _Writer:
    """Compile `%E0S`, `%E12f` and the like, of which only Abseil knows."""
    write = _fraction(count)
    return write if part == "f" else lambda at: f"{at.second:02}.{write(at)}".rstrip(".")


def _day_of_year(at: datetime) -> int:
    return at.timetuple().tm_yday


def _zone(at: datetime, separator: str, fields: int) -> str:
    """Write the distance from UTC: hours and minutes; seconds too with three fields; with one, no more than it needs."""
    seconds = int((at.utcoffset() or timedelta()).total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("+", seconds)
    parts = [seconds // 3600, seconds // 60 % 60, seconds % 60]
    if fields == 1:
        fields = 3 if parts[2] else 2 if parts[1] else 1
    return sign + separator.join(f"{part:02}" for part in parts[:fields])
