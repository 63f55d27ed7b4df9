"""Header mutations: what routes, virtual hosts and route configurations remove from and add to headers.

In each level removals come first, then the values of all additions are rendered against what is left, then overwrites
take effect, then additions. The levels run one after the other, a weighted cluster's own first.

Source: Envoy `HeaderParser::evaluateHeaders`.
"""

from collections.abc import Sequence

from meshlib.matching import INLINE_REQUEST_HEADERS, INLINE_RESPONSE_HEADERS
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import AppendAction, HeaderAdd, HeaderMutation
from meshlib.routing.format import Facts, Formatter, Scene, compile_format

__all__ = [
    "Entries",
    "HeaderLevel",
    "Mutator",
    "append_entry",
    "order_levels",
    "request_mutator",
    "response_mutator",
    "set_entry",
    "with_headers",
]

Entries = list[tuple[str, str]]
_NO_SCENE = Scene(None)


def with_headers(head: RequestHead, headers: Headers) -> RequestHead:
    """Return the head with other headers."""
    # Written out: most calls come by here.
    return RequestHead(
        head.method,
        head.authority,
        head.path,
        headers,
        scheme=head.scheme,
        is_grpc=head.is_grpc,
        profile=head.profile,
        moment=head.moment,
    )


def set_entry(entries: Entries, name: str, value: str) -> None:
    """Replace all entries of a header by one."""
    entries[:] = [entry for entry in entries if entry[0] != name]
    entries.append((name, value))


def append_entry(entries: Entries, name: str, value: str, inline: frozenset[str]) -> None:
    """Add an entry; a header that Envoy keeps in one slot gets its value extended instead."""
    if name in inline:
        for index, (other, old) in enumerate(entries):
            if other == name:
                if value:
                    entries[index] = (name, f"{old},{value}" if old else value)
                return
    entries.append((name, value))


class HeaderLevel:
    """What one level removes and adds, compiled.

    Attributes:
        is_dynamic: A value depends on the request or the response.
    """

    __slots__ = ("adds", "is_dynamic", "remove")

    def __init__(self, remove: Sequence[str], adds: Sequence[HeaderAdd], facts: Facts) -> None:
        self.remove = frozenset(name.lower() for name in remove)
        self.adds: tuple[tuple[str, str | Formatter, AppendAction, bool], ...] = tuple(
            (add.name.lower(), compile_format(add.value, facts), add.action, add.keep_empty) for add in adds
        )
        self.is_dynamic = any(not isinstance(add[1], str) for add in self.adds)

    def add(self, entries: Entries, scene: Scene, inline: frozenset[str]) -> None:
        """Add to entries in place: all values are rendered first, then overwrites take effect, then additions."""
        present = {name for name, _ in entries}
        overwrites: Entries = []
        appends: Entries = []
        for name, template, action, keep_empty in self.adds:
            value = template if isinstance(template, str) else template(scene)
            if not value and not keep_empty:
                continue
            match action:
                case AppendAction.APPEND_IF_EXISTS_OR_ADD:
                    appends.append((name, value))
                case AppendAction.ADD_IF_ABSENT:
                    if name not in present:
                        appends.append((name, value))
                case AppendAction.OVERWRITE_IF_EXISTS_OR_ADD:
                    overwrites.append((name, value))
                case AppendAction.OVERWRITE_IF_EXISTS:
                    if name in present:
                        overwrites.append((name, value))
        for name, value in overwrites:
            set_entry(entries, name, value)
        for name, value in appends:
            append_entry(entries, name, value, inline)


class Mutator:
    """The mutations of all levels in one direction. Not changed after creation."""

    __slots__ = ("_inline", "_is_response", "_levels")

    def __init__(
        self, levels: Sequence[tuple[Sequence[str], Sequence[HeaderAdd]]], facts: Facts, *, is_response: bool
    ) -> None:
        """Compile levels in the order in which they run.

        Raises:
            ValueError: A value's format is not understood.
        """
        self._levels = tuple(HeaderLevel(remove, adds, facts) for remove, adds in levels if remove or adds)
        self._is_response = is_response
        self._inline = INLINE_RESPONSE_HEADERS if is_response else INLINE_REQUEST_HEADERS

    def __bool__(self) -> bool:
        return bool(self._levels)

    def apply(self, headers: Headers, head: RequestHead | None, about: Scene | None = None) -> Headers:
        """Return the changed headers.

        Args:
            headers: Of the request (then also in `head`), or of the response.
            head: The request, for `%REQ(...)%`; None: its headers render as nothing.
            about: What else is known, of a response.
        """
        entries: Entries = list(headers.items)
        for level in self._levels:
            if level.remove:
                entries = [entry for entry in entries if entry[0] not in level.remove]
            if level.adds:
                scene = self._scene(entries, head, about) if level.is_dynamic else _NO_SCENE
                level.add(entries, scene, self._inline)
        return Headers(entries)

    def _scene(self, entries: Entries, head: RequestHead | None, about: Scene | None) -> Scene:
        now = Headers(entries)
        if self._is_response:
            return Scene(head, now) if about is None else about.with_response(head, now)
        return Scene(None if head is None else with_headers(head, now), attempts=1)


def order_levels(
    weight: HeaderMutation | None,
    route: HeaderMutation,
    virtual_host: HeaderMutation,
    routes: HeaderMutation,
    *,
    most_specific_wins: bool,
) -> tuple[HeaderMutation, ...]:
    """Return the levels in the order in which they run; of two overwrites the later one stays.

    The weighted cluster is always first. By default the most general level runs last and so wins.
    """
    rest = (routes, virtual_host, route) if most_specific_wins else (route, virtual_host, routes)
    return rest if weight is None else (weight, *rest)


def request_mutator(levels: Sequence[HeaderMutation], facts: Facts) -> Mutator:
    """Compile what happens to request headers.

    Raises:
        ValueError: A value's format is not understood.
    """
    return Mutator([(level.request_remove, level.request_add) for level in levels], facts, is_response=False)


def response_mutator(levels: Sequence[HeaderMutation], facts: Facts) -> Mutator:
    """Compile what happens to response headers, local replies included.

    Raises:
        ValueError: A value's format is not understood.
    """
    return Mutator([(level.response_remove, level.response_add) for level in levels], facts, is_response=True)
