"""URI templates (`envoy.path.match.uri_template` and `...rewrite.uri_template`): `/v1/{name=*}/items/**`.

`*` stands for one path segment that is not empty, `**` for any number of them; a segment may have one variable with
literal text around it (`{name}.json`). Decoders check templates here, routing compiles them.

Source: Envoy 1.40, asked with some hundred templates. Like there, literal text is taken as it stands for a part of a
regex in which only `$ ( ) + .` are escaped, so `a*b` means what it means in a regex; text that is no regex then
(`/a**`) matches nothing.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from meshlib.matching import StringTest, compile_regex, to_bytes, wire_regex

__all__ = ["Template", "compile_template", "compile_template_rewrite", "parse_template"]

MAX_VARIABLES: Final = 5
MAX_NAME: Final = 16
_CHARACTERS: Final = r"a-zA-Z0-9\-._~%!$&'()*+,;:@="
_SEGMENT: Final = f"[{_CHARACTERS}]+"
_REST: Final = f"[{_CHARACTERS}/]*"
_TEXT: Final = re.compile(f"[{_CHARACTERS}]+")
_ALL: Final = re.compile(f"[{_CHARACTERS}{{}}/]+")
_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
_REWRITE: Final = re.compile(rf"\{{(?P<name>[^{{}}]*)\}}|(?P<text>[{_CHARACTERS}/]+)")
_ESCAPES: Final = str.maketrans({character: f"\\{character}" for character in "$()+."})


@dataclass(frozen=True, slots=True)
class Template:
    """Attributes:
    regex: RE2, of the whole path; its groups are the variables.
    names: Of the variables, in order.
    """

    regex: str
    names: tuple[str, ...]


class _Parser:
    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_over = False

    def glob(self, text: str) -> str:
        """Turn `*` or `**` into a regex; nothing that can be long may follow something that can."""
        if self.is_over:
            raise ValueError("has a glob after **")
        self.is_over = text == "**"
        return _REST if self.is_over else _SEGMENT

    def literal(self, text: str) -> str:
        if not _TEXT.fullmatch(text):
            raise ValueError(f"has {text!r} where text should be")
        return text.translate(_ESCAPES)

    def part(self, text: str) -> str:
        return self.glob(text) if text in ("*", "**") else self.literal(text)

    def variable(self, text: str) -> str:
        """Turn what is between braces into a group."""
        name, equals, pattern = text.partition("=")
        if not _NAME.fullmatch(name):
            raise ValueError(f"has a variable of the name {name!r}")
        if len(name) > MAX_NAME:
            raise ValueError(f"has a variable whose name is longer than {MAX_NAME} characters")
        if name in self.names:
            raise ValueError(f"has the variable {name!r} twice")
        self.names.append(name)
        if len(self.names) > MAX_VARIABLES:
            raise ValueError(f"has more than {MAX_VARIABLES} variables")
        if equals and not pattern:
            raise ValueError(f"has an empty pattern for {name!r}")
        parts = []
        for part in (pattern or "*").split("/"):
            if part.startswith("*") and part not in ("*", "**"):
                raise ValueError(f"has text behind a glob: {part!r}")
            parts.append(self.part(part))
        return f"({'/'.join(parts)})"

    def segment(self, text: str) -> str:
        glob = "**" if text.startswith("**") else "*" if text.startswith("*") else ""
        if glob:
            rest = text[len(glob) :]
            return self.glob(glob) + (self.literal(rest) if rest else "")
        before, opening, rest = text.partition("{")
        if not opening:
            return self.literal(text)
        inside, closing, after = rest.partition("}")
        if not closing:
            raise ValueError(f"has an open brace in {text!r}")
        regex = self.literal(before) if before else ""
        regex += self.variable(inside)
        return regex + (self.literal(after) if after else "")


def _segments(path: str) -> list[str]:
    """Split at the slashes that are not inside braces."""
    return re.split(r"/(?![^{}]*\})", path)


def parse_template(template: str) -> Template:
    """Read a template.

    Raises:
        ValueError: It is none; the text says why.
    """
    if not template.startswith("/"):
        raise ValueError("must start with /")
    if not _ALL.fullmatch(template):
        raise ValueError("has a character that a path template may not have")
    parser = _Parser()
    segments = _segments(template[1:])
    last = len(segments) - 1
    parts = ["" if not segment and index == last else parser.segment(segment) for index, segment in enumerate(segments)]
    return Template("/" + "/".join(parts), tuple(parser.names))


def compile_template(template: str) -> StringTest:
    """Compile a template into a test of a path without query.

    Raises:
        ValueError: Not a template.
    """
    regex = parse_template(template).regex
    try:
        return compile_regex(regex)
    except ValueError:
        return lambda path: False


def compile_template_rewrite(template: str, rewrite: str) -> Callable[[str], str]:
    """Compile a rewrite (`/n/{y}/{x}`) of paths that fit a template into a function of the path without query.

    Raises:
        ValueError: One of the two is not valid, or the rewrite names a variable that the template has not.
    """
    parsed = parse_template(template)
    if not rewrite.startswith("/") or "//" in rewrite:
        raise ValueError("must start with / and not have //")
    parts: list[str | int] = []
    position = 0
    while position < len(rewrite):
        token = _REWRITE.match(rewrite, position)
        if token is None:
            raise ValueError(f"cannot be read from {rewrite[position:]!r}")
        position = token.end()
        if token["text"] is not None:
            parts.append(token["text"])
        elif token["name"] in parsed.names:
            parts.append(parsed.names.index(token["name"]) + 1)
        else:
            raise ValueError(f"names {token['name']!r}, which is no variable of the path template")
    regex = wire_regex(parsed.regex)

    def replace(path: str) -> str:
        found = regex.fullmatch(to_bytes(path))
        if found is None:
            return ""
        return "".join(part if isinstance(part, str) else found.group(part).decode("latin-1") for part in parts)

    return replace
