"""What a route changes in a request before it goes out: headers, then host, then path.

Source: Envoy `RouteEntryImplBase::finalizeRequestHeaders`. The host of a weighted cluster is set before everything
else and leaves no trace; a host that the route itself rewrites is kept in `x-envoy-original-host`, a path in
`x-envoy-original-path`.
"""

from collections.abc import Callable
from typing import Any

from meshlib.matching import INLINE_REQUEST_HEADERS, ascii_lower, to_bytes, wire_regex
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RegexRewrite, RouteAction
from meshlib.path_template import compile_template_rewrite
from meshlib.routing.format import Facts, Formatter, Scene, compile_format
from meshlib.routing.headers import Mutator, append_entry, set_entry
from meshlib.routing.matchers import path_of

__all__ = [
    "PathRewrite",
    "check_regex_rewrite",
    "compile_path_rewrite",
    "compile_regex_rewrite",
    "compile_rewrite",
    "rewrite_host",
    "with_path",
]

PathRewrite = Callable[[str], str]
"""Old path with query to new path with query; empty: the path stays, and nothing tells of a rewrite."""


def _substitution(text: str, groups: int) -> list[bytes | int]:
    r"""Split an RE2 substitution (`\0` the match, `\1` a group, `\\` a backslash) into texts and group numbers."""
    parts: list[bytes | int] = []
    position = 0
    while (slash := text.find("\\", position)) >= 0:
        parts.append(to_bytes(text[position:slash]))
        following = text[slash + 1 : slash + 2]
        if following == "\\":
            parts.append(b"\\")
        elif following.isascii() and following.isdigit():
            if int(following) > groups:
                raise ValueError(f"substitution refers to group {following}, the regex has {groups}")
            parts.append(int(following))
        else:
            raise ValueError(f"bad substitution {text!r}: a backslash must be followed by a digit or a backslash")
        position = slash + 2
    parts.append(to_bytes(text[position:]))
    return parts


def compile_regex_rewrite(rewrite: RegexRewrite) -> Callable[[str], str]:
    """Compile RE2's global replace, which differs from Python's: no empty match right behind another match.

    Raises:
        ValueError: The regex or the substitution is not valid.
    """
    regex: Any = wire_regex(rewrite.pattern)
    parts = _substitution(rewrite.substitution, regex.groups)

    def replace(text: str) -> str:
        subject = to_bytes(text)
        out: list[bytes] = []
        position = last_end = 0
        matched = False
        while position <= len(subject):
            found = regex.search(subject, position)
            if found is None:
                break
            start, end = found.span()
            out.append(subject[position:start])
            if matched and start == end == last_end:
                out.append(subject[start : start + 1])
                position = start + 1
                continue
            out.extend((found.group(part) or b"") if isinstance(part, int) else part for part in parts)
            position = last_end = end
            matched = True
        if not matched:
            return text
        out.append(subject[position:])
        return b"".join(out).decode("latin-1")

    return replace


def check_regex_rewrite(rewrite: RegexRewrite) -> str | None:
    """Return what is wrong with a regex rewrite, or None."""
    try:
        compile_regex_rewrite(rewrite)
    except ValueError as error:
        return str(error)
    return None


def compile_path_rewrite(prefix: str, regex: RegexRewrite | None, matcher: PathMatcher) -> PathRewrite | None:
    """Compile `prefix_rewrite` or `regex_rewrite`, or None when there is neither.

    A prefix takes the place of what the route's condition matched (plain concatenation: `/old/a` with `/` for `/old`
    is `//a`); for conditions on the whole path that is the path without query. A regex is replaced everywhere in the
    path without query. The query stays.

    Raises:
        ValueError: The regex or the substitution is not valid.
    """
    if prefix:
        if matcher.kind in (PathKind.PREFIX, PathKind.SEPARATED_PREFIX, PathKind.PATH):
            matched = ascii_lower(matcher.value)
            length = len(matched)
            # It does not start so when only a path without its parameters does.
            return lambda path: prefix + path[length:] if ascii_lower(path[:length]) == matched else ""
        return lambda path: prefix + path[len(path_of(path)) :]
    if regex is not None:
        replace = compile_regex_rewrite(regex)

        def rewrite(path: str) -> str:
            plain = path_of(path)
            replaced = replace(plain)
            return replaced + path[len(plain) :] if replaced else ""

        return rewrite
    return None


def with_path(head: RequestHead, path: str) -> RequestHead:
    """Return the head with another path, the old one kept in `x-envoy-original-path`."""
    entries = list(head.headers.items)
    set_entry(entries, "x-envoy-original-path", head.path)
    return head.but(path=path, headers=Headers(entries))


def _set_host(entries: list[tuple[str, str]], old: str, *, append_forwarded: bool) -> None:
    """Leave the traces of a host rewrite."""
    if append_forwarded and old:
        forwarded = [value for name, value in entries if name == "x-forwarded-host"]
        last = ",".join(forwarded).rpartition(",")[2].strip()
        if last != old:
            append_entry(entries, "x-forwarded-host", old, INLINE_REQUEST_HEADERS)
    set_entry(entries, "x-envoy-original-host", old)


def rewrite_host(head: RequestHead, host: str, *, append_forwarded: bool = False) -> RequestHead:
    """Return the head with another host, the old one kept in headers; for `auto_host_rewrite`, once an endpoint is known.

    Args:
        host: Empty: nothing changes.
        append_forwarded: `append_x_forwarded_host`.
    """
    if not host:
        return head
    entries = list(head.headers.items)
    _set_host(entries, head.authority, append_forwarded=append_forwarded)
    return head.but(authority=host, headers=Headers(entries))


def _compile_format(text: str, facts: Facts, absent: str) -> Formatter | None:
    compiled = compile_format(text, facts, absent=absent)
    if isinstance(compiled, str):
        return (lambda scene: compiled) if compiled else None
    return compiled


def _compile_host(action: RouteAction, facts: Facts) -> Callable[[RequestHead], str] | None:
    """Compile the route's own host rewrite, `auto_host_rewrite` apart; an empty answer changes nothing."""
    if action.host_rewrite_literal:
        return lambda head: action.host_rewrite_literal
    if action.host_rewrite_header:
        name = action.host_rewrite_header.lower()
        return lambda head: head.headers.get(name) or ""
    if action.host_rewrite_regex is not None:
        replace = compile_regex_rewrite(action.host_rewrite_regex)
        return lambda head: replace(path_of(head.path))
    render = _compile_format(action.host_format, facts, "-")
    return None if render is None else lambda head: render(Scene(head, attempts=1))


def _compile_new_path(action: RouteAction, matcher: PathMatcher, facts: Facts) -> Callable[[RequestHead], str] | None:
    """Compile the route's path rewrite; of several ways at most one is given (decoded so)."""
    if action.template_rewrite:
        fill = compile_template_rewrite(matcher.value, action.template_rewrite)

        def by_template(head: RequestHead) -> str:
            plain = path_of(head.path)
            filled = fill(plain)
            return filled + head.path[len(plain) :] if filled else ""

        return by_template
    render = _compile_format(action.path_format, facts, "")
    if render is not None:

        def by_format(head: RequestHead) -> str:
            rendered = render(Scene(head, attempts=1))
            return rendered + head.path[len(path_of(head.path)) :] if rendered else ""

        return by_format
    new_path = compile_path_rewrite(action.prefix_rewrite, action.regex_rewrite, matcher)
    return None if new_path is None else lambda head: new_path(head.path)


def compile_rewrite(
    action: RouteAction,
    matcher: PathMatcher,
    mutator: Mutator,
    weight: Mutator | None = None,
    weight_host: str = "",
    facts: Facts | None = None,
) -> Callable[[RequestHead], RequestHead] | None:
    """Compile everything that a route does to a request, or None when it does nothing.

    Args:
        mutator: Of route, virtual host and route configuration.
        weight: Of the chosen weighted cluster; runs before everything else.
        weight_host: Its `host_rewrite_literal`, which the levels above see already.
        facts: What formats may speak of.

    Raises:
        ValueError: A regex, substitution, template or format is not valid.
    """
    facts = facts or Facts()
    new_path = _compile_new_path(action, matcher, facts)
    new_host = _compile_host(action, facts)
    append_forwarded = action.append_x_forwarded_host
    if not (mutator or weight or new_path or new_host or weight_host):
        return None

    def rewrite(head: RequestHead) -> RequestHead:
        headers, authority = head.headers, head.authority
        if weight:
            headers = weight.apply(headers, head)
        authority = weight_host or authority
        seen = head.but(authority=authority, headers=headers)
        if mutator:
            headers = mutator.apply(headers, seen)
            seen = head.but(authority=authority, headers=headers)
        host = new_host(seen) if new_host is not None else ""
        if host:
            entries = list(headers.items)
            _set_host(entries, authority, append_forwarded=append_forwarded)
            authority, headers = host, Headers(entries)
            seen = head.but(authority=authority, headers=headers)
        rewritten = new_path(seen) if new_path is not None else ""
        return with_path(seen, rewritten) if rewritten else seen

    return rewrite
