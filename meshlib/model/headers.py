"""What levels of a route configuration, and filters, do to headers."""

from dataclasses import dataclass
from enum import Enum

from meshlib.model.matcher import StringMatcher

__all__ = ["NO_MUTATION", "AppendAction", "HeaderAdd", "HeaderChange", "HeaderMutation", "QueryChange"]


class AppendAction(Enum):
    APPEND_IF_EXISTS_OR_ADD = 0
    ADD_IF_ABSENT = 1
    OVERWRITE_IF_EXISTS_OR_ADD = 2
    OVERWRITE_IF_EXISTS = 3


@dataclass(frozen=True, slots=True)
class HeaderAdd:
    """Attributes:
    value: A substitution format string; `%%` is a per cent sign.
    """

    name: str
    value: str
    action: AppendAction = AppendAction.APPEND_IF_EXISTS_OR_ADD
    keep_empty: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMutation:
    """What one level (weighted cluster, route, virtual host, route configuration) does to headers."""

    request_remove: tuple[str, ...] = ()
    request_add: tuple[HeaderAdd, ...] = ()
    response_remove: tuple[str, ...] = ()
    response_add: tuple[HeaderAdd, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.request_remove or self.request_add or self.response_remove or self.response_add)


NO_MUTATION = HeaderMutation()


@dataclass(frozen=True, slots=True)
class QueryChange:
    """Attributes:
    key: Of the parameter, decoded.
    value: A substitution format.
    action: None: the parameter is removed.
    """

    key: str
    value: str = ""
    action: AppendAction | None = None


@dataclass(frozen=True, slots=True)
class HeaderChange:
    """One step of a list of changes, each of which sees what the ones before left.

    Attributes:
        query: Changes of the query, which see the request as it is before all of them; empty: none.
        remove: Name of a header to remove; empty: none.
        remove_if: Headers whose names it fits are removed; None: none.
        add: What is added; None: nothing.
    """

    remove: str = ""
    remove_if: StringMatcher | None = None
    add: HeaderAdd | None = None
    query: tuple[QueryChange, ...] = ()
