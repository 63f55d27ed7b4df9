"""Answers of functions that may be used again: `@mesh.call(..., method="GET", cache=ResponseCache())`.

It holds what a function returned when that is a response of httpx or requests, or looks like one (`status_code`,
`headers`, and the body read into `content`), for as long as the response itself says. Whoever serves many users is a
shared cache (RFC 9111), so nothing is kept that is private, sets a cookie, or answers a request with credentials that
the function's arguments do not show. There is no validation of old responses: `no-cache` is not kept.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final

from meshlib.options import check_count
from meshlib.ports import Lock

__all__ = ["CacheStatistics", "ResponseCache"]

STORABLE: Final = frozenset({200, 203, 204, 300, 301, 302, 307, 308, 404, 410})
"""Of those, a response to another request like it would be the same."""
SAME_EVERYWHERE: Final = frozenset({"accept", "accept-encoding", "user-agent"})
"""Request headers that a client writes by itself, the same for all requests of a function."""
MAX_SECONDS: Final = 2**31
"""RFC 9111, section 1.2.2: more than that means this."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What a cache has done.

    Attributes:
        entries: Held now.
        hits: Calls answered from it.
        misses: Calls that found nothing fresh.
        stale: Calls that failed and were answered with what had become old (`stale-if-error`).
    """

    entries: int
    hits: int
    misses: int
    stale: int


@dataclass(frozen=True, slots=True)
class _Entry:
    response: Any
    fresh_until: float
    usable_until: float


class ResponseCache:
    """Holds responses for as long as their `Cache-Control` or `Expires` says. Any thread or task may use it.

    One cache may serve several functions. The response handed out is the very object that was kept: don't change it.
    """

    def __init__(self, *, max_entries: int = 1000, max_body_bytes: int = 1_000_000) -> None:
        """Make an empty cache.

        Args:
            max_entries: The one used least recently leaves when there would be more. At least 1.
            max_body_bytes: Responses with a larger body are not kept.

        Raises:
            TypeError: A limit that is no whole number.
            ValueError: One below 1.
        """
        check_count("ResponseCache: max_entries", max_entries)
        check_count("ResponseCache: max_body_bytes", max_body_bytes)
        self._max_entries = max_entries
        self._max_body_bytes = max_body_bytes
        # Guarded by the lock:
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._hits = self._misses = self._stale = 0

    def find(self, key: Hashable, now: float) -> tuple[Any] | None:
        """Return a fresh response, in a tuple as it may be anything; None: there is none."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and now < entry.fresh_until:
                self._entries.move_to_end(key)
                self._hits += 1
                return (entry.response,)
            if entry is not None and now >= entry.usable_until:
                del self._entries[key]
            self._misses += 1
            return None

    def find_stale(self, key: Hashable, now: float) -> tuple[Any] | None:
        """Return a response that may stand in for a failed call (RFC 5861, `stale-if-error`)."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or now >= entry.usable_until:
                return None
            self._stale += 1
            return (entry.response,)

    def store(self, key: Hashable, response: Any, told: Mapping[str, str], *, began_at: float, now: float) -> bool:
        """Keep a response if it may be kept.

        Args:
            told: The request headers among the function's arguments, lower-case names.
            began_at: Monotonic seconds when the request was made: a response is at least as old as that.
            now: Monotonic seconds.

        Returns:
            It is kept.
        """
        lifetime = _lifetime(response, told, self._max_body_bytes)
        if lifetime is None:
            return False
        fresh_s, stale_s = lifetime
        fresh_until = began_at + fresh_s
        if now >= fresh_until + stale_s:
            return False
        with self._lock:
            self._entries[key] = _Entry(response, fresh_until, fresh_until + stale_s)
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
        return True

    def clear(self) -> None:
        """Forget all responses."""
        with self._lock:
            self._entries.clear()

    def statistics(self) -> CacheStatistics:
        """Return what the cache has done so far."""
        with self._lock:
            return CacheStatistics(len(self._entries), self._hits, self._misses, self._stale)


def is_bypassed(told: Mapping[str, str]) -> bool:
    """Whether the request asks for an answer of the server itself, or for a part of one."""
    directives = _directives([told.get("cache-control", "")])
    return (
        "range" in told
        or "no-cache" in told.get("pragma", "")
        or not {"no-cache", "no-store"}.isdisjoint(directives)
        or directives.get("max-age") == "0"
    )


def _lifetime(response: Any, told: Mapping[str, str], max_body_bytes: int) -> tuple[float, float] | None:
    """Return for how long a response is fresh, and for how long after that it may replace an error, in seconds.

    Ages are taken from `Age` and the time that the request took: clocks of two machines are not compared.

    Returns:
        None: it must not be kept.
    """
    headers = getattr(response, "headers", None)
    if getattr(response, "status_code", None) not in STORABLE or not hasattr(headers, "items"):
        return None
    size = _body_size(response)
    if size is None or size > max_body_bytes:
        return None
    answer = _Fields(headers)
    control = _directives(answer.all("cache-control"))
    if not {"no-store", "no-cache", "private"}.isdisjoint(control) or answer.all("set-cookie"):
        return None
    sent = getattr(_request_of(response), "headers", None)
    asked = _Fields(sent if hasattr(sent, "items") else {})
    if asked.all("authorization") and "authorization" not in told and {"public", "s-maxage"}.isdisjoint(control):
        return None
    for name in _names(answer.all("vary")):
        if name == "*" or (asked.all(name) and name not in told and name not in SAME_EVERYWHERE):
            return None  # other values may be sent by other calls with the same arguments
    fresh_s = _fresh_s(answer, control)
    if fresh_s is None:
        return None
    age_s = max((_seconds(value) or 0 for value in answer.all("age")[:1]), default=0)
    stale_s = _seconds(control.get("stale-if-error")) or 0
    if not {"must-revalidate", "proxy-revalidate", "s-maxage"}.isdisjoint(control):
        stale_s = 0
    return float(fresh_s - age_s), float(stale_s)


def _fresh_s(answer: "_Fields", control: Mapping[str, str]) -> int | None:
    for name in ("s-maxage", "max-age"):
        if name in control:
            return _seconds(control[name])
    expires, date = answer.all("expires"), answer.all("date")
    if not expires or not date:
        return None
    try:
        return int((parsedate_to_datetime(expires[0]) - parsedate_to_datetime(date[0])).total_seconds())
    except (TypeError, ValueError):
        return None  # "Expires: 0" and the like: it was old when it came


def _body_size(response: Any) -> int | None:
    """Return the size of the body; None: it has not been read, and whoever reads it must not find it gone."""
    if getattr(response, "is_stream_consumed", True) is False or getattr(response, "_content", b"") is False:
        return None
    try:
        return len(response.content)
    except Exception:
        return None


def _request_of(response: Any) -> Any:
    try:
        return response.request
    except (AttributeError, RuntimeError):  # httpx raises the latter when there is none
        return None


class _Fields:
    """Header fields of a library's mapping."""

    def __init__(self, headers: Any) -> None:
        pairs = headers.multi_items() if hasattr(headers, "multi_items") else headers.items()
        self._items = [(str(name).lower(), str(value)) for name, value in pairs]

    def all(self, name: str) -> list[str]:
        return [value for found, value in self._items if found == name]


def _names(lines: Iterable[str]) -> list[str]:
    return [name.strip().lower() for line in lines for name in line.split(",") if name.strip()]


def _directives(lines: Iterable[str]) -> dict[str, str]:
    """Read `Cache-Control`; of a directive given twice the first counts. A comma in quotes only loses that directive."""
    found: dict[str, str] = {}
    for line in lines:
        for part in line.split(","):
            name, _, value = part.strip().partition("=")
            if name:
                found.setdefault(name.strip().lower(), value.strip().strip('"'))
    return found


def _seconds(text: str | None) -> int | None:
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return MAX_SECONDS if len(text) > 10 else min(int(text), MAX_SECONDS)
