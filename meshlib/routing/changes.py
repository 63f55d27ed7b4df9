"""Lists of header changes, as header mutation filters and mirrors have them: one after the other, in order.

Unlike the mutations of routes, each change sees what the ones before it left.

Source: Envoy `HeaderMutations`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from meshlib.matching import INLINE_REQUEST_HEADERS, INLINE_RESPONSE_HEADERS, compile_string
from meshlib.model.outcome import LocalReply, grpc_status_of
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import HeaderChange
from meshlib.routing.format import Facts, Scene
from meshlib.routing.headers import Entries, HeaderLevel, Mutator, with_headers
from meshlib.routing.local_reply import ReplyRewriter
from meshlib.routing.query_changes import compile_query_changes
from meshlib.routing.replies import TEXT, finish_headers, trailers_only

__all__ = ["Changes", "Responder"]


@dataclass(frozen=True, slots=True)
class QueryStep:
    """A step that changes the query."""

    change: Callable[[str, Scene], str]


_Step = Callable[[Entries, Scene], Entries] | QueryStep


class Changes:
    """A list of changes, compiled. Not changed after creation."""

    __slots__ = ("_attempts", "_is_response", "_steps")

    def __init__(
        self, changes: Sequence[HeaderChange], *, is_response: bool, facts: Facts | None = None, attempts: int = 0
    ) -> None:
        """Compile changes.

        Args:
            changes: In order.
            is_response: They concern a response.
            facts: What formats may speak of.
            attempts: That have been made when a request is changed.

        Raises:
            ValueError: A format or regex that is not valid.
        """
        self._is_response = is_response
        self._attempts = attempts
        inline = INLINE_RESPONSE_HEADERS if is_response else INLINE_REQUEST_HEADERS
        self._steps = tuple(_compile(change, inline, facts or Facts()) for change in changes)

    def __bool__(self) -> bool:
        return bool(self._steps)

    def apply_to(self, head: RequestHead) -> RequestHead:
        """Return the changed request, its query included."""
        path, entries = head.path, list(head.headers.items)
        for step in self._steps:
            now = _as(head, path, entries)
            scene = Scene(now, attempts=self._attempts)
            if isinstance(step, QueryStep):
                path = step.change(path, scene)
            else:
                entries = step(entries, scene)
        return _as(head, path, entries)

    def apply(self, headers: Headers, head: RequestHead | None, about: Scene | None = None) -> Headers:
        """Return the changed headers.

        Args:
            headers: Of the request (then also in `head`), or of the response.
            head: The request, for `%REQ(...)%`.
            about: What else is known, of a response.
        """
        entries = list(headers.items)
        for step in self._steps:
            if isinstance(step, QueryStep):
                continue  # copies of a request, and responses, have no such changes
            now = Headers(entries)
            if self._is_response:
                scene = Scene(head, now) if about is None else about.with_response(head, now)
            else:
                scene = Scene(None if head is None else with_headers(head, now), attempts=self._attempts)
            entries = step(entries, scene)
        return Headers(entries)


class Responder:
    """What happens to a response: the mutations of the route, then those of filters; in between, to answers of the mesh
    itself alone, what the listener wants of them.

    Attributes:
        changes_replies: Such answers are changed.
    """

    __slots__ = ("_changes", "_mutator", "_rewriter", "changes_replies")

    def __init__(self, mutator: Mutator, changes: Changes, rewriter: ReplyRewriter | None = None) -> None:
        self._mutator = mutator
        self._changes = changes
        self._rewriter = rewriter
        self.changes_replies = bool(self) or rewriter is not None

    def __bool__(self) -> bool:
        return bool(self._mutator) or bool(self._changes)

    def apply(self, headers: Headers, head: RequestHead | None, about: Scene | None = None) -> Headers:
        """Return the changed headers; arguments as for `Mutator.apply`."""
        if self._mutator:
            headers = self._mutator.apply(headers, head, about)
        return self._changes.apply(headers, head, about) if self._changes else headers

    def local(
        self, reply: LocalReply, head: RequestHead, about: Scene | None = None, *, content_type: str = ""
    ) -> LocalReply:
        """Return an answer of the mesh itself as the caller gets it.

        The route's mutations meet neither the content type that an answer has by default nor its status; filters do.

        Args:
            about: What else is known; None: what the reply says.
            content_type: Of the body, whatever the mutations say; empty: theirs, or the default one.
        """
        about = about or Scene(head, flag=reply.flag, details=reply.details)
        about = replace(about, line=reply.status)
        headers = Headers(entry for entry in reply.headers if entry != TEXT)
        status, body = reply.status, reply.body
        if self._mutator:
            headers = self._mutator.apply(headers, head, about)
        if content_type:
            kept = (entry for entry in headers.items if entry[0] != "content-type")
            headers = Headers((*kept, ("content-type", content_type)))
        if self._rewriter is not None and head.profile.answers_itself:
            rewritten = self._rewriter.rewrite(status, headers, body, head, about)
            if rewritten.status != status and status != 200 and reply.grpc_status == grpc_status_of(status):
                reply = replace(reply, grpc_status=None)  # it says what the old status stood for
            status, headers, body = rewritten.status, rewritten.headers, rewritten.body
            if head.is_grpc and rewritten.content_type == "application/json":
                body = body.removesuffix(b"\n")  # it becomes a header
        finished = finish_headers(headers, body if head.profile.answers_itself else b"")
        reply = trailers_only(replace(reply, status=status, body=body, headers=finished), head)
        if self._changes:
            about = replace(about, status=status, line=reply.status)
            reply = replace(reply, headers=self._changes.apply(Headers(reply.headers), head, about).items)
        return reply


def _as(head: RequestHead, path: str, entries: Entries) -> RequestHead:
    """Return the head with another path and other headers."""
    return head.but(path=path, headers=Headers(entries))


def _compile(change: HeaderChange, inline: frozenset[str], facts: Facts) -> _Step:
    if change.query:
        return QueryStep(compile_query_changes(change.query, facts))
    if change.remove:
        removed = change.remove.lower()
        return lambda entries, scene: [entry for entry in entries if entry[0] != removed]
    if change.remove_if is not None:
        fits = compile_string(change.remove_if)
        return lambda entries, scene: [entry for entry in entries if not fits(entry[0])]
    assert change.add is not None
    level = HeaderLevel((), (change.add,), facts)

    def add(entries: Entries, scene: Scene) -> Entries:
        level.add(entries, scene, inline)
        return entries

    return add
