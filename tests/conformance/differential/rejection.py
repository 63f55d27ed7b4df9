"""Which configurations are taken: random changes of valid ones, judged by Envoy and by meshlib's decoder.

What Envoy refuses meshlib refuses. What Envoy takes meshlib takes, or refuses with a reason that is written down: a field
that docs/reference/xds-features.md lists as refused, or one of `rejection_listed.py`, of which DIFFERENCES.md has the
reasons.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import ParseError

from differential import subject
from differential.decision import Refusal
from differential.envoy_side import EnvoySide
from differential.generate import Generator, Json
from differential.mutate import mutate
from differential.rejection_listed import ENVOYS, OF_ROUTES, OF_SERVERS, WAITING, is_ours
from differential.resource_side import CLUSTERS, ENDPOINTS, LISTENERS, EnvoyEndedError, ResourceSide
from differential.resources import ResourceMaker
from differential.run import Report
from differential.shrink import smaller_configurations
from meshlib.protos import from_dict, to_dict
from meshlib.xds.resources import CDS, EDS, LDS

MAX_TRIES = 200
MAX_SHOWN = 10
ENDED = "Envoy's process ended"
NAMED = {"name": "subject"}
OF_FILES = {"cluster_name": "subject_of_files"}
Patterns = tuple[re.Pattern[str], ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is broken, and who judges it.

    Attributes:
        message: Full name of its type.
        make: Returns a valid one for a seed.
        install: Gives one to Envoy; None: it took it.
        refusal: Of meshlib.
        judged: Returns what meshlib decodes: the message's type, and its fields.
        ours: Listed reasons of meshlib's, beside those for all.
        envoys: Listed reasons of Envoy's, beside those for all.
        is_deep: What an `Any` holds is broken too.
    """

    layer: str
    message: str
    make: Callable[[str], Json]
    install: Callable[[Json], Refusal | None]
    refusal: Callable[[Json], Refusal | None]
    judged: Callable[[Json], tuple[str, Json]]
    ours: Patterns = ()
    envoys: Patterns = ()
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
        lambda configuration: (kind, named(configuration)),
        envoys=OF_ROUTES,
        is_deep=False,
    )


def resources(side: ResourceSide) -> tuple[Kind, ...]:
    """Clusters, endpoints, what an HTTP connection manager says to clients, and listeners of servers."""
    cluster, assignment = "envoy.config.cluster.v3.Cluster", "envoy.config.endpoint.v3.ClusterLoadAssignment"
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    listener = "envoy.config.listener.v3.Listener"
    return (
        _resource(
            "clusters",
            cluster,
            lambda seed: ResourceMaker(seed).cluster(),
            lambda one: side.install(CLUSTERS, {**one, **NAMED}),
            CDS,
            lambda one: (cluster, {**one, **NAMED}),
        ),
        _resource(
            "endpoints",
            assignment,
            lambda seed: ResourceMaker(seed).assignment(),
            lambda one: side.install(ENDPOINTS, {**one, **OF_FILES}),
            EDS,
            lambda one: (assignment, {**one, **OF_FILES}),
        ),
        _resource(
            "managers",
            manager,
            lambda seed: _without_type(ResourceMaker(seed).manager()),
            lambda one: side.install(LISTENERS, _socket_listener(manager, one)),
            LDS,
            lambda one: (listener, _api_listener(manager, one)),
            envoys=OF_ROUTES,
        ),
        _resource(
            "listeners",
            listener,
            lambda seed: ResourceMaker(seed).listener(),
            # Nothing needs to be listened at.
            lambda one: side.install(LISTENERS, {"bind_to_port": False, **one, **NAMED}),
            LDS,
            lambda one: (listener, {**one, **NAMED}),
            ours=OF_SERVERS,
            envoys=OF_ROUTES,
        ),
    )


def _resource(
    name: str,
    message: str,
    make: Callable[[str], Json],
    install: Callable[[Json], Refusal | None],
    type_url: str,
    judged: Callable[[Json], tuple[str, Json]],
    *,
    ours: Patterns = (),
    envoys: Patterns = (),
) -> Kind:
    def refusal(one: Json) -> Refusal | None:
        return subject.refusal_of(type_url, *judged(one))

    return Kind(f"rejection of {name}", message, make, install, refusal, judged, ours, envoys)


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
    if is_listed(kind, configuration, meshlib, envoy):
        return "listed"
    return f"refused by {'meshlib' if meshlib is not None else 'Envoy'}: {Refusal(told).kind}"


def is_listed(kind: Kind, configuration: Json, meshlib: Refusal | None, envoy: Refusal | None) -> bool:
    """Whether the reason of the one side that refuses a configuration is on a list."""
    if meshlib is None:
        assert envoy is not None
        return any(one.search(envoy.reason) for one in (*ENVOYS, *kind.envoys))
    waits = WAITING if '"sds_config"' in json.dumps(configuration) else ()
    try:
        resource = from_dict(*kind.judged(configuration))
    except ParseError:  # a part that had to be there was left out while shrinking
        return False
    return all(is_ours(resource, error, (*kind.ours, *waits)) for error in meshlib.reason.split("\n"))


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
