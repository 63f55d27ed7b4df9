"""The ways in which the path of a request can be read.

A rule about paths sees the request target as it was sent, as Envoy's does. The framework behind routes on what it has
decoded, and applications clean paths further. Where these readings differ, a rule could be asked about one path and the
application serve another: `/%61dmin` is `/admin` to every framework, `/public/../admin` and `//admin` to some. So a
request is let in only if it may come in by each of its readings. What clients normally send has only one.

Not a reading of its own: `;parameters`, which no Python framework cuts off, and upper and lower case.
"""

import re
from urllib.parse import quote, unquote_to_bytes

__all__ = ["UNESCAPED", "other_readings", "path_part"]

UNESCAPED = "/:@!$&'()*+,;=-._~"
"""RFC 3986, section 3.3: what a path segment holds without an escape, and the slash."""
_AMBIGUOUS = re.compile(r"%|//|/\.|\\|[^\x21-\x7e]")
_SLASHES = re.compile(r"(?:/|\\|%5C)+")


def path_part(target: str) -> str:
    """Return a request target without query and fragment."""
    return target.partition("?")[0].partition("#")[0]


def other_readings(target: str, routed: bytes | None) -> tuple[str, ...]:
    """Return the paths that a request target may be taken for, other than itself.

    Args:
        target: As sent; it may have a query.
        routed: The path that the framework routes on, decoded; None: not known.

    Returns:
        Paths without query, escaped in the normal way. Empty for a usual request.
    """
    path = path_part(target)
    if _AMBIGUOUS.search(path) is None and (routed is None or routed == path.encode("ascii")):
        return ()
    if routed is None:
        routed = unquote_to_bytes(path.encode("latin-1", "replace"))
    decoded = quote(routed, safe=UNESCAPED)
    found = dict.fromkeys((decoded, _clean(decoded)))
    found.pop(path, None)
    return tuple(found)


def _clean(path: str) -> str:
    """Merge slashes and follow dot segments (RFC 3986, section 5.2.4)."""
    segments: list[str] = []
    parts = _SLASHES.sub("/", path).split("/")[1:]
    for part in parts:
        if part == "..":
            if segments:
                segments.pop()
        elif part != ".":
            segments.append(part)
    if parts and parts[-1] in (".", "..") and (not segments or segments[-1]):
        segments.append("")
    return "/" + "/".join(segments)
