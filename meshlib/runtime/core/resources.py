"""What core is told, as xDS resources, and how a call names its endpoint."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import grpc

from meshlib.model.matcher import StringKind
from meshlib.model.secret import ClientTls, SanMatcher, SanType, TrustedCa
from meshlib.protos import TYPE_PREFIX, from_dict, to_any
from meshlib.runtime.clock import wall
from meshlib.runtime.core.throwaway import ThrowawayCa
from meshlib.xds.resources import CDS, EDS, LDS, RDS

__all__ = [
    "LISTENER",
    "CoreCluster",
    "Resources",
    "bootstrap_json",
    "cookie",
    "fail_closed",
    "is_plain_trust",
    "resources",
    "san_patterns",
]

LISTENER: Final = "meshlib"
_ROUTES: Final = "routes"
_COOKIE: Final = "meshlib"
_UNLIMITED: Final = 2**32 - 1
_IDLE_S: Final = 1800
"""gRPC's own idle timeout; core's for endpoints that a cookie names would be an hour."""

_SPECIAL: Final = frozenset(r"\.+*?()|[]{}^$")

Resources = Mapping[str, Mapping[str, Any]]
"""`Any` messages by type URL and name."""


@dataclass(frozen=True, slots=True)
class CoreCluster:
    """Endpoints whose peers must prove the same identity.

    Attributes:
        name: Seen by peers in the cookie, so it says nothing.
        patterns: RE2; a name in the peer's certificate must match one as a whole. Never empty.
        certificate: Provider instance of our certificate; empty: none is shown.
        trust: Provider instance of the roots.
        authority: Of the calls; core takes it from the endpoint.
        endpoints: `IP:port`, IPv6 in brackets.

    Raises:
        ValueError: No patterns: anybody could be the peer.
    """

    name: str
    patterns: tuple[str, ...]
    sni: str
    certificate: str
    trust: str
    authority: str
    endpoints: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.patterns or not self.trust:
            raise ValueError(f"cluster {self.name!r} would accept any peer")


def san_patterns(tls: ClientTls) -> tuple[str, ...]:
    """Return what core can check of a TLS configuration in full; empty: the relay has to.

    That is expected URIs, and nothing else that a peer must satisfy (pins, revocation lists, versions of TLS, ...).
    """
    if replace(tls, certificate=None, trust=None, sans=(), sni="", alpn=()) != ClientTls(None, None):
        return ()
    patterns = tuple(_pattern(matcher) for matcher in tls.sans)
    return patterns if all(patterns) else ()


def is_plain_trust(trust: TrustedCa | None) -> bool:
    """Whether a trust bundle is a list of roots and nothing more."""
    return (
        trust is not None
        and bool(trust.ca_pem)
        and trust == TrustedCa(trust.ca_pem)
        and b"X509 CRL" not in trust.ca_pem
    )


def _pattern(matcher: SanMatcher) -> str:
    text = matcher.matcher
    # Other kinds of names follow other rules (DNS wildcards), and the untyped form may mean any.
    if matcher.san_type is not SanType.URI or text.ignore_case or not text.value.isascii():
        return ""
    if text.kind is StringKind.REGEX:
        return text.value
    literal = "".join(f"\\{one}" if one in _SPECIAL else one for one in text.value)
    match text.kind:
        case StringKind.EXACT:
            return literal
        case StringKind.PREFIX:
            return f"{literal}.*"
        case StringKind.SUFFIX:
            return f".*{literal}"
        case StringKind.CONTAINS:
            return f".*{literal}.*"


def cookie(address: str, cluster: str) -> str:
    """Return the value of the `cookie` metadata that steers a call."""
    return f"{_COOKIE}={base64.b64encode(f'{address};{cluster}'.encode()).decode()}"


def bootstrap_json(server_uri: str, node_id: str, providers: Mapping[str, Mapping[str, str]]) -> str:
    """Return the bootstrap of a channel.

    Args:
        providers: By instance name: fields of core's `file_watcher`.
    """
    return json.dumps(
        {
            "xds_servers": [
                {
                    "server_uri": server_uri,
                    "channel_creds": [{"type": "insecure"}],
                    # Trusted: core takes the authority of calls from the endpoints (A81).
                    "server_features": ["xds_v3", "trusted_xds_server"],
                }
            ],
            "node": {"id": node_id},
            "certificate_providers": {
                name: {"plugin_name": "file_watcher", "config": {**config, "refresh_interval": "1s"}}
                for name, config in providers.items()
            },
        }
    )


def fail_closed() -> grpc.ChannelCredentials:
    """Return the credentials of a channel. For a cluster without TLS, of which there are none, they trust nobody."""
    return grpc.xds_channel_credentials(grpc.ssl_channel_credentials(_nobody_pem()))


@lru_cache(1)
def _nobody_pem() -> bytes:
    return ThrowawayCa(wall()).pem


def resources(clusters: Iterable[CoreCluster]) -> Resources:
    """Return everything that core is told; at least one cluster."""
    found = tuple(clusters)
    pairs = [_of_cluster(cluster) for cluster in found]
    names = tuple(cluster.name for cluster in found)
    return {
        LDS: {LISTENER: _listener()},
        RDS: {_ROUTES: _routes(names)},
        CDS: {name: pair[0] for name, pair in zip(names, pairs, strict=True)},
        EDS: {name: pair[1] for name, pair in zip(names, pairs, strict=True)},
    }


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": TYPE_PREFIX + name, **fields}


@lru_cache(1)
def _listener() -> Any:
    filters = "envoy.extensions.filters.http"
    state = _typed("envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState", cookie={"name": _COOKIE})
    manager = _typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        rds={"route_config_name": _ROUTES, "config_source": {"ads": {}}},
        http_filters=[
            {
                "name": "endpoint",
                "typed_config": _typed(
                    f"{filters}.stateful_session.v3.StatefulSession",
                    session_state={"name": "cookie", "typed_config": state},
                ),
            },
            {"name": "router", "typed_config": _typed(f"{filters}.router.v3.Router")},
        ],
    )
    return to_any(
        from_dict("envoy.config.listener.v3.Listener", {"name": LISTENER, "api_listener": {"api_listener": manager}})
    )


@lru_cache(4)
def _routes(names: tuple[str, ...]) -> Any:
    route = {
        "match": {"prefix": ""},
        # The weights are never used: the cookie names the cluster, and without one no cluster has an endpoint.
        "route": {
            "auto_host_rewrite": True,
            "weighted_clusters": {"clusters": [{"name": name, "weight": 1} for name in names]},
            "max_stream_duration": {"max_stream_duration": "0s"},
        },
    }
    hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
    return to_any(from_dict("envoy.config.route.v3.RouteConfiguration", {"name": _ROUTES, "virtual_hosts": hosts}))


# A rotation makes all clusters anew, so twice the services that a process may use.
@lru_cache(2048)
def _of_cluster(cluster: CoreCluster) -> tuple[Any, Any]:
    validation: dict[str, Any] = {
        "ca_certificate_provider_instance": {"instance_name": cluster.trust},
        "match_subject_alt_names": [
            {"safe_regex": {"google_re2": {}, "regex": pattern}} for pattern in cluster.patterns
        ],
    }
    common: dict[str, Any] = {"validation_context": validation}
    if cluster.certificate:
        common["tls_certificate_provider_instance"] = {"instance_name": cluster.certificate}
    context = _typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", sni=cluster.sni, common_tls_context=common
    )
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    protocol = _typed(
        options,
        common_http_protocol_options={"idle_timeout": f"{_IDLE_S}s"},
        explicit_http_config={"http2_protocol_options": {}},
    )
    made = {
        "name": cluster.name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}}},
        "lb_policy": "ROUND_ROBIN",
        # Hosts that are draining take no calls but those whose cookie names them.
        "common_lb_config": {"override_host_status": {"statuses": ["DRAINING"]}},
        "circuit_breakers": {"thresholds": [{"max_requests": _UNLIMITED}]},
        "typed_extension_protocol_options": {options: protocol},
        "transport_socket": {"name": "tls", "typed_config": context},
    }
    group = {
        "locality": {"region": "all"},
        "load_balancing_weight": 1,
        "lb_endpoints": [_endpoint(address, cluster.authority) for address in cluster.endpoints],
    }
    assignment = {"cluster_name": cluster.name, "endpoints": [group]}
    return (
        to_any(from_dict("envoy.config.cluster.v3.Cluster", made)),
        to_any(from_dict("envoy.config.endpoint.v3.ClusterLoadAssignment", assignment)),
    )


def _endpoint(address: str, authority: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    where = {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}
    return {
        "health_status": "DRAINING",
        "load_balancing_weight": 1,
        "endpoint": {"hostname": authority, "address": where},
    }
