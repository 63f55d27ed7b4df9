"""From documents and instances to the resources of one profile."""

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.message import Message

from xds_server.model import NOWHERE, Compiled, Document, Instance, Place, Profile
from xds_server.translate.authorization import Authorizations
from xds_server.translate.checks import check
from xds_server.translate.clusters import ClusterBuilder, Target
from xds_server.translate.destination_rule import Rule, RuleIndex, find_rule
from xds_server.translate.documents import Config, decode_documents
from xds_server.translate.inbound import inbound_listeners
from xds_server.translate.listeners import listeners, route_configurations
from xds_server.translate.messages import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    ROUTE_CONFIGURATION,
    SERVED_TYPES,
    build,
    type_url,
)
from xds_server.translate.names import fqdn
from xds_server.translate.native import add_native
from xds_server.translate.peer_authentication import PeerAuthentications
from xds_server.translate.report import Report
from xds_server.translate.services import Service, build_services, destinations, selects
from xds_server.translate.virtual_hosts import virtual_hosts
from xds_server.translate.virtual_service import RouteBuilder


def compile_documents(
    documents: Iterable[Document],
    instances: Sequence[Instance],
    *,
    profile: Profile,
    trust_domain: str = "cluster.local",
    outbound_listen: str = "127.0.0.1:15001",
    has_certificates: bool = True,
    place: Place = NOWHERE,
) -> Compiled:
    """Translate everything for clients of one profile and place.

    Pure: the same input gives the same bytes, and neither the order of documents nor that of instances matters (of
    several configs for one thing the oldest applies, then the first by name).

    Args:
        documents: Istio configs and native xDS resources.
        instances: What is registered now.
        trust_domain: Of the SPIFFE identities.
        outbound_listen: Where an Envoy client listens, as host:port.
        has_certificates: Servers and clients can be given some; without, PERMISSIVE is plaintext.
        place: Where the clients are, for `localityLbSetting`.

    Returns:
        Resources, each of which a client of the profile accepts, and what is wrong with the input. With an error among
        the findings the resources lack what is wrong and must not be published. Never raises on any document.
    """
    documents, profile = tuple(documents), Profile(profile)
    report = Report()
    configs = decode_documents(documents, report)
    check(configs, report, instances)
    services = build_services(configs, instances, report)
    index = RuleIndex(configs["DestinationRule"])
    rules = {host: find_rule(service, index) for host, service in services.items()}
    hosts = virtual_hosts(RouteBuilder(profile, services, rules, report), services, configs["VirtualService"])
    authentications = PeerAuthentications(configs["PeerAuthentication"], has_certificates)
    authorizations = Authorizations(configs["AuthorizationPolicy"], profile, report)
    resources: dict[str, dict[str, Message]] = {
        LISTENER: listeners(hosts, profile, outbound_listen)
        | inbound_listeners(instances, authentications, authorizations, trust_domain, report),
        ROUTE_CONFIGURATION: route_configurations(hosts, profile),
        **{name: {} for name in SERVED_TYPES if name not in (LISTENER, ROUTE_CONFIGURATION)},
    }
    builder = ClusterBuilder(profile, trust_domain, authentications, report, place)
    depends_on_place = False
    for target in _targets(services, rules, configs["VirtualService"]):
        resources[CLUSTER][target.name] = build(CLUSTER, builder.build(target))
        depends_on_place = depends_on_place or builder.depends_on_place(target)
        if (endpoints := builder.endpoints(target)) is not None:
            resources[ENDPOINTS][target.name] = build(ENDPOINTS, endpoints)
    add_native(documents, resources, profile, report)
    served = {type_url(name): items for name, items in resources.items()}
    return Compiled(served, report.findings(), depends_on_place)


def _targets(services: Mapping[str, Service], rules: Mapping[str, Rule], configs: Sequence[Config]) -> Iterable[Target]:
    """Yield every cluster's target: per port the whole service, its subsets, and the subsets that only routes name.

    The last are empty: a route to them fails at once, as it should, and leaves the rest of the configuration usable.
    """
    named: dict[str, set[str]] = {}
    for config in configs:
        for destination in destinations(config.spec):
            if subset := destination.get("subset"):
                named.setdefault(fqdn(destination["host"], config.namespace), set()).add(subset)
    for host, service in services.items():
        rule = rules[host]
        for port in sorted(service.ports):
            every = tuple(service.endpoints.get(port, ()))
            yield Target(service, port, "", rule, every)
            for name in sorted(rule.subsets.keys() | named.get(host, set())):
                subset = rule.subsets.get(name)
                members = () if subset is None else tuple(one for one in every if selects(subset.labels, one.labels))
                yield Target(service, port, name, rule, members)
