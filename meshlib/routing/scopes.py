"""Scoped routes: which route configuration a request meets, by a key that is made of its headers.

Source: Envoy `ScopeKeyBuilderImpl`, `HeaderValueExtractorImpl`, `ScopedConfigImpl::getRouteConfig`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from meshlib.model.discovery import KeyFragment, ScopedRoutes
from meshlib.model.listener import ClientListener
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import ConfigFault, Demand, DemandKind, ScopeConfig
from meshlib.ports import Rng
from meshlib.routing.format import Facts
from meshlib.routing.limits import RouteLimit, limits_of
from meshlib.routing.prepare import compile_prepare
from meshlib.routing.replies import no_route
from meshlib.routing.route_match import RouteMatch
from meshlib.routing.table import RouteTable
from meshlib.routing.trace import RouteTrace, trace_routes
from meshlib.routing.unrouted import compile_unrouted

__all__ = ["ScopeTable", "scope_key"]

Key = tuple[str, ...]
UNAVAILABLE = 14


def scope_key(fragments: Iterable[Callable[[RequestHead], str | None]], head: RequestHead) -> Key | None:
    """Return a request's key, or None when it lacks one of the fragments."""
    found: list[str] = []
    for fragment in fragments:
        value = fragment(head)
        if value is None:
            return None
        found.append(value)
    return tuple(found)


def _compile(fragment: KeyFragment) -> Callable[[RequestHead], str | None]:
    header, separator, index = fragment.header, fragment.separator, fragment.index
    key, key_separator = fragment.key, fragment.key_separator

    def elements(head: RequestHead) -> list[str] | None:
        values = head.values(header)  # of several lines the first one counts
        if not values:
            return None
        return values[0].split(separator) if separator else [values[0]]

    def by_index(head: RequestHead) -> str | None:
        found = elements(head)
        return None if found is None or index is None or index >= len(found) else found[index]

    def by_key(head: RequestHead) -> str | None:
        for element in elements(head) or ():
            name, has_separator, value = element.partition(key_separator)
            if has_separator and name == key:
                return value
        return None

    return by_key if index is None else by_index


class ScopeTable:
    """The scopes of one target. Not changed after creation.

    Attributes:
        name: Of the scoped routes.
        has_chance: As of a `RouteTable`; of scopes it is not looked for.
        has_demands: `demands` may return something.
        needs_moment: As of a `RouteTable`.
        prepare: As of a `RouteTable`.
        tables: The route tables, by key; None: the scope's routes are not there yet.
    """

    __slots__ = (
        "_fragments",
        "_names",
        "_unrouted",
        "has_chance",
        "has_demands",
        "name",
        "needs_moment",
        "prepare",
        "tables",
        "unrouted_limits",
    )

    def __init__(
        self,
        scoped: ScopedRoutes,
        listener: ClientListener,
        scopes: Iterable[ScopeConfig],
        known: "Callable[[RouteConfiguration], RouteTable | None]" = lambda routes: None,
    ) -> None:
        """Compile the route configurations of all scopes.

        Args:
            scoped: Says how keys are made.
            listener: As for `RouteTable`.
            scopes: No two have the same key.
            known: Returns the table that routes have already, if they have one.

        Raises:
            ValueError: As for `RouteTable`.
        """
        self.name = scoped.name
        self.prepare = compile_prepare(listener.head_rules)
        facts = Facts(listener=listener.name, listener_metadata=listener.metadata)
        self._unrouted = compile_unrouted(listener, facts)
        self.unrouted_limits = limits_of(listener.limits, (), facts)
        self._fragments = tuple(_compile(fragment) for fragment in scoped.fragments)
        tables: dict[Key, RouteTable | ConfigFault | None] = {}
        names: dict[Key, str] = {}
        made: dict[int, RouteTable] = {}
        for scope in scopes:
            routes = scope.routes
            names[scope.key] = scope.name
            if not isinstance(routes, RouteConfiguration):
                tables[scope.key] = routes
                continue
            # Several scopes may share one route configuration.
            table = made.get(id(routes)) or known(routes)
            if table is None:
                table = RouteTable(listener, routes)
            made[id(routes)] = table
            tables[scope.key] = table
        self._names: Mapping[Key, str] = names
        self.tables: Mapping[Key, RouteTable | ConfigFault | None] = tables
        self.has_chance = True
        self.needs_moment = facts.needs_moment or any(
            table.needs_moment for table in tables.values() if isinstance(table, RouteTable)
        )
        self.has_demands = any(
            table is None or (isinstance(table, RouteTable) and table.has_demands) for table in tables.values()
        )

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains of all virtual hosts of all scopes."""
        tables = (table for table in self.tables.values() if isinstance(table, RouteTable))
        return tuple(dict.fromkeys(domain for table in tables for domain in table.domains))

    @property
    def limits(self) -> frozenset[RouteLimit]:
        """What limits the requests of any route of any scope."""
        tables = (table.limits for table in self.tables.values() if isinstance(table, RouteTable))
        return frozenset(self.unrouted_limits).union(*tables)

    def match(self, head: RequestHead, rng: Rng, *, is_prepared: bool = False) -> RouteMatch | LocalReply:
        """As `RouteTable.match`, in the request's scope; a request that is in none has no route."""
        key = scope_key(self._fragments, head)
        table = None if key is None else self.tables.get(key)
        if isinstance(table, RouteTable):
            return table.match(head, rng, is_prepared=is_prepared)
        if table is None:
            reply = no_route(head)
            return (
                replace(reply, body=b"the request belongs to no scope")
                if not head.profile.answers_itself
                else self.local_reply(reply, head)
            )
        return self.local_reply(_fault_reply(head, table), head)

    def local_reply(self, reply: LocalReply, head: RequestHead) -> LocalReply:
        """As `RouteTable.local_reply`."""
        return reply if self._unrouted is None else self._unrouted(reply, head)

    def demands(self, head: RequestHead) -> tuple[Demand, ...]:
        """Return what this request needs that may have to be subscribed to first."""
        key = scope_key(self._fragments, head)
        if key is None or key not in self.tables:
            return ()
        table = self.tables[key]
        if table is None:
            return ((DemandKind.SCOPE, self._names[key]),)
        return table.demands(head) if isinstance(table, RouteTable) else ()

    def wishes(self, head: RequestHead) -> tuple[Demand, ...]:
        """As `RouteTable.wishes`."""
        key = scope_key(self._fragments, head)
        table = None if key is None else self.tables.get(key)
        return table.wishes(head) if isinstance(table, RouteTable) else ()

    def trace(self, head: RequestHead) -> RouteTrace:
        """Say which scope a request meets, and then as `RouteTable.trace`."""
        key = scope_key(self._fragments, head)
        table = None if key is None else self.tables.get(key)
        if isinstance(table, RouteTable):
            assert key is not None
            found = table.trace(head)
            return replace(found, reason=f"scope {self._names[key]} (key {'|'.join(key)}); {found.reason}")
        if key is None:
            reason = "the request lacks a part of the scope key"
        elif table is None:
            name = self._names.get(key)
            reason = f"no scope has the key {'|'.join(key)}" if name is None else f"scope {name} has no routes yet"
        else:
            reason = table.message
        return replace(trace_routes(head, "", self.name, None, (), domains=()), reason=reason)


def _fault_reply(head: RequestHead, fault: ConfigFault) -> LocalReply:
    """The scope's routes cannot be had: as of a target whose routes cannot, said to this request only."""
    body = fault.message.encode()
    return LocalReply(
        503,
        "NR",
        "route_configuration_not_found",
        body,
        (("content-type", "text/plain"),),
        UNAVAILABLE,
    )
