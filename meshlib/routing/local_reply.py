"""Rewrites answers of the mesh itself as the listener wants them: status, body, headers.

An answer meets the route's header mutations first, then the first mapper whose test holds, then the body format of that
mapper or of all answers, and last the filters of the chain.

Source: Envoy `LocalReplyImpl::rewrite`, `Utility::prepareLocalReply`.
"""

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
    GrpcStatusIs,
    HasFlag,
    ReplyMapper,
    ReplyRules,
    ReplyTest,
    RequestHas,
    Sampled,
    StatusIs,
    TookMs,
)
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.body_format import Body, compile_body
from meshlib.routing.format import Facts, Scene
from meshlib.routing.headers import response_mutator
from meshlib.routing.matchers import in_fraction

__all__ = ["ReplyRewriter", "RewrittenReply"]

_Test = Callable[[RequestHead, Scene], bool]
TEXT_TYPE = "text/plain"
_OF_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""gRPC's statuses for those of HTTP; 2 (UNKNOWN) for the rest."""


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
        self.test = _compile_test(mapper.test, facts)
        self.status = mapper.status
        self.body = mapper.body
        self.mutator = response_mutator([HeaderMutation(response_add=mapper.headers)], facts)
        self.format = _compile_format(mapper.body_format, facts)


def _compile_test(test: ReplyTest, facts: Facts) -> _Test:
    match test:
        case StatusIs(comparison, value):
            holds = _compile_comparison(comparison, value)
            return lambda head, scene: holds(scene.status)
        case TookMs(comparison, value):
            facts.met.add("DURATION")
            holds = _compile_comparison(comparison, value)
            return lambda head, scene: (
                head.moment is not None and holds(max(0, head.moment.now_us - head.moment.started_us) // 1000)
            )
        case Sampled(share, is_independent):
            facts.met.add("CHANCE")
            return lambda head, scene: in_fraction(
                share, 0 if head.moment is None else head.moment.draw() if is_independent else head.moment.stream_id
            )
        case GrpcStatusIs(statuses, is_excluded):
            return lambda head, scene: (_grpc_status(scene) in statuses) is not is_excluded
        case HasFlag(flags):
            if not flags:
                return lambda head, scene: bool(scene.flag)
            return lambda head, scene: not flags.isdisjoint(scene.flag.split(","))
        case RequestHas(header):
            fits = compile_header(header)
            return lambda head, scene: fits(head)
        case AllOf(tests):
            compiled = tuple(_compile_test(one, facts) for one in tests)
            return lambda head, scene: all(one(head, scene) for one in compiled)
        case AnyOf(tests):
            compiled = tuple(_compile_test(one, facts) for one in tests)
            return lambda head, scene: any(one(head, scene) for one in compiled)
        case _:
            assert_never(test)


def _compile_comparison(comparison: Comparison, value: int) -> Callable[[int], bool]:
    match comparison:
        case Comparison.EQ:
            return lambda found: found == value
        case Comparison.GE:
            return lambda found: found >= value
        case Comparison.LE:
            return lambda found: found <= value
        case Comparison.NE:
            return lambda found: found != value
        case _:
            assert_never(comparison)


def _grpc_status(scene: Scene) -> int | None:
    """Return the status that an answer has, or that its HTTP status stands for; None: none that there is."""
    text = None if scene.response is None else scene.response.get("grpc-status")
    if not text:  # an empty one tells as little as none
        return _OF_HTTP.get(scene.status, 2)
    return int(text) if text.isascii() and text.isdigit() and int(text) <= 16 else None


def _compile_format(form: BodyFormat | None, facts: Facts) -> tuple[Body, str] | None:
    return None if form is None else (compile_body(form, facts), form.content_type)
