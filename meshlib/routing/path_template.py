"""URI templates (`envoy.path.match.uri_template`): `/v1/{name=*}/items/**`.

`*` is one path segment that is not empty, `**` the rest (may be empty, must come last), `{v}` is `{v=*}`, and `{v=...}`
names what its pattern matches. Templates become RE2 patterns that must match the whole path.
"""

import re
from collections.abc import Callable

from meshlib.matching import compile_regex

__all__ = ["compile_template", "template_regex"]

# Only templates, which are short and read once, meet this pattern; requests never do.
_TOKEN = re.compile(
    r"\{(?P<name>[A-Za-z][A-Za-z0-9_]*)(?:=(?P<pattern>[^{}]*))?\}|(?P<glob>\*\*?)|(?P<literal>[^{}*]+)"
)
_SEGMENT = "[^/]+"
_REST = ".*"


def _globs(pattern: str) -> str:
    parts = re.split(r"(\*\*|\*)", pattern)
    return "".join({"*": _SEGMENT, "**": _REST}.get(part, re.escape(part)) for part in parts)


def template_regex(template: str) -> str:
    """Return the RE2 pattern of a template; its variables are named groups.

    Raises:
        ValueError: Not a template: no leading slash, unbalanced braces, `**` before the end, a name used twice.
    """
    if not template.startswith("/"):
        raise ValueError("a path template starts with /")
    regex: list[str] = []
    names: set[str] = set()
    position = 0
    while position < len(template):
        token = _TOKEN.match(template, position)
        if token is None:
            raise ValueError(f"bad path template at {template[position:]!r}")
        position = token.end()
        glob = token["glob"] or ""
        if token["name"] is not None:
            if token["name"] in names:
                raise ValueError(f"variable {token['name']!r} occurs twice")
            names.add(token["name"])
            glob = "*" if token["pattern"] is None else token["pattern"]
            if not glob:
                raise ValueError(f"variable {token['name']!r} has an empty pattern")
            regex.append(f"(?P<{token['name']}>{_globs(glob)})")
        elif glob:
            regex.append(_globs(glob))
        else:
            regex.append(re.escape(token["literal"]))
        if "**" in glob and (position < len(template) or not glob.endswith("**")):
            raise ValueError("** must be last")
    return "".join(regex)


def compile_template(template: str) -> Callable[[str], bool]:
    """Compile a template into a test of a path without query.

    Raises:
        ValueError: Not a template.
    """
    return compile_regex(template_regex(template))
