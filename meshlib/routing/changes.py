"""Lists of header changes, as header mutation filters and mirrors have them: one after the other, in order.

Unlike the mutations of routes, each change sees what the ones before it left.

Source: Envoy `HeaderMutations`.
"""

from collections.abc import Callable, Sequence

from meshlib.matching import INLINE_REQUEST_HEADERS, INLINE_RESPONSE_HEADERS, compile_string
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import HeaderChange
from meshlib.routing.format import Facts, Scene
from meshlib.routing.headers import Entries, HeaderLevel, with_headers

__all__ = ["Changes"]

_Step = Callable[[Entries, Scene], Entries]


class Changes:
    """A list of changes, compiled. Not changed after creation."""

    __slots__ = ("_is_response", "_steps")

    def __init__(self, changes: Sequence[HeaderChange], *, is_response: bool, facts: Facts | None = None) -> None:
        """Compile changes.

        Raises:
            ValueError: A format or regex that is not valid.
        """
        self._is_response = is_response
        inline = INLINE_RESPONSE_HEADERS if is_response else INLINE_REQUEST_HEADERS
        self._steps = tuple(_compile(change, inline, facts or Facts()) for change in changes)

    def __bool__(self) -> bool:
        return bool(self._steps)

    def apply(self, headers: Headers, head: RequestHead | None, about: Scene | None = None) -> Headers:
        """Return the changed headers.

        Args:
            headers: Of the request (then also in `head`), or of the response.
            head: The request, for `%REQ(...)%`.
            about: What else is known, of a response.
        """
        entries = list(headers.items)
        for step in self._steps:
            now = Headers(entries)
            if self._is_response:
                scene = Scene(head, now) if about is None else about.with_response(head, now)
            else:
                scene = Scene(None if head is None else with_headers(head, now), attempts=1)
            entries = step(entries, scene)
        return Headers(entries)


def _compile(change: HeaderChange, inline: frozenset[str], facts: Facts) -> _Step:
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
