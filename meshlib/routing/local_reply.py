"""Rewrites answers of the mesh itself as the listener wants them: status, body, headers.

An answer meets the route's header mutations first, then the first mapper whose test holds, then the body format of that
mapper or of all answers, and last the filters of the chain.

Source: Envoy `LocalReplyImpl::rewrite`, `Utility::prepareLocalReply`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import assert_never

from meshlib.matching import compile_header
from meshlib.model.headers import HeaderMutation
from meshlib.model.local_reply import (
    AllOf,
    AnyOf,
    BodyFormat,
    Comparison,
    HasFlag,
    JsonObject,
    JsonValue,
    ReplyMapper,
    ReplyRules,
    ReplyTest,
    RequestHas,
    StatusIs,
)
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.format import Facts, Scene, compile_format, compile_value
from meshlib.routing.headers import response_mutator

__all__ = ["ReplyRewriter", "RewrittenReply"]

_Test = Callable[[RequestHead, Scene], bool]
_Body = Callable[[Scene], bytes]
_NOTHING = object()
TEXT_TYPE = "text/plain"


@dataclass(frozen=True, slots=True)
class RewrittenReply:
    status: int
    headers: Headers
    body: bytes
    content_type: str  # of the format that made the body


class ReplyRewriter:
    """The rules of a listener, compiled for a route. Not changed after creation."""

    __slots__ = ("_format", "_mappers")

    def __init__(self, rules: ReplyRules, facts: Facts) -> None:
        """Compile rules.

        Raises:
            ValueError: A regex or a format that is not valid.
        """
        self._format = _compile_format(rules.body_format, facts)
        self._mappers = tuple(_Mapper(mapper, facts) for mapper in rules.mappers)

    def rewrite(self, status: int, headers: Headers, body: bytes, head: RequestHead, about: Scene) -> RewrittenReply:
        """Return the answer as it is to be.

        Args:
            headers: After the mutations of the route.
            head: The request.
            about: What is known of the answer, its status and headers apart.
        """
        scene = replace(about, head=head, response=headers, status=status, line=status)
        before, types = body, headers.all("content-type")
        chosen = self._format
        for mapper in self._mappers:
            if not mapper.test(head, scene):
                continue
            headers = mapper.mutator.apply(headers, head, scene) if mapper.mutator else headers
            body = body if mapper.body is None else mapper.body
            status = mapper.status or status
            chosen = mapper.format or chosen
            scene = replace(scene, response=headers, status=status, line=status)
            break
        has_own_type = headers.all("content-type") != types
        content_type = TEXT_TYPE
        if chosen is not None:
            make, content_type = chosen
            body = make(replace(scene, body=body))
        if body and ("content-type" not in headers or (body != before and not has_own_type)):
            kept = (entry for entry in headers.items if entry[0] != "content-type")
            headers = Headers((*kept, ("content-type", content_type)))
        return RewrittenReply(status, headers, body, content_type)


class _Mapper:
    __slots__ = ("body", "format", "mutator", "status", "test")

    def __init__(self, mapper: ReplyMapper, facts: Facts) -> None:
        self.test = _compile_test(mapper.test)
        self.status = mapper.status
        self.body = mapper.body
        self.mutator = response_mutator([HeaderMutation(response_add=mapper.headers)], facts)
        self.format = _compile_format(mapper.body_format, facts)


def _compile_test(test: ReplyTest) -> _Test:
    match test:
        case StatusIs(comparison, value):
            match comparison:
                case Comparison.EQ:
                    return lambda head, scene: scene.status == value
                case Comparison.GE:
                    return lambda head, scene: scene.status >= value
                case Comparison.LE:
                    return lambda head, scene: scene.status <= value
                case Comparison.NE:
                    return lambda head, scene: scene.status != value
                case _:
                    assert_never(comparison)
        case HasFlag(flags):
            if not flags:
                return lambda head, scene: bool(scene.flag)
            return lambda head, scene: not flags.isdisjoint(scene.flag.split(","))
        case RequestHas(header):
            fits = compile_header(header)
            return lambda head, scene: fits(head)
        case AllOf(tests):
            compiled = tuple(map(_compile_test, tests))
            return lambda head, scene: all(one(head, scene) for one in compiled)
        case AnyOf(tests):
            compiled = tuple(map(_compile_test, tests))
            return lambda head, scene: any(one(head, scene) for one in compiled)
        case _:
            assert_never(test)


def _compile_format(form: BodyFormat | None, facts: Facts) -> tuple[_Body, str] | None:
    if form is None:
        return None
    absent = "" if form.omits_empty else "-"
    if form.fields is None:
        text = compile_format(form.text or "", facts, absent=absent)
        render = (lambda scene: text) if isinstance(text, str) else text
        return lambda scene: render(scene).encode("latin-1", "replace"), form.content_type
    make = _compile_json(form.fields, facts, absent, omits=form.omits_empty)

    def body(scene: Scene) -> bytes:
        found = make(scene)
        text = json.dumps({} if found is _NOTHING else found, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8", "surrogateescape") + b"\n"

    return body, form.content_type


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
