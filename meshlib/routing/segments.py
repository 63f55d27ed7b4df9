"""Which routes a path can meet at all, by its first segment: most routes of a large table need not be asked.

What a route's path condition says of the first segment decides: `/orders/` as a prefix, `/orders` exactly, `/orders` and
what is below. Conditions that leave it open (a regex, `/ord` as a prefix, any case) are asked for every path. The order of
the routes stays.
"""

from collections.abc import Mapping, Sequence

from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.routing.compiled import CompiledRoute

__all__ = ["FEW", "SegmentIndex", "first_segment", "index_routes", "segment_of"]

FEW = 8
"""With so few routes asking all of them is as fast."""

SegmentIndex = tuple[Mapping[str, tuple[CompiledRoute, ...]], tuple[CompiledRoute, ...]]
"""Routes by first segment, and the routes for every other path."""


def first_segment(path: str) -> str:
    """Return a path up to its second slash, which is left out."""
    end = path.find("/", 1)
    return path if end < 0 else path[:end]


def segment_of(matcher: PathMatcher) -> str | None:
    """Return the first segment that every path which meets a condition has; None: there is none."""
    value = matcher.value
    if not matcher.case_sensitive or not value.startswith("/"):
        return None
    match matcher.kind:
        case PathKind.PATH | PathKind.SEPARATED_PREFIX:
            return first_segment(value)
        case PathKind.PREFIX if "/" in value[1:]:
            return first_segment(value)
        case _:
            return None


def index_routes(routes: Sequence[CompiledRoute]) -> SegmentIndex | None:
    """Index routes; None: it is not worth it."""
    if len(routes) <= FEW:
        return None
    segments = [segment_of(route.route.match.path) for route in routes]
    known = {segment for segment in segments if segment is not None}
    by_segment = {
        name: tuple(route for route, segment in zip(routes, segments, strict=True) if segment in (None, name))
        for name in known
    }
    others = tuple(route for route, segment in zip(routes, segments, strict=True) if segment is None)
    # Every name repeats the open routes: with many of both the index would grow with the square of the table.
    size = sum(map(len, by_segment.values()))
    return (by_segment, others) if size <= 32 * len(routes) else None
