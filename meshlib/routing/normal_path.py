"""Paths in one spelling: dot segments resolved, escapes that need none written out, what must be escaped escaped.

Source: Envoy `PathUtil`, which takes it from the URL library of Chromium (`url_canon_path.cc`); which characters are
written how, and what becomes of parameters of dot segments, was asked of Envoy 1.40.
"""

import re
from typing import Final

__all__ = ["canonical_path", "unescaped_slashes", "with_single_slashes", "without_dot_parameters"]

_UNESCAPED: Final = frozenset(b"-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_ESCAPED: Final = frozenset(' "<>^`{|}\x7f') | frozenset(map(chr, range(1, 32)))
_CANONICAL: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,:;=@\[\]-]|/(?!\.))*")
"""Most paths: nothing in them is to be changed."""
_DOT_PARAMETERS: Final = re.compile(r"(?<=/)(\.\.?);[^/]*")
_HEX: Final = re.compile("[0-9A-Fa-f]{2}")
_SLASHES: Final = re.compile("//+")
_SLASH: Final = re.compile("%2[Ff]")
_BACKSLASH: Final = re.compile("%5[Cc]")


def unescaped_slashes(path: str) -> str:
    """Return a path without query with its escaped slashes and backslashes written out."""
    if "%" not in path:
        return path
    return _BACKSLASH.sub(r"\\", _SLASH.sub("/", path))


def with_single_slashes(path: str) -> str:
    """Return a path without query in which no slash follows another.

    Envoy puts it together from its segments, with a slash before and one behind: of nothing but slashes two are left.
    """
    if "//" not in path:
        return path
    return "//" if not path.strip("/") else _SLASHES.sub("/", path)


def without_dot_parameters(path: str) -> str:
    """Return a path without query with its dot segments bare (`/a/..;x/b`); those that are escaped keep their parameters.

    The path of a request that is then refused is the one without them.
    """
    return _DOT_PARAMETERS.sub(r"\1", path)


def canonical_path(path: str) -> str | None:
    """Return a path without query in its one spelling; None: it has none, and the request is refused.

    Parameters of a dot segment go with it, as `without_dot_parameters` says.
    """
    if _CANONICAL.fullmatch(path):
        return path
    path = without_dot_parameters(path)
    out: list[str] = []
    lone = -9  # where the last per cent sign stands that begins no escape
    position, size = 0, len(path)
    while position < size:
        char = path[position]
        if dot := _dot_length(path, position):
            if out[-1:] != ["/"]:
                out.append(".")
                position += dot
                continue
            after = position + dot
            second = _dot_length(path, after)
            if _ends_segment(path, after):
                position = after + 1
            elif second and _ends_segment(path, after + second):
                _leave_segment(out)
                position = after + second + 1
            else:
                out.append(".")
                position = after
        elif char == "%":
            digits = path[position + 1 : position + 3]
            if _HEX.fullmatch(digits) is None:
                lone = len(out)
                out.append(char)
                position += 1
                continue
            code = int(digits, 16)
            if not code:
                return None
            position += 3
            if code not in _UNESCAPED:
                out += ("%", *digits)
                continue
            out.append(chr(code))
            # What was written out must not make an escape of a per cent sign before it: `%%41a` is not `%Aa`.
            made = "".join(out[lone + 1 :]) + path[position : position + 1] if lone >= len(out) - 3 else ""
            if _HEX.match(made):
                out[lone : lone + 1] = "%25"
        else:
            if char == "\\":
                out.append("/")
            elif char in _ESCAPED:
                out += f"%{ord(char):02X}"
            elif not char.isascii():
                out += "".join(f"%{byte:02X}" for byte in char.encode(errors="replace"))
            else:
                out.append(char)
            position += 1
    return "".join(out)


def _dot_length(path: str, position: int) -> int:
    """Return the length of the dot that stands there, escaped or not; 0: none does."""
    if path[position : position + 1] == ".":
        return 1
    return 3 if path[position : position + 3].lower() == "%2e" else 0


def _ends_segment(path: str, position: int) -> bool:
    return position >= len(path) or path[position] in "/\\"


def _leave_segment(out: list[str]) -> None:
    """Take the last segment away; `out` ends with a slash, and keeps its first one."""
    if len(out) == 1:
        return
    out.pop()
    while len(out) > 1 and out[-1] != "/":
        out.pop()
