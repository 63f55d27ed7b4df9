"""Listeners (LDS): what a client's target resolves to, and what a server applies to requests that come in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from meshlib.model.authorization import Rbac
from meshlib.model.discovery import FilterConfig, ScopedRoutes
from meshlib.model.endpoint import NO_METADATA
from meshlib.model.filters import ListedHeaderFilter, ListedLimit
from meshlib.model.local_reply import ReplyRules
from meshlib.model.route import FaultPolicy, RouteConfiguration
from meshlib.model.secret import ServerTls
from meshlib.model.session import SessionPolicy

__all__ = ["ClientListener", "DiscoveredFilter", "EscapedSlashes", "HeadRules", "Listener", "ServerListener"]


@dataclass(frozen=True, slots=True)
class DiscoveredFilter:
    """An HTTP filter whose configuration is a resource of its own (ECDS).

    Attributes:
        name: Of the filter and of the resource.
        type_names: Full message names that the configuration may have.
        default: Used when the resource cannot be had; None: there is none.
        skips_warming: `default` is used until the resource comes.
        is_disabled: Routes alone switch it on.
        position: Number of filters before it that the listener configures itself: limits, in a server for authorization too.
        is_after_fault: It stands behind the fault filter.
    """

    name: str
    type_names: frozenset[str]
    default: FilterConfig | None = None
    skips_warming: bool = False
    is_disabled: bool = False
    position: int = 0
    is_after_fault: bool = False


class EscapedSlashes(Enum):
    """What becomes of `%2F` and `%5C` in a path (`path_with_escaped_slashes_action`)."""

    KEPT = 1
    REFUSED = 2
    """400."""
    REDIRECTED = 3
    """The caller is told to come with the path as it is without them (307)."""
    UNESCAPED = 4


@dataclass(frozen=True, slots=True)
class HeadRules:
    """What happens to a request before routes see it.

    Attributes:
        strips_port: Of any number (`strip_any_host_port`); or
        strips_this_port: of this one only (`strip_matching_host_port`); 0: of none.
        strips_dot: A dot at the end of the host (`strip_trailing_host_dot`).
        slashes: The first thing that is done to the path; then
        normalizes_path: it gets into its one spelling; then
        merges_slashes: of several slashes one is left.
        scheme: Takes the place of the request's; empty: it stays.
    """

    strips_port: bool = False
    strips_this_port: int = 0
    strips_dot: bool = False
    slashes: EscapedSlashes = EscapedSlashes.KEPT
    normalizes_path: bool = False
    merges_slashes: bool = False
    scheme: str = ""

    def __bool__(self) -> bool:
        return self != NO_RULES


NO_RULES = HeadRules()


@dataclass(frozen=True, slots=True)
class ClientListener:
    """An API listener.

    Attributes:
        routes: Inline, or the name of an RDS resource, or how one is chosen for each request.
        max_stream_duration_s: Default for routes; None: absent.
        stream_idle_timeout_s: The same for `idle_timeout` of routes.
        has_fault_filter: Without it, fault overrides of routes have no effect.
        fault: The filter's own configuration.
        has_session_filter: Without it, overrides of routes concerning stateful sessions have no effect.
        session: That filter's own configuration.
        discovered: In filter order.
        on_demand_timeout_s: Clusters are subscribed to when a request first needs them, which waits no longer than this;
            None: those that routes name are all subscribed to.
        limits: Filters that limit what goes out, in their order.
        retry_percent: Retries in a hundred that are made after all, by a runtime value.
        reply_rules: What becomes of answers of the mesh itself; None: they stay as they are.
        metadata: Its filter_metadata.
    """

    name: str
    routes: RouteConfiguration | str | ScopedRoutes
    has_fault_filter: bool = False
    fault: FaultPolicy | None = None
    has_session_filter: bool = False
    session: SessionPolicy | None = None
    limits: tuple[ListedLimit, ...] = ()
    head_rules: HeadRules = NO_RULES
    reply_rules: ReplyRules | None = None
    header_filters: tuple[ListedHeaderFilter, ...] = ()
    max_stream_duration_s: float | None = None
    stream_idle_timeout_s: float | None = None
    discovered: tuple[DiscoveredFilter, ...] = ()
    on_demand_timeout_s: float | None = None
    retry_percent: int = 100
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, hash=False, repr=False)


@dataclass(frozen=True, slots=True)
class ServerListener:
    """A socket listener of an inbound port.

    Attributes:
        address: `host:port`.
        tls: None: plaintext.
        takes_plaintext: Beside TLS, on the same port; the first byte of a connection says which it is.
        rbac: In filter order; each must let the request pass.
        limits: Filters that limit what comes in, in their order; see `position`.
        discovered: In filter order; see `position`.
        routes: Inline or RDS name; requests that match no route are refused.
    """

    name: str
    address: str
    tls: ServerTls | None
    rbac: tuple[Rbac, ...]
    routes: RouteConfiguration | str
    discovered: tuple[DiscoveredFilter, ...] = ()
    limits: tuple[ListedLimit, ...] = ()
    takes_plaintext: bool = False


Listener = ClientListener | ServerListener
