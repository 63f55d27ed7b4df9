"""Changes of query parameters, as header mutation filters make them.

Envoy takes the query apart, decodes it, changes it, and writes it sorted by name; values that were there it writes
decoded, which breaks requests (a blank, `%0d%0a`). Here those stay as they were sent, and so does their escaping.

Source: Envoy `Mutations::mutateRequestHeaders`, `QueryParamsMulti`.
"""

from collections.abc import Callable, Sequence
from urllib.parse import quote, unquote

from meshlib.model.headers import AppendAction, QueryChange
from meshlib.routing.format import Facts, Scene, compile_format

__all__ = ["compile_query_changes"]

PathChange = Callable[[str, Scene], str]
_Parameters = dict[str, list[str]]
"""By name, decoded: each as it is written."""


def compile_query_changes(changes: Sequence[QueryChange], facts: Facts) -> PathChange:
    """Compile what makes a new path with query of an old one.

    Raises:
        ValueError: A format that is not valid.
    """
    steps = tuple(_compile(change, facts) for change in changes)

    def change(path: str, scene: Scene) -> str:
        plain, _, query = path.partition("?")
        parameters = _parsed(query)
        for step in steps:
            step(parameters, scene)
        written = "&".join(pair for name in sorted(parameters) for pair in parameters[name])
        return f"{plain}?{written}" if written else plain

    return change


def _parsed(query: str) -> _Parameters:
    found: _Parameters = {}
    if not query:
        return found
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        found.setdefault(unquote(name, "latin-1"), []).append(f"{name}={value}")
    return found


def _compile(change: QueryChange, facts: Facts) -> Callable[[_Parameters, Scene], None]:
    key, action = change.key, change.action
    if action is None:

        def remove(parameters: _Parameters, scene: Scene) -> None:
            parameters.pop(key, None)

        return remove
    template = compile_format(change.value, facts)

    def add(parameters: _Parameters, scene: Scene) -> None:
        is_there = key in parameters
        if (action is AppendAction.ADD_IF_ABSENT and is_there) or (
            action is AppendAction.OVERWRITE_IF_EXISTS and not is_there
        ):
            return
        value = template if isinstance(template, str) else template(scene)
        pair = f"{quote(key, safe='', encoding='latin-1', errors='replace')}={_quoted(value)}"
        if action is AppendAction.APPEND_IF_EXISTS_OR_ADD:
            parameters.setdefault(key, []).append(pair)
        else:
            parameters[key] = [pair]

    return add


def _quoted(value: str) -> str:
    """Escape a value; texts of the configuration are UTF-8, those of headers bytes."""
    encoding = "latin-1" if all(ord(char) < 256 for char in value) else "utf-8"
    return quote(value, safe="", encoding=encoding)
