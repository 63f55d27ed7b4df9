"""Renders the bodies that a `SubstitutionFormatString` makes: texts, and JSON whose strings are formats.

Source: Envoy `SubstitutionFormatStringUtils`, `JsonFormatterImpl`.
"""

import json
from collections.abc import Callable

from meshlib.model.local_reply import BodyFormat, JsonObject, JsonValue
from meshlib.routing.format import Facts, Scene, compile_format, compile_value

__all__ = ["Body", "compile_body"]

Body = Callable[[Scene], bytes]
_NOTHING = object()


def compile_body(form: BodyFormat, facts: Facts) -> Body:
    """Compile a format of bodies.

    Raises:
        ValueError: A format that is not valid.
    """
    absent = "" if form.omits_empty else "-"
    if form.fields is None:
        text = compile_format(form.text or "", facts, absent=absent)
        render = (lambda scene: text) if isinstance(text, str) else text
        return lambda scene: render(scene).encode("latin-1", "replace")
    make = _compile_json(form.fields, facts, absent, omits=form.omits_empty)

    def body(scene: Scene) -> bytes:
        found = make(scene)
        text = json.dumps({} if found is _NOTHING else found, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8", "surrogateescape") + b"\n"

    return body


def _compile_json(value: JsonValue, facts: Facts, absent: str, *, omits: bool) -> Callable[[Scene], object]:
    """Compile a value; it returns `_NOTHING` where it is to be left out."""
    if isinstance(value, str):
        read = compile_value(value, facts, absent=absent)
        if not omits:
            return read

        def kept(scene: Scene) -> object:
            found = read(scene)
            return _NOTHING if found is None else found

        return kept
    if isinstance(value, JsonObject):
        fields = tuple((name, _compile_json(inner, facts, absent, omits=omits)) for name, inner in value.fields)

        def make_object(scene: Scene) -> object:
            made = {name: found for name, make in fields if (found := make(scene)) is not _NOTHING}
            return _NOTHING if omits and not made else made

        return make_object
    if isinstance(value, tuple):
        items = tuple(_compile_json(inner, facts, absent, omits=omits) for inner in value)
        return lambda scene: [found for make in items if (found := make(scene)) is not _NOTHING]
    plain: object = value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**64:
        plain = int(value)
    if omits and value is None:
        plain = _NOTHING
    return lambda scene: plain
