"""No option is accepted and ignored: what the decoders put into the model is read by what decides.

Attribute names are looked for in the syntax trees, so a name that several classes share needs one reader only; for the
options among those the place is written down in `READ_AT`.
"""

import ast
import dataclasses
import importlib
from functools import cache
from pathlib import Path

import pytest

import meshlib

ROOT = Path(meshlib.__file__).parent
MODULES = (
    "route",
    "cluster",
    "lb_policy",
    "listener",
    "retry",
    "endpoint",
    "matcher",
    "secret",
    "authorization",
    "subset",
    "session",
    "dns",
)

NOT_READERS = ("model", "admin", "cli", "testing", "integrations", "protos")
"""They pass values on, or show them: that an option is explained does not mean that it is honoured."""

DESCRIPTIVE = {
    ("TransportSocketMatch", "name"): "names the entry in explanations",
    ("Cluster", "metadata"): "for explanations; no condition or format that is supported reads it",
    ("VirtualHost", "metadata"): "where it was written, for explanations",
    ("ClusterLoadAssignment", "name"): "the name of the resource",
    ("Policy", "name"): "names the rule in explanations",
    ("Rbac", "name"): "names the filter in explanations",
}

READ_AT = {
    ("RouteAction", "idle_timeout_s"): ("view/target.py", "action.idle_timeout_s"),
    ("Cluster", "idle_timeout_s"): ("clients/httpx_common.py", "cluster.idle_timeout_s"),
    ("RouteAction", "timeout_s"): ("resilience/deadline.py", "action.timeout_s"),
    ("RouteAction", "max_stream_duration_s"): ("resilience/deadline.py", "action.max_stream_duration_s"),
    ("ClientListener", "max_stream_duration_s"): ("view/target.py", "listener.max_stream_duration_s"),
    ("RouteAction", "retry"): ("routing/route_builder.py", "action.retry"),
    ("VirtualHost", "retry"): ("routing/route_builder.py", "host.retry"),
    ("RouteAction", "prefix_rewrite"): ("routing/rewrite.py", "action.prefix_rewrite"),
    ("RouteAction", "regex_rewrite"): ("routing/rewrite.py", "action.regex_rewrite"),
    ("Redirect", "prefix_rewrite"): ("routing/redirect.py", "redirect.prefix_rewrite"),
    ("Redirect", "regex_rewrite"): ("routing/redirect.py", "redirect.regex_rewrite"),
    ("RouteAction", "mirrors"): ("routing/answers.py", "action.mirrors"),
    ("ClusterWeight", "fault"): ("routing/route_builder.py", "weight.fault"),
    ("Route", "fault"): ("routing/route_builder.py", "route.fault"),
    ("VirtualHost", "fault"): ("routing/route_builder.py", "host.fault"),
    ("RouteConfiguration", "fault"): ("routing/route_builder.py", "routes.fault"),
    ("ClientListener", "fault"): ("routing/route_builder.py", "listener.fault"),
    ("RouteAction", "metadata_match"): ("routing/route_builder.py", "action.metadata_match"),
    ("ClusterWeight", "metadata_match"): ("routing/route_builder.py", "weight.metadata_match"),
    ("SubsetSelector", "keys"): ("balancing/subset.py", "selector.keys"),
    ("SubsetSelector", "fallback"): ("balancing/subset.py", "selector.fallback"),
    ("SubsetConfig", "fallback"): ("balancing/subset.py", "config.fallback"),
    ("ClusterWeight", "session"): ("routing/route_builder.py", "weight.session"),
    ("Route", "session"): ("routing/route_builder.py", "route.session"),
    ("VirtualHost", "session"): ("routing/route_builder.py", "host.session"),
    ("RouteConfiguration", "session"): ("routing/route_builder.py", "routes.session"),
    ("ClientListener", "session"): ("routing/route_builder.py", "listener.session"),
    ("SessionPolicy", "is_strict"): ("routing/session.py", "policy.is_strict"),
    ("MadeCookie", "path"): ("routing/session.py", "made.path"),
    ("ClusterWeight", "mutation"): ("routing/route_builder.py", "weight.mutation"),
    ("Route", "mutation"): ("routing/route_builder.py", "route.mutation"),
    ("VirtualHost", "mutation"): ("routing/route_builder.py", "host.mutation"),
    ("RouteConfiguration", "mutation"): ("routing/route_builder.py", "routes.mutation"),
    ("FaultDelay", "share"): ("routing/fault.py", "fault.share"),
    ("FaultAbort", "share"): ("routing/fault.py", "fault.share"),
    ("MirrorPolicy", "share"): ("routing/mirror.py", "policy.share"),
    ("Cluster", "tls"): ("view/endpoint_tls.py", "cluster.tls"),
    ("TransportSocketMatch", "tls"): ("view/endpoint_tls.py", "entry.tls"),
    ("TransportSocketMatch", "match"): ("view/endpoint_tls.py", "entry.match"),
    ("ClientTls", "checks"): ("identity/verify.py", "tls.checks"),
    ("ClientTls", "parameters"): ("runtime/tls.py", "tls.parameters"),
    ("ClientTls", "sans"): ("identity/verify.py", "tls.sans"),
    ("TrustedCa", "sans"): ("identity/verify.py", "trust.sans"),
    ("TrustedCa", "checks"): ("identity/verify.py", "trust.checks"),
    ("PeerChecks", "crl_pem"): ("runtime/tls.py", "checks.crl_pem"),
    ("PeerChecks", "max_depth"): ("identity/verify.py", "checks.max_depth"),
    ("AuthorityNames", "header"): ("view/endpoint_tls.py", "names.header"),
    ("ServerListener", "tls"): ("servers/guard.py", "listener.tls"),
    ("DnsLookup", "family"): ("runtime/dns.py", "lookup.family"),
    ("DnsServers", "addresses"): ("runtime/dns_servers.py", "servers.addresses"),
    ("Endpoint", "metadata"): ("view/endpoint_tls.py", "endpoint.metadata"),
    ("ServerListener", "takes_plaintext"): ("servers/guard.py", "listener.takes_plaintext"),
    ("Route", "metadata"): ("routing/route_builder.py", "route.metadata"),
    ("RouteMatcher", "headers"): ("routing/compiled.py", "match.headers"),
    ("RouteMatcher", "grpc"): ("routing/compiled.py", "match.grpc"),
    ("FaultPolicy", "headers"): ("routing/fault.py", "policy.headers"),
    ("CircuitBreakers", "max_connections"): ("resilience/circuit_breaker.py", "limits.max_connections"),
    ("CircuitBreakers", "max_pending_requests"): ("resilience/circuit_breaker.py", "limits.max_pending_requests"),
}


def fields() -> list[tuple[str, str]]:
    """Every field of every dataclass of the model, as (class, field)."""
    found = []
    for module in MODULES:
        loaded = importlib.import_module(f"meshlib.model.{module}")
        for kind in vars(loaded).values():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == loaded.__name__:
                found += [(kind.__name__, field.name) for field in dataclasses.fields(kind)]
    return found


@cache
def sources() -> dict[str, ast.Module]:
    """The parsed files of everything that decides, by path below the package."""
    found = {}
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT)
        if place.parts[0] not in NOT_READERS and not place.name.startswith("decode"):
            found[place.as_posix()] = ast.parse(path.read_text("utf-8"))
    return found


@cache
def read_names() -> frozenset[str]:
    """Attributes that are read anywhere, patterns included."""
    found: set[str] = set()
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.MatchClass):
                found.update(node.kwd_attrs)
    return frozenset(found)


def reads(path: str, expression: str) -> bool:
    """Whether a file reads `owner.name`, whatever the owner itself is an attribute of."""
    owner, _, name = expression.rpartition(".")
    for node in ast.walk(sources()[path]):
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load):
            value = node.value
            if owner in (getattr(value, "id", None), getattr(value, "attr", None)):
                return True
    return False


@pytest.mark.parametrize(("owner", "name"), fields())
def test_every_field_of_the_model_is_read(owner: str, name: str) -> None:
    if (owner, name) not in DESCRIPTIVE:
        assert name in read_names(), f"{owner}.{name} is decoded, and nobody looks at it"


@pytest.mark.parametrize(("owner", "name"), READ_AT)
def test_option_whose_name_others_share_is_read_where_it_must(owner: str, name: str) -> None:
    assert (owner, name) in fields()
    path, expression = READ_AT[owner, name]
    assert reads(path, expression), f"{path} does not read {expression}"


@pytest.mark.parametrize(("owner", "name"), DESCRIPTIVE)
def test_exceptions_are_about_fields_that_exist(owner: str, name: str) -> None:
    assert (owner, name) in fields()
