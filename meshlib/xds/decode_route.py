"""Route configurations (RDS, and inline in listeners): virtual hosts and routes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from meshlib.matching import ascii_lower
from meshlib.model.matcher import PathKind
from meshlib.model.route import (
    DirectResponse,
    MirrorPolicy,
    NonForwarding,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    VirtualHost,
)
from meshlib.xds.decode_common import cover, inline_data, is_discovered_by_ads, join, read_metadata, wrapped
from meshlib.xds.decode_descriptors import route_rules
from meshlib.xds.decode_fault import fault_override
from meshlib.xds.decode_header_filter import header_filter_overrides
from meshlib.xds.decode_headers import MUTATION_FIELDS, header_mutation
from meshlib.xds.decode_limits import limit_overrides
from meshlib.xds.decode_local_reply import body_format
from meshlib.xds.decode_match_tree import match_tree
from meshlib.xds.decode_matcher import header_matchers, path_matcher, query_matcher, regex_rewrite, runtime_fraction
from meshlib.xds.decode_mirror import mirror_policies
from meshlib.xds.decode_proxy_match import proxy_conditions
from meshlib.xds.decode_retry import hedge_policy, retry_policy
from meshlib.xds.decode_route_action import check_template_rewrite, cluster_plugins, route_action
from meshlib.xds.decode_session import session_override
from meshlib.xds.problems import Problems

__all__ = ["decode_route_configuration", "decode_virtual_host"]

DEFAULT_MAX_BODY_BYTES: Final = 4096
"""Envoy's default of `max_direct_response_body_size_bytes`."""

_CONFIGURATION_USED: Final = MUTATION_FIELDS | {
    "name",
    "virtual_hosts",
    "most_specific_header_mutations_wins",
    "max_direct_response_body_size_bytes",
    "request_mirror_policies",
    "ignore_port_in_host_matching",
    "vhds",
    "vhost_header",
    "cluster_specifier_plugins",
    "ignore_path_parameters_in_path_matching",
    "typed_per_filter_config",
    "metadata",  # describes; it decides nothing
}
_CONFIGURATION_HARMLESS: Final = frozenset(
    {
        "internal_only_headers",  # guards against headers from outside; here the caller is the application itself
        "validate_clusters",  # a cluster that is missing is found when the closure is built
    }
)
_HOST_USED: Final = MUTATION_FIELDS | {
    "name",
    "domains",
    "routes",
    "retry_policy",
    "request_mirror_policies",
    "include_request_attempt_count",
    "include_attempt_count_in_response",
    "include_is_timeout_retry_header",
    "typed_per_filter_config",
    "hedge_policy",
    "require_tls",
    "matcher",
    "per_request_buffer_limit_bytes",
    "request_body_buffer_limit",
    "metadata",
    "rate_limits",
}
_HOST_HARMLESS: Final = frozenset(
    {
        "virtual_clusters",  # statistics
        "cors",
    }
)
_ROUTE_USED: Final = MUTATION_FIELDS | {
    "name",
    "match",
    "route",
    "redirect",
    "direct_response",
    "non_forwarding_action",
    "metadata",
    "per_request_buffer_limit_bytes",
    "request_body_buffer_limit",
    "typed_per_filter_config",
}
_ROUTE_HARMLESS: Final = frozenset({"decorator", "tracing", "stat_prefix"})
_MATCH_USED: Final = frozenset(
    {
        "prefix",
        "path",
        "safe_regex",
        "connect_matcher",
        "path_separated_prefix",
        "path_match_policy",
        "case_sensitive",
        "runtime_fraction",
        "headers",
        "query_parameters",
        "grpc",
        "tls_context",
        "dynamic_metadata",
        "filter_state",
    }
)
_EXTERNAL_ONLY: Final = 1
_TLS_FOR_ALL: Final = 2
_REDIRECT_STATUS: Final = {0: 301, 1: 302, 2: 303, 3: 307, 4: 308}


@dataclass(frozen=True, slots=True)
class _Above:
    """What the levels above a route say about it.

    Attributes:
        mirrors: Of the nearest level that has some.
        max_body: Bytes that a direct response may have.
        plugins: Cluster specifier plugins by name.
        body_limits: Of a virtual host, as `_body_limits` returns them.
    """

    mirrors: tuple[MirrorPolicy, ...]
    max_body: int
    plugins: Mapping[str, str]
    body_limits: tuple[int | None, int | None] = (None, None)


def decode_route_configuration(message: Any, path: str, problems: Problems) -> RouteConfiguration:
    """Decode a RouteConfiguration.

    Mirror policies that stand at the configuration or a virtual host are given to the routes that have none, which is
    how Envoy finds them.
    """
    cover(message, path, problems, used=_CONFIGURATION_USED, harmless=_CONFIGURATION_HARMLESS)
    mirrors = mirror_policies(message.request_mirror_policies, join(path, "request_mirror_policies"), problems)
    has_limit = message.HasField("max_direct_response_body_size_bytes")
    max_body = message.max_direct_response_body_size_bytes.value if has_limit else DEFAULT_MAX_BODY_BYTES
    if any(breaker in message.vhost_header for breaker in "\0\r\n"):
        problems.error(join(path, "vhost_header"), "has a NUL, CR or LF")
    plugins = cluster_plugins(message.cluster_specifier_plugins, join(path, "cluster_specifier_plugins"), problems)
    above = _Above(mirrors, max_body, plugins)
    hosts = tuple(
        _virtual_host(host, f"{join(path, 'virtual_hosts')}[{index}]", problems, above)
        for index, host in enumerate(message.virtual_hosts)
    )
    _check_domains(hosts, join(path, "virtual_hosts"), problems)
    if message.HasField("vhds"):
        _check_more_hosts(message, path, problems)
    return RouteConfiguration(
        name=message.name,
        virtual_hosts=hosts,
        mutation=header_mutation(message, path, problems),
        most_specific_mutations_win=message.most_specific_header_mutations_wins,
        ignore_port_in_host=message.ignore_port_in_host_matching,
        host_header=message.vhost_header.lower(),
        ignores_path_parameters=message.ignore_path_parameters_in_path_matching,
        fault=fault_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        session=session_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        has_more_hosts=message.HasField("vhds"),
        limits=limit_overrides(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        header_filters=header_filter_overrides(
            message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems
        ),
    )


def decode_virtual_host(message: Any, path: str, problems: Problems) -> VirtualHost:
    """Decode a VirtualHost that is a resource of its own (VHDS)."""
    host = _virtual_host(message, path, problems, _Above((), DEFAULT_MAX_BODY_BYTES, {}))
    _check_domains((host,), path, problems)
    return host


def _check_more_hosts(message: Any, path: str, problems: Problems) -> None:
    is_discovered_by_ads(message.vhds.config_source, join(path, "vhds.config_source"), problems)
    if not message.name:
        problems.error(
            join(path, "vhds"), "needs a name of the route configuration, by which virtual hosts are asked for"
        )
    if message.request_mirror_policies:
        # Those that come later could not know of them.
        problems.error(join(path, "request_mirror_policies"), "is not supported together with vhds")


def _check_domains(hosts: tuple[VirtualHost, ...], path: str, problems: Problems) -> None:
    """Each domain may stand once in a route configuration, `*` included."""
    seen: dict[str, int] = {}
    for index, host in enumerate(hosts):
        for position, domain in enumerate(host.domains):
            first = seen.setdefault(domain, index)
            place = f"{path}[{index}].domains[{position}]"
            if first != index or domain in host.domains[:position]:
                problems.error(place, f"{domain!r} is a domain of virtual_hosts[{first}] already")


def _virtual_host(message: Any, path: str, problems: Problems, above: _Above) -> VirtualHost:
    cover(message, path, problems, used=_HOST_USED, harmless=_HOST_HARMLESS)
    for index, cluster in enumerate(message.virtual_clusters):
        if not cluster.headers:
            problems.error(f"{join(path, 'virtual_clusters')}[{index}].headers", "is required")
    if message.require_tls == _EXTERNAL_ONLY:
        problems.unused(join(path, "require_tls"), "is about requests from outside; a client's are its own")
    own = mirror_policies(message.request_mirror_policies, join(path, "request_mirror_policies"), problems)
    if own:
        above = replace(above, mirrors=own)
    above = replace(above, body_limits=_body_limits(message))
    routes = tuple(
        _route(route, f"{join(path, 'routes')}[{index}]", problems, above) for index, route in enumerate(message.routes)
    )
    tree = None
    if message.HasField("matcher"):
        if routes:
            problems.error(join(path, "matcher"), "cannot be given together with routes")
        found: list[Route] = []

        def add_route(route: Any, place: str) -> int:
            found.append(_route(route, place, problems, above))
            return len(found) - 1

        tree = match_tree(message.matcher, join(path, "matcher"), problems, add_route)
        routes = tuple(found)
    retry = hedge = None
    if message.HasField("retry_policy"):
        retry = retry_policy(message.retry_policy, join(path, "retry_policy"), problems)
    if message.HasField("hedge_policy"):
        hedge = hedge_policy(message.hedge_policy, join(path, "hedge_policy"), problems)
    return VirtualHost(
        name=message.name,
        domains=tuple(ascii_lower(domain) for domain in message.domains),
        routes=routes,
        retry=retry,
        hedge=hedge,
        mutation=header_mutation(message, path, problems),
        fault=fault_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        session=session_override(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        limits=limit_overrides(message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems),
        header_filters=header_filter_overrides(
            message.typed_per_filter_config, join(path, "typed_per_filter_config"), problems
        ),
        include_attempt_count=message.include_request_attempt_count,
        include_attempt_count_in_response=message.include_attempt_count_in_response,
        include_timeout_retry=message.include_is_timeout_retry_header,
        requires_tls=message.require_tls == _TLS_FOR_ALL,
        tree=tree,
        has_tree=message.HasField("matcher"),
        limit_rules=route_rules(message.rate_limits, join(path, "rate_limits"), problems),
        metadata=read_metadata(message.metadata, join(path, "metadata"), problems),
    )


def _body_limits(message: Any) -> tuple[int | None, int | None]:
    """Return how much of a request's body is kept: by the field of today, and by the one before it."""
    return wrapped(message, "request_body_buffer_limit"), wrapped(message, "per_request_buffer_limit_bytes")


def _body_limit(message: Any, above: _Above) -> int | None:
    """Return the limit of a route: the field of today counts before the other, the route's own before its host's."""
    levels = zip(_body_limits(message), above.body_limits, strict=True)
    return next((limit for level in levels for limit in level if limit is not None), None)


def _route(message: Any, path: str, problems: Problems, above: _Above) -> Route:
    cover(message, path, problems, used=_ROUTE_USED, harmless=_ROUTE_HARMLESS)
    action = _action(message, path, problems, above)
    match = _match(message.match, join(path, "match"), problems)
    if isinstance(action, RouteAction) and action.template_rewrite:
        check_template_rewrite(action, match.path, join(path, "route.path_rewrite_policy"), problems)
    if isinstance(action, Redirect) and action.prefix_rewrite and match.path.kind is PathKind.TEMPLATE:
        problems.error(join(path, "redirect.prefix_rewrite"), "cannot be given together with path_match_policy")
    filters = join(path, "typed_per_filter_config")
    fault = fault_override(message.typed_per_filter_config, filters, problems)
    return Route(
        match=match,
        action=action,
        name=message.name,
        mutation=header_mutation(message, path, problems),
        fault=fault,
        session=session_override(message.typed_per_filter_config, filters, problems),
        limits=limit_overrides(message.typed_per_filter_config, filters, problems),
        body_limit=_body_limit(message, above),
        header_filters=header_filter_overrides(message.typed_per_filter_config, filters, problems),
        metadata=read_metadata(message.metadata, join(path, "metadata"), problems),
    )


def _match(message: Any, path: str, problems: Problems) -> RouteMatcher:
    # A condition that is not understood would send requests where they must not go, so nothing is ignored here.
    cover(message, path, problems, used=_MATCH_USED, harmless=frozenset(), strict=True)
    condition = path_matcher(message, path, problems)
    queries = message.query_parameters
    share = None
    if message.HasField("runtime_fraction"):
        share = runtime_fraction(message.runtime_fraction, join(path, "runtime_fraction"), problems)
    return RouteMatcher(
        path=condition,
        headers=header_matchers(message.headers, join(path, "headers"), problems),
        query=tuple(
            query_matcher(query, f"{join(path, 'query_parameters')}[{index}]", problems)
            for index, query in enumerate(queries)
        ),
        grpc=message.HasField("grpc"),
        fraction=share,
        proxy=proxy_conditions(message, path, problems),
    )


def _action(
    message: Any, path: str, problems: Problems, above: _Above
) -> RouteAction | Redirect | DirectResponse | NonForwarding:
    kind = message.WhichOneof("action")
    match kind:
        case "route":
            action = route_action(message.route, join(path, kind), problems, above.plugins)
            if above.mirrors and not action.mirrors:
                action = replace(action, mirrors=above.mirrors)
            return action
        case "redirect":
            return _redirect(message.redirect, join(path, kind), problems)
        case "direct_response":
            return _direct_response(message.direct_response, join(path, kind), problems, above.max_body)
        case _:
            # An action that is missing or not supported has been reported by the constraints and the coverage.
            return NonForwarding()


def _redirect(message: Any, path: str, problems: Problems) -> Redirect:
    used = frozenset(field.name for field in message.DESCRIPTOR.fields)
    cover(message, path, problems, used=used, harmless=frozenset())
    rewrite = None
    if message.WhichOneof("path_rewrite_specifier") == "regex_rewrite":
        rewrite = regex_rewrite(message.regex_rewrite, join(path, "regex_rewrite"), problems)
    return Redirect(
        status=_REDIRECT_STATUS.get(message.response_code, 301),
        scheme=message.scheme_redirect,
        https=message.https_redirect,
        host=message.host_redirect,
        port=message.port_redirect,
        path=message.path_redirect,
        prefix_rewrite=message.prefix_rewrite,
        regex_rewrite=rewrite,
        strip_query=message.strip_query,
    )


def _direct_response(message: Any, path: str, problems: Problems, max_body: int) -> DirectResponse:
    cover(message, path, problems, used=frozenset({"status", "body", "body_format"}), harmless=frozenset())
    body = b""
    if message.HasField("body"):
        body = inline_data(message.body, join(path, "body"), problems) or b""
        if max_body and len(body) > max_body:  # 0 is no limit, as in Envoy
            problems.error(join(path, "body"), f"has {len(body)} bytes, at most {max_body} are allowed")
    if not message.HasField("body_format"):
        return DirectResponse(message.status, body)
    form = body_format(message.body_format, join(path, "body_format"), problems)
    # The default one of texts gives way to that of a mutation; one that is asked for, and JSON's, do not.
    has_type = message.body_format.content_type or form.fields is not None
    return DirectResponse(message.status, body, form, form.content_type if has_type else "")
