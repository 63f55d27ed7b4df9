"""How the endpoints of one cluster are reached: in plaintext, or over TLS with which names."""

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from meshlib.model.cluster import AuthorityNames, Cluster
from meshlib.model.endpoint import Endpoint
from meshlib.model.health import HealthCheck
from meshlib.model.request import RequestHead
from meshlib.model.secret import ClientTls, SniSource

__all__ = ["MAX_NAMED", "EndpointTls"]

MAX_NAMED: Final = 1024
"""Hosts, of one cluster, whose TLS settings are kept."""


class EndpointTls:
    """Of one configuration of a cluster. Equal answers are the same objects, as contexts and connections are found by
    them. Any thread may ask; that two work the same thing out does no harm."""

    __slots__ = ("_cluster", "_found", "_is_one", "_named")

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        tls = cluster.tls
        self._is_one = not cluster.socket_matches and (tls is None or tls.sni_source is SniSource.CONFIG)
        self._found: dict[str, ClientTls | None] = {}
        # The second value is what was made of the first, which it keeps so that its id stays taken.
        self._named: dict[tuple[int, str], tuple[ClientTls, ClientTls]] = {}

    def following(self, cluster: Cluster) -> "EndpointTls":
        """Return the one for a later configuration, or other endpoints: the same where nothing depends on those."""
        return self if cluster is self._cluster and self._is_one else EndpointTls(cluster)

    def of(self, endpoint: Endpoint) -> ClientTls | None:
        """Return how to reach an endpoint; None: plaintext.

        The first `transport_socket_matches` entry that the endpoint's metadata contains, else the cluster's own.
        """
        if self._is_one:
            return self._cluster.tls
        known = self._found
        try:
            return known[endpoint.address]
        except KeyError:
            metadata = endpoint.metadata.get("envoy.transport_socket_match", {})
            known[endpoint.address] = tls = self._matching(metadata, endpoint)
            return tls

    def for_check(self, endpoint: Endpoint, config: HealthCheck) -> ClientTls | None:
        """Return how a health check reaches an endpoint; None: plaintext."""
        tls = self.of(endpoint) if config.socket_match is None else self._matching(dict(config.socket_match), endpoint)
        return replace(tls, alpn=config.alpn) if tls is not None and config.alpn else tls

    def for_request(self, tls: ClientTls, names: AuthorityNames, head: RequestHead) -> ClientTls:
        """Return how to reach an endpoint for a request whose authority TLS takes names from.

        Args:
            tls: As `of` returned it.
            head: As routes have rewritten it, but not by the endpoint's hostname.

        Source: Envoy `Router::Filter::decodeHeaders`, "auto_sni".
        """
        host = (names.header and head.headers.find(names.header)) or head.authority
        host, is_address = _host_of(host)
        if not host:
            return tls
        key = (id(tls), host)
        known = self._named
        found = known.get(key)
        if found is None or found[0] is not tls:
            named = replace(
                tls,
                sni=host if names.is_sni and not is_address else tls.sni,
                authority_name=host if names.is_san else "",
            )
            if len(known) >= MAX_NAMED:
                # Applications choose authorities; whoever makes up thousands pays for each.
                known.clear()
            found = known[key] = (tls, named)
        return found[1]

    def _matching(self, metadata: Mapping[str, object], endpoint: Endpoint) -> ClientTls | None:
        tls = self._cluster.tls
        for entry in self._cluster.socket_matches:
            if all(key in metadata and metadata[key] == value for key, value in entry.match):
                tls = entry.tls
                break
        if tls is not None and tls.sni_source is SniSource.HOSTNAME and endpoint.hostname:
            tls = replace(tls, sni=endpoint.hostname)
        return tls


def _host_of(authority: str) -> tuple[str, bool]:
    """Return the host of an authority without its port, and whether it is an IP address."""
    host = authority
    if authority.startswith("["):
        host = authority[1:].partition("]")[0]
    elif authority.count(":") == 1:
        host = authority.partition(":")[0]
    try:
        ip_address(host)
    except ValueError:
        return host, False
    return host, True
