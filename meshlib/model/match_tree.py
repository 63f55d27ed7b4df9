"""Matcher trees (`xds.type.matcher.v3.Matcher`) that lead to the routes of a virtual host."""

from dataclasses import dataclass

from meshlib.model.matcher import StringMatcher

__all__ = ["And", "Field", "MatchList", "MatchMap", "MatchTree", "Not", "Or", "Predicate", "Single", "ToRoutes"]


@dataclass(frozen=True, slots=True)
class Single:
    """Attributes:
    header: Whose lines, joined by commas, are tested; empty: what a client has not (filter state), which fits nothing.
    """

    header: str
    test: StringMatcher


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple["Predicate", ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple["Predicate", ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: "Predicate"


Predicate = Single | And | Or | Not


@dataclass(frozen=True, slots=True)
class ToRoutes:
    """Attributes:
    numbers: Places in the virtual host's routes. The first whose own conditions hold takes the request; if there is
        none, no route does: the tree is not asked again.
    """

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One entry of a list."""

    predicate: Predicate
    leads_to: "MatchTree"


@dataclass(frozen=True, slots=True)
class MatchList:
    """The first entry that holds, and leads somewhere, decides.

    Attributes:
        otherwise: None: nothing matched.
    """

    fields: tuple[Field, ...]
    otherwise: "MatchTree | None" = None


@dataclass(frozen=True, slots=True)
class MatchMap:
    """A header's value is looked up: as it is, or the longest prefix of it that leads somewhere.

    Attributes:
        header: As in `Single`.
        otherwise: None: nothing matched.
    """

    header: str
    entries: tuple[tuple[str, "MatchTree"], ...]
    is_prefix: bool = False
    otherwise: "MatchTree | None" = None


MatchTree = ToRoutes | MatchList | MatchMap
