"""Durations as people write them: `24h`, `1h30m`, `90s`, `500ms`."""

import re
from datetime import timedelta

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(text: str, option: str) -> timedelta:
    """Read a duration.

    Raises:
        ValueError: It is none, or not positive; the text names the option it was given with.
    """
    parts = _PART.findall(text)
    milliseconds = sum(float(number) * _UNITS_MS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or milliseconds <= 0:
        raise ValueError(f"{option} must be a duration such as 24h, 1h30m, 90s or 500ms, not {text!r}")
    try:
        return timedelta(milliseconds=milliseconds)
    except OverflowError:
        raise ValueError(f"{option}: {text} is too long") from None
