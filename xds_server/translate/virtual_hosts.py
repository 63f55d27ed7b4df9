"""Virtual hosts: which names clients may use, and which routes are behind each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xds_server.model import Position
from xds_server.translate.documents import Config
from xds_server.translate.messages import Json
from xds_server.translate.names import cluster_name, fqdn, host_matches, host_port
from xds_server.translate.services import DEFAULT_PORT, Service
from xds_server.translate.virtual_service import RouteBuilder, applies_to_mesh


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """One virtual host and the names under which clients reach it.

    Attributes:
        route_configuration: Its name; for Envoy all virtual hosts are in one.
        domains: Also the names of listeners.
    """

    name: str
    route_configuration: str
    domains: tuple[str, ...]
    routes: tuple[Json, ...]
    resource: str
    place: Position | None


def virtual_hosts(
    builder: RouteBuilder, services: Mapping[str, Service], configs: Sequence[Config]
) -> list[VirtualHost]:
    """Return a virtual host for each port of each service, and for each further host of a VirtualService."""
    owners = _owners(services, configs)
    result: list[VirtualHost] = []
    taken: set[str] = set()
    for service in services.values():
        config = owners.get(service.host)
        for port in sorted(service.ports):
            routes = builder.routes(config, port) if config else [builder.default_route(service, port)]
            if config and not routes:
                # As Istio: a VirtualService with nothing for this port leaves the service its default route.
                config, routes = None, [builder.default_route(service, port)]
            source = config or service.origin
            domains = _domains(service.names, port, is_main=port == service.main_port, taken=taken)
            result.append(
                VirtualHost(
                    name=host_port(service.host, port),
                    route_configuration=cluster_name(port, "", service.host),
                    domains=domains,
                    routes=tuple(routes),
                    resource=source.resource if source else f"/v1/registrations/{service.namespace}/{service.host}",
                    place=source.document.position() if source else None,
                )
            )
    for host, config in sorted(owners.items()):
        if host in services or not (routes := builder.routes(config, DEFAULT_PORT)):
            continue
        domains = _domains((host,), DEFAULT_PORT, is_main=True, taken=taken)
        name = f"{host}:{DEFAULT_PORT}"
        place = config.document.position()
        result.append(VirtualHost(name, name, domains, tuple(routes), config.resource, place))
    return [one for one in result if one.domains]


def _owners(services: Mapping[str, Service], configs: Sequence[Config]) -> dict[str, Config]:
    """Return which VirtualService each host belongs to: the most specific pattern, then the oldest config."""
    patterns: dict[str, Config] = {}
    for config in configs:
        if applies_to_mesh(config):
            for host in config.spec["hosts"]:
                patterns.setdefault(fqdn(host, config.namespace), config)
    owners = dict(patterns)
    wildcards = sorted((pattern for pattern in patterns if pattern.startswith("*")), key=len, reverse=True)
    for host in services:
        if host not in owners:
            pattern = next((one for one in wildcards if host_matches(one, host)), None)
            if pattern is not None:
                owners[host] = patterns[pattern]
    return owners


def _domains(names: Iterable[str], port: int, *, is_main: bool, taken: set[str]) -> tuple[str, ...]:
    """Return each name with the port, and for the main port without it; names that another host has got are left out."""
    result = []
    for name in names:
        bare = f"[{name}]" if ":" in name else name
        for domain in ([bare] if is_main else []) + [f"{bare}:{port}"]:
            if domain not in taken:
                taken.add(domain)
                result.append(domain)
    return tuple(result)
