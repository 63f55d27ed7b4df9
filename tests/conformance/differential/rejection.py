"""Which configurations are taken: random changes of valid ones, judged by Envoy and by meshlib's decoder.

What Envoy refuses meshlib refuses. What Envoy takes meshlib takes, or refuses with a reason that is written down: a field
that it does not support, which docs/reference/xds-features.md lists, or one of `LISTED`, which DIFFERENCES.md lists.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from differential import subject
from differential.decision import Refusal
from differential.envoy_side import EnvoySide
from differential.generate import Generator, Json
from differential.mutate import mutate
from differential.resource_side import CLUSTERS, ENDPOINTS, LISTENERS, EnvoyEndedError, ResourceSide
from differential.resources import ResourceMaker
from differential.run import MAX_SHOWN, Report
from differential.shrink import smaller_configurations
from meshlib.protos import from_dict, to_dict
from meshlib.xds.resources import CDS, EDS, LDS

MAX_TRIES = 200
ENDED = "Envoy's process ended"

# By a reason of meshlib's, or "Envoy: " and a part of one of Envoy's.
# A fault of a certificate that Envoy only finds when the secret beside it has come.
_CERTIFICATE = re.compile(
    r"tls_certificates\[\d+\]\.\w+: is |trusted_ca: is not a PEM|cipher_suites\[\d+\]: .* is not a cipher|has no effect with safe_regex"
    r"|alpn_protocols\[\d+\]: must have at most"
)
LISTED = (
    re.compile(r"(is|are) not supported|only (one|`self`) is supported|must be exactly one HttpConnectionManager"),
    re.compile(
        r"transport_protocol: must be tls or raw_buffer|exactly one filter chain is supported|config(_source)?: must be ads or self"
    ),
    # Values with which there is no ring, no table or no choice. Envoy checks the rules of the protos everywhere but in
    # the policies of this list; with some of them its process ends.
    re.compile(r"^load_balancing_policy\.policies.*: (must|is required|unknown value|is not a duration|one of|needs)"),
    re.compile(r"(minimum_ring_size|table_size): must be (from|a prime)|maximum_ring_size: is \d+, less than"),
    re.compile(r"^lb_subset_config\..*: must (not )?be"),
    # Envoy takes a negative one for 1.
    re.compile(r"^least_request_lb_config\.active_request_bias\.default_value: must be at least 0"),
    # gRPC's providers of certificates, which Envoy does not look at.
    re.compile(r"certificate_provider_instance"),
    re.compile(r"cipher_suites\[\d+\]: '(\\x00.*)?' is not a cipher"),  # what follows a NUL Envoy does not see
    re.compile(r"tls_certificates\[\d+\]\.(certificate_chain|private_key): is required"),
    re.compile(r"health_status: unknown value"),
    re.compile(r"\.crl: is not a PEM"),  # Envoy takes it for a list of nothing
    # In DNS clusters.
    re.compile(r"^load_assignment.*(endpoint(\.address\.address)?: is required|is only supported in EDS|is not an IP)"),
    # Who asks for the name or the certificate of a peer, and trusts nobody to vouch for it.
    re.compile(
        r"auto_(sni_)?san_validation:? needs a trusted CA|require_client_certificate: needs a validation context"
    ),
    re.compile(r"tls_maximum_protocol_version: leaves no version of TLS to use"),
    # Names that only label things; management servers for gRPC leave them out.
    re.compile(
        r"^Envoy: .*(TransportSocketValidationError\.Name|[^a-zA-Z]FilterValidationError\.Name"
        r"|HttpConnectionManagerValidationError\.StatPrefix): value length must be at least 1",
        re.DOTALL,
    ),
    # gRPC's providers of certificates may take its place.
    re.compile(r"^Envoy: .*ValidationContextSdsSecretConfig: value is required", re.DOTALL),
    # What gRPC's clients take: another policy than this one in WrrLocality, options for clients without
    # load_balancing_policy beside it, several categories of drops.
    re.compile(r"^Envoy: .*Currently WrrLocalityLoadBalancer only supports ClientSideWeightedRoundRobin"),
    re.compile(r"^Envoy: .*cluster provided LB not specified but cluster 'subject' provided one"),
    re.compile(r"^Envoy: .*load_balancing_policy cannot be combined with partial fields"),
    re.compile(r"^Envoy: .*drop_overloads config (has \d+ categories|is invalid)"),
    # What gRPC's clients refuse, each for a promise of the protos.
    re.compile(r"endpoints: (priority \d+ is empty|the sum of \w+ weights of priority)"),
    re.compile(r"http_filters: is empty; the router filter is required|route_config_name: must not be empty"),
    re.compile(
        r"abort\.grpc_status: must be at most 16|http_filters\[\d+\]\.name: .* is the name of an earlier filter"
    ),
    # Parts of milliseconds, which Envoy does not see; and what nobody knows.
    re.compile(r"fill_interval: must be at least 0.05 s|path_with_escaped_slashes_action: unknown value"),
    re.compile(r"sampling_window: must be at least 1 s"),  # Envoy divides by its whole seconds
    re.compile(r"^Envoy: .*Missing config source specifier"),
    # Extensions that Envoy looks up by name, and gRPC and meshlib by type.
    re.compile(r"^Envoy: .*Didn't find a registered implementation for name:"),
    # A header that a request stands on, taken away by a filter: Envoy notices when there is one.
    re.compile(r"(request|response)_mutations\[\d+\]\.remove: .* may not be"),
    # A matter of this machine's files or of what the process of a proxy did before.
    re.compile(
        r"^Envoy: .*unable to open file|^Envoy: .*Environment variable doesn't exist|^Envoy: .*reuse port cannot be changed"
    ),
)
LISTED_ROUTES = (
    # Management servers for gRPC name no virtual hosts.
    re.compile(r"^Envoy: .*VirtualHostValidationError\.Name: value length must be at least 1", re.DOTALL),
    re.compile(r"^Envoy: .*route: unknown ((shadow|weighted) )?cluster"),
    re.compile(r"^Envoy: .*max program size of 100 set for the error level"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is broken, and who judges it.

    Attributes:
        message: Full name of its type.
        make: Returns a valid one for a seed.
        install: Gives one to Envoy; None: it took it.
        refusal: Of meshlib.
        listed: Reasons for a difference, beside `LISTED`.
        is_deep: What an `Any` holds is broken too.
    """

    layer: str
    message: str
    make: Callable[[str], Json]
    install: Callable[[Json], Refusal | None]
    refusal: Callable[[Json], Refusal | None]
    listed: tuple[re.Pattern[str], ...] = ()
    is_deep: bool = True


def routes(side: EnvoySide) -> Kind:
    """Route configurations."""
    kind = "envoy.config.route.v3.RouteConfiguration"

    def make(seed: str) -> Json:
        return Generator(seed).configuration()

    def named(configuration: Json) -> Json:
        return {**configuration, "name": "differential"}

    return Kind(
        "rejection",
        kind,
        make,
        lambda configuration: side.install(named(configuration)),
        lambda configuration: subject.refusal(named(configuration)),
        LISTED_ROUTES,
        is_deep=False,
    )


def resources(side: ResourceSide) -> tuple[Kind, ...]:
    """Clusters, endpoints, what an HTTP connection manager says to clients, and listeners of servers."""
    cluster, assignment = "envoy.config.cluster.v3.Cluster", "envoy.config.endpoint.v3.ClusterLoadAssignment"
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    listener = "envoy.config.listener.v3.Listener"
    named = {"name": "subject"}
    return (
        Kind(
            "rejection of clusters",
            cluster,
            lambda seed: ResourceMaker(seed).cluster(),
            lambda one: side.install(CLUSTERS, {**one, **named}),
            lambda one: subject.refusal_of(CDS, cluster, {**one, **named}),
            # In options of connections, which decide nothing here.
            (re.compile(r"^Envoy: .*ignore_case has no effect for safe_regex"),),
        ),
        Kind(
            "rejection of endpoints",
            assignment,
            lambda seed: ResourceMaker(seed).assignment(),
            lambda one: side.install(ENDPOINTS, {**one, "cluster_name": "subject_of_files"}),
            lambda one: subject.refusal_of(EDS, assignment, {**one, "cluster_name": "subject_of_files"}),
        ),
        Kind(
            "rejection of managers",
            manager,
            lambda seed: _without_type(ResourceMaker(seed).manager()),
            lambda one: side.install(LISTENERS, _socket_listener(manager, one)),
            lambda one: subject.refusal_of(LDS, listener, _api_listener(manager, one)),
            LISTED_ROUTES,
        ),
        Kind(
            "rejection of listeners",
            listener,
            lambda seed: ResourceMaker(seed).listener(),
            # Nothing needs to be listened at.
            lambda one: side.install(LISTENERS, {"bind_to_port": False, **one, **named}),
            lambda one: subject.refusal_of(LDS, listener, {**one, **named}),
            (*LISTED_ROUTES, re.compile(r"route_config: virtual host .*: a server cannot tell: ")),
        ),
    )


def _without_type(packed: Json) -> Json:
    return {name: value for name, value in packed.items() if name != "@type"}


def _socket_listener(kind: str, manager: Json) -> Json:
    """An API listener can only stand in Envoy's bootstrap."""
    packed = {"@type": f"type.googleapis.com/{kind}", **manager}
    return {
        "name": "subject",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
        "bind_to_port": False,
        "filter_chains": [{"filters": [{"name": "m", "typed_config": packed}]}],
    }


def _api_listener(kind: str, manager: Json) -> Json:
    packed = {"@type": f"type.googleapis.com/{kind}", **manager}
    return {"name": "subject", "api_listener": {"api_listener": packed}}


def run_rejection(kind: Kind, seed: int, cases: int) -> Report:
    """Compare who takes which of so many configurations."""
    report = Report(seed, kind.layer)
    seen: set[str] = set()
    for number in range(cases):
        chance = random.Random(f"rejection/{seed}/{number}")
        message = from_dict(kind.message, kind.make(f"{seed}/{number}"))
        changes = [mutate(message, chance, inside=kind.is_deep) for _ in range(chance.choice((1, 1, 2)))]
        configuration = _json(message)
        report.cases += 1
        verdict = _compare(kind, configuration)
        report.outcomes[verdict.partition(":")[0]] += 1
        if not verdict.startswith(("both", "listed")):
            _add(report, kind, configuration, verdict, f"{seed}/{number}", changes, seen)
    return report


def _json(message: Any) -> Json:
    made: Json = to_dict(message)
    return made


def _compare(kind: Kind, configuration: Json) -> str:
    try:
        envoy = kind.install(configuration)
    except EnvoyEndedError:
        return f"both or none: {ENDED}"
    meshlib = kind.refusal(configuration)
    if envoy is None and meshlib is None:
        return "both take it"
    if envoy is not None and meshlib is not None:
        return "both refuse it"
    told = meshlib.reason if meshlib is not None else f"Envoy: {envoy.reason if envoy else ''}"
    reasons = told.split("\n") if meshlib is not None else [told]
    waits = (_CERTIFICATE,) if '"sds_config"' in json.dumps(configuration) else ()
    if all(any(listed.search(reason) for listed in (*LISTED, *kind.listed, *waits)) for reason in reasons):
        return "listed"
    return f"refused by {'meshlib' if meshlib is not None else 'Envoy'}: {Refusal(told).kind}"


def _add(
    report: Report, kind: Kind, configuration: Json, verdict: str, case: str, changes: list[str], seen: set[str]
) -> None:
    report.disagreeing += 1
    name = re.sub(r"[.\w]+\.(\w+):", r"\1:", verdict)
    if name in seen or len(seen) >= MAX_SHOWN:
        return
    seen.add(name)
    tries, progress = 0, True
    while progress and tries < MAX_TRIES:
        progress = False
        for candidate in smaller_configurations(configuration):
            tries += 1
            if _compare(kind, candidate) == verdict:
                configuration, progress = candidate, True
                break
            if tries >= MAX_TRIES:
                break
    told = {"case": case, "changes": changes, "verdict": verdict, "configuration": configuration}
    report.disagreements.append(json.dumps(told))
