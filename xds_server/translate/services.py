"""The services of the mesh, put together from registrations, ServiceEntries and the hosts that routes name."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xds_server.codes import AMBIGUOUS_NAME, MIXED_PROTOCOLS, SAME_ADDRESS
from xds_server.model import Instance
from xds_server.translate.documents import Config
from xds_server.translate.names import (
    DEFAULT_NAMESPACE,
    aliases,
    fqdn,
    host_port,
    ip_problem,
    split_service,
)
from xds_server.translate.report import Report

DEFAULT_PORT = 80
HTTP2_PROTOCOLS = frozenset({"grpc", "http2"})
Locality = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a service's port.

    Attributes:
        labels: `app` is always among those of an instance.
        internal: In the mesh, so that PeerAuthentication applies to it; an endpoint of a MESH_EXTERNAL entry is not.
    """

    address: str
    port: int
    namespace: str
    labels: Mapping[str, str]
    service_account: str = ""
    weight: int = 1
    locality: Locality = ("", "", "")
    internal: bool = True


@dataclass(slots=True)
class Service:
    """A host that clients name, with its ports and endpoints; built up here, and not changed afterwards.

    Attributes:
        origin: The ServiceEntry, or nothing for what only registrations and routes know.
        endpoints: By port number.
        resolution: `STATIC`, or how the endpoints' names are resolved: `DNS` (all addresses) or `DNS_ROUND_ROBIN` (one).
    """

    host: str
    namespace: str
    origin: Config | None = None
    ports: dict[int, str] = field(default_factory=dict)
    endpoints: dict[int, list[Endpoint]] = field(default_factory=dict)
    addresses: list[str] = field(default_factory=list)
    resolution: str = "STATIC"
    external: bool = False
    subject_alt_names: tuple[str, ...] = ()
    short_name: str = ""

    @property
    def main_port(self) -> int:
        """The port that a name without one means."""
        return DEFAULT_PORT if DEFAULT_PORT in self.ports else min(self.ports)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that clients may use, without ports."""
        short = (self.short_name,) if self.short_name else ()
        return (*short, *reversed(aliases(self.host)), *self.addresses)

    def is_http2(self, port: int) -> bool:
        return self.ports[port] in HTTP2_PROTOCOLS

    def is_grpc(self, port: int) -> bool:
        """Whether its documents say that it is called by gRPC."""
        return self.ports.get(port) == "grpc"


def instance_labels(instance: Instance) -> dict[str, str]:
    """Return an instance's labels, `app` defaulting to the service's name."""
    return {"app": instance.service} | dict(instance.labels)


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in selector.items())


def build_services(
    configs: Mapping[str, Sequence[Config]], instances: Sequence[Instance], report: Report
) -> dict[str, Service]:
    """Return every service by host, sorted."""
    services: dict[str, Service] = {}
    for entry in configs["ServiceEntry"]:
        _add_entry(services, entry, configs["WorkloadEntry"], instances)
    for instance in sorted(instances, key=lambda one: (one.namespace, one.service, one.id)):
        # A service comes into being with its first instance that answers: clients may be waiting for it.
        if instance.ready:
            _add_instance(services, instance, report)
    _add_named(services, configs)
    for service in services.values():
        for port, endpoints in service.endpoints.items():
            service.endpoints[port] = _without_duplicates(service, endpoints, report)
    _share_out_short_names(services, report)
    return dict(sorted(services.items()))


def _add_instance(services: dict[str, Service], instance: Instance, report: Report) -> None:
    host = fqdn(instance.service, instance.namespace)
    service = services.setdefault(host, Service(host, instance.namespace))
    protocol = service.ports.setdefault(instance.service_port, instance.protocol)
    if protocol != instance.protocol:
        report.warning(
            MIXED_PROTOCOLS,
            f"instances of {host}:{instance.service_port} are registered with protocols {protocol} and "
            f"{instance.protocol}; {protocol} is used for all",
        )
    service.endpoints.setdefault(instance.service_port, []).append(endpoint_of(instance))


def endpoint_of(instance: Instance) -> Endpoint:
    return Endpoint(
        address=instance.address,
        port=instance.port,
        namespace=instance.namespace,
        labels=instance_labels(instance),
        service_account=instance.service_account,
        weight=instance.weight,
        locality=(instance.region, instance.zone, instance.sub_zone),
    )


def _add_entry(
    services: dict[str, Service], entry: Config, workloads: Sequence[Config], instances: Sequence[Instance]
) -> None:
    spec = entry.spec
    for host in spec["hosts"]:
        service = services.setdefault(host, Service(host, entry.namespace))
        if service.origin is None:
            service.origin = entry
            service.resolution = spec["resolution"]
            service.external = spec.get("location", "MESH_EXTERNAL") == "MESH_EXTERNAL"
            service.subject_alt_names = tuple(spec.get("subjectAltNames", ()))
            # A range of addresses is no name that anybody asks for.
            service.addresses = [text for text in spec.get("addresses", ()) if not ip_problem(text)]
        for port in spec["ports"]:
            number = port["number"]
            service.ports.setdefault(number, _protocol(port))
            found = service.endpoints.setdefault(number, [])
            found += _entry_endpoints(entry, port, host)
            selector = spec.get("workloadSelector", {}).get("labels")
            if selector is not None:
                found += [
                    _workload_endpoint(workload.spec, port, workload.namespace, workload.labels, internal=True)
                    for workload in workloads
                    if workload.namespace == entry.namespace
                    and selects(selector, {**workload.labels, **workload.spec.get("labels", {})})
                ]
                # An instance says itself where it listens. With several ports in the entry it must also say which it serves.
                found += [
                    endpoint_of(one)
                    for one in sorted(instances, key=lambda one: one.id)
                    if one.ready
                    and one.namespace == entry.namespace
                    and selects(selector, instance_labels(one))
                    and (len(spec["ports"]) == 1 or one.service_port == number)
                ]


def _protocol(port: Mapping[str, Any]) -> str:
    prefix = port["name"].partition("-")[0]
    word = port.get("protocol") or (prefix if prefix in ("http", "http2", "grpc") else "http")
    return str(word).lower()


def _entry_endpoints(entry: Config, port: Mapping[str, Any], host: str) -> list[Endpoint]:
    internal = entry.spec.get("location") == "MESH_INTERNAL"
    written = entry.spec.get("endpoints", [])
    if not written and entry.spec["resolution"] != "STATIC" and "workloadSelector" not in entry.spec:
        written = [{"address": host}]
    return [_workload_endpoint(item, port, entry.namespace, {}, internal=internal) for item in written]


def _workload_endpoint(
    spec: Mapping[str, Any], port: Mapping[str, Any], namespace: str, labels: Mapping[str, str], *, internal: bool
) -> Endpoint:
    region, zone, sub_zone = (*spec.get("locality", "").split("/", 2), "", "", "")[:3]
    return Endpoint(
        address=_one_way(spec["address"]),
        port=spec.get("ports", {}).get(port["name"], port.get("targetPort", port["number"])),
        namespace=namespace,
        labels={**labels, **spec.get("labels", {})},
        service_account=spec.get("serviceAccount", ""),
        weight=spec.get("weight", 1),
        locality=(region, zone, sub_zone),
        internal=internal,
    )


def _one_way(address: str) -> str:
    """Return an IP address in its usual form: gRPC takes two ways to write one for a duplicate, and refuses both."""
    return address if ip_problem(address) else str(ipaddress.ip_address(address))


def _add_named(services: dict[str, Service], configs: Mapping[str, Sequence[Config]]) -> None:
    """Add the hosts that VirtualServices and DestinationRules name and nobody has registered yet.

    Their clusters exist without endpoints, so that routes to them are complete and become useful with the first
    registration.
    """
    for rule in configs["DestinationRule"]:
        host = fqdn(rule.spec["host"], rule.namespace)
        if split_service(host) and not host.startswith("*"):
            _add_host(services, host, rule.namespace, None)
    for config in configs["VirtualService"]:
        for name in config.spec["hosts"]:
            host = fqdn(name, config.namespace)
            if split_service(host):
                _add_host(services, host, config.namespace, None)
        for destination in destinations(config.spec):
            host = fqdn(destination["host"], config.namespace)
            _add_host(services, host, config.namespace, destination.get("port", {}).get("number"))


def destinations(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return every destination that a VirtualService's spec names."""
    found: list[Mapping[str, Any]] = []
    for http in spec["http"]:
        found += [route["destination"] for route in http.get("route", ())]
        found += [mirror["destination"] for mirror in http.get("mirrors", ())]
        found += [http["mirror"]] if "mirror" in http else []
    return found


def _add_host(services: dict[str, Service], host: str, namespace: str, port: int | None) -> None:
    parts = split_service(host)
    service = services.setdefault(host, Service(host, parts[1] if parts else namespace))
    if port is not None or not service.ports:
        service.ports.setdefault(port or DEFAULT_PORT, "http")


def _without_duplicates(service: Service, endpoints: list[Endpoint], report: Report) -> list[Endpoint]:
    """Keep one endpoint of each address, since gRPC refuses a resource with duplicates."""
    seen: dict[tuple[str, int], Endpoint] = {}
    for endpoint in endpoints:
        if (other := seen.setdefault((endpoint.address, endpoint.port), endpoint)) != endpoint:
            report.warning(
                SAME_ADDRESS,
                f"{service.host} has two different instances at {host_port(other.address, other.port)}; the first one counts",
            )
    return list(seen.values())


def _share_out_short_names(services: dict[str, Service], report: Report) -> None:
    by_name: dict[str, list[Service]] = {}
    for service in services.values():
        if parts := split_service(service.host):
            by_name.setdefault(parts[0], []).append(service)
    for name, holders in by_name.items():
        chosen = [one for one in holders if one.namespace == DEFAULT_NAMESPACE] or holders
        if name in services:  # a host of exactly this name exists
            continue
        if len(chosen) == 1:
            chosen[0].short_name = name
        else:
            namespaces = ", ".join(sorted(one.namespace for one in holders))
            report.warning(AMBIGUOUS_NAME, f"{name} is a service in {namespaces}; clients must write NAME.NAMESPACE")
