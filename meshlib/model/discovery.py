"""What discovery itself needs to know: collections of resources, scopes, layers of runtime values, filters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from meshlib.model.authorization import Rbac
from meshlib.model.filters import LimitFilter
from meshlib.model.matcher import Fraction
from meshlib.model.route import FaultPolicy, RouteConfiguration
from meshlib.model.session import SessionPolicy

__all__ = [
    "Collection",
    "FilterConfig",
    "KeyFragment",
    "RuntimeLayer",
    "RuntimeValue",
    "ScopedRoute",
    "ScopedRoutes",
]

K = TypeVar("K")
V = TypeVar("V")


def _empty() -> Mapping[K, V]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Collection:
    """What a subscription to `*` or `.../*` stands for at a time. Another one as soon as a member is.

    Attributes:
        members: By resource name, those that can be used. Of listeners and clusters, which are looked up one by one, none
            are kept here.
    """

    members: Mapping[str, object] = field(default_factory=_empty)


@dataclass(frozen=True, slots=True)
class KeyFragment:
    """How one fragment of a request's scope key is found: a header's value, or an element of it.

    Attributes:
        header: In lower case.
        separator: Of the elements; empty: the value is one element.
        index: Which element it is; None: the one that `key` names.
        key: With `key_separator`: the fragment is what follows them in the element that begins so.
    """

    header: str
    separator: str = ""
    index: int | None = None
    key: str = ""
    key_separator: str = ""


@dataclass(frozen=True, slots=True)
class ScopedRoute:
    """One scope (SRDS, or inline in a listener).

    Attributes:
        key: Its fragments; equals the request's key, one by one.
        routes: Inline, or the name of an RDS resource.
        on_demand: The RDS resource is subscribed to when a request first meets the scope.
    """

    name: str
    key: tuple[str, ...]
    routes: RouteConfiguration | str
    on_demand: bool = False


@dataclass(frozen=True, slots=True)
class ScopedRoutes:
    """How a listener chooses a route configuration for each request.

    Attributes:
        fragments: Make the request's key.
        scopes: Inline; None: all that SRDS has.
    """

    name: str
    fragments: tuple[KeyFragment, ...]
    scopes: tuple[ScopedRoute, ...] | None = None


RuntimeValue = float | bool | Fraction
"""A number, a switch or a share; what is none of these has no effect."""


@dataclass(frozen=True, slots=True)
class RuntimeLayer:
    """One layer of runtime values, by key (RTDS, or static in the bootstrap)."""

    name: str
    values: Mapping[str, RuntimeValue] = field(default_factory=_empty, hash=False)


@dataclass(frozen=True, slots=True)
class FilterConfig:
    """The configuration of an HTTP filter (ECDS).

    Attributes:
        type_name: Full message name.
        config: None: a filter that decides nothing.
    """

    name: str
    type_name: str
    config: FaultPolicy | SessionPolicy | Rbac | LimitFilter | None
