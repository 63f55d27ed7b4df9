"""How everything is: the connection, targets, clusters, endpoints, certificates, and every resource. No secrets."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from meshlib.admin.certificates import CertificateStatus, certificate_statuses
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.score import score_words
from meshlib.model.snapshot import ConfigFault, InboundConfig
from meshlib.ports import Clock
from meshlib.runtime.control import ControlPlane
from meshlib.view import ClusterState, View
from meshlib.xds.cache import Entry
from meshlib.xds.resources import short_name

__all__ = [
    "CertificateStatus",
    "CheckStatus",
    "ClusterStatus",
    "EndpointStatus",
    "GrpcTls",
    "MeshStatus",
    "ResourceStatus",
    "TargetStatus",
    "check_status",
    "mesh_status",
    "resource_statuses",
]


@dataclass(frozen=True, slots=True)
class CheckStatus:
    """How the active health checks of an endpoint go.

    Attributes:
        state: `waiting` (none has ended yet), `passing`, or `failing`: it gets no requests.
        failure: Of the last check: `ACTIVE`, `PASSIVE`, `NETWORK` or `NETWORK_TIMEOUT`; empty: it passed. One failure may
            leave an endpoint `passing` (`unhealthy_threshold`), one success `failing` (`healthy_threshold`).
        reason: The same for people.
        consecutive: So many have ended like the last one, one after the other.
        age_s: Since the last one ended; None: none has.
        due_s: Until the next one begins; None: not known.
    """

    state: str
    failure: str = ""
    reason: str = ""
    consecutive: int = 0
    age_s: float | None = None
    due_s: float | None = None

    def __str__(self) -> str:
        if self.age_s is None:
            return "not checked yet"
        last = f"{self.reason or self.failure.lower().replace('_', ' ')}" if self.failure else "passed"
        times = f" {self.consecutive} times" if self.consecutive > 1 else ""
        due = "" if self.due_s is None else f", next in {self.due_s:.3g} s"
        return f"checks {self.state}: {last}{times}, {self.age_s:.3g} s ago{due}"


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """Attributes:
    health: As EDS says.
    is_ejected: Outlier detection took it out; also while it is on probation.
    active: Attempts in flight.
    score: What the policy makes of it beside its weight, in words, or empty.
    check: None: it has no active health checks.
    is_on_probation: Its time out is over, and a trickle of requests tries it.
    """

    address: str
    locality: str
    priority: int
    weight: int
    health: str
    is_ejected: bool
    active: int
    score: str = ""
    check: CheckStatus | None = None
    is_on_probation: bool = False


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """Attributes:
    state: `ready`, `empty` or `failed`.
    note: Why it failed or is empty, or empty.
    active: Requests in flight.
    """

    name: str
    state: str
    note: str = ""
    active: int = 0
    endpoints: tuple[EndpointStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class TargetStatus:
    """A target or an inbound listener.

    Attributes:
        state: `ready`, `waiting` or `failed`.
        waits_for: Resources that are not there; with state `ready` those of a newer form.
    """

    name: str
    kind: str
    state: str
    note: str = ""
    waits_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """Attributes:
    state: CSDS's word: `REQUESTED`, `ACKED`, `NACKED`, `DOES_NOT_EXIST`, `RECEIVED_ERROR` or `TIMEOUT`.
    is_in_use: There is a value, whatever the state.
    version: Of the value in use.
    error: Why the newest response for it was not taken, or empty.
    failed_version: Of that response.
    age_s: Since the value in use changed; None: there is none.
    is_from_disk: The value was left by an earlier process.
    unused: Fields of the resource that meshlib does not use.
    """

    type: str
    name: str
    state: str
    is_in_use: bool
    version: str
    error: str
    failed_version: str
    age_s: float | None
    is_from_disk: bool
    unused: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class GrpcTls:
    """How gRPC's calls over TLS are made.

    Attributes:
        mode: `idle` (no such calls yet), `testing`, `core` (by gRPC's own TLS where that can check the peer), or `relay`
            (all of them through the relay).
        text: Why the mode is `relay`, or empty.
        core: Endpoint channels over gRPC's own TLS.
        relay: Endpoint channels over the relay.
    """

    mode: str
    text: str = ""
    core: int = 0
    relay: int = 0

    def __str__(self) -> str:
        reason = f" ({self.text})" if self.text else ""
        return f"{self.mode}{reason}, {self.core} endpoints over core, {self.relay} over the relay"


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """Attributes:
    connection: `idle`, `connecting`, `connected`, `lost` or `disabled`.
    connection_text: The same as a sentence, with the reason.
    view: Number of the view in use; grows with each change.
    problems: What does not work though the mesh does, by place.
    unused: Fields that meshlib does not use, by resource (`CDS checkout`); only resources that have some.
    """

    node_id: str
    server_uri: str
    connection: str
    connection_text: str
    view: int
    targets: tuple[TargetStatus, ...] = ()
    clusters: tuple[ClusterStatus, ...] = ()
    certificates: tuple[CertificateStatus, ...] = ()
    problems: Mapping[str, str] | None = None
    grpc_tls: GrpcTls | None = None
    unused: Mapping[str, tuple[str, ...]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return {
            "node_id": self.node_id,
            "server_uri": self.server_uri,
            "connection": self.connection,
            "connection_text": self.connection_text,
            "view": self.view,
            "targets": [asdict(target) for target in self.targets],
            "clusters": [asdict(cluster) for cluster in self.clusters],
            "certificates": [asdict(certificate) for certificate in self.certificates],
            "problems": dict(self.problems or {}),
            "grpc_tls": None if self.grpc_tls is None else asdict(self.grpc_tls),
            "unused": {resource: list(fields) for resource, fields in (self.unused or {}).items()},
        }

    def __str__(self) -> str:
        lines = [f"node {self.node_id or '(no id)'}: {self.connection_text}; view {self.view}"]
        for place, problem in (self.problems or {}).items():
            lines.append(f"problem: {place}: {problem}")
        if self.grpc_tls is not None and self.grpc_tls.mode != "idle":
            lines.append(f"gRPC over TLS: {self.grpc_tls}")
        for target in self.targets:
            waits = f", waits for {', '.join(target.waits_for)}" if target.waits_for else ""
            lines.append(f"{target.kind} {target.name}: {target.state}{waits}{_dash(target.note)}")
        for cluster in self.clusters:
            lines.append(f"cluster {cluster.name}: {cluster.state}, {cluster.active} in flight{_dash(cluster.note)}")
            for endpoint in cluster.endpoints:
                ejected = ", ejected" if endpoint.is_ejected else ""
                ejected = ", on probation" if endpoint.is_on_probation else ejected
                check = f", {endpoint.check}" if endpoint.check is not None else ""
                place = f" in {endpoint.locality}" if endpoint.locality else ""
                lines.append(
                    f"  {endpoint.address}{place}: {endpoint.health.lower()}{ejected}, weight {endpoint.weight}, "
                    f"{endpoint.active} in flight{check}"
                )
        for certificate in self.certificates:
            lines.append(str(certificate))
        for resource, fields in (self.unused or {}).items():
            lines.append(f"unused in {resource}: {', '.join(fields)}")
        return "\n".join(lines)


class Source(Protocol):
    """The part of a mesh that a status is made of."""

    clock: Clock
    is_disabled: bool
    _view: View


def mesh_status(mesh: Source, control: ControlPlane | None, grpc_tls: GrpcTls | None = None) -> MeshStatus:
    """Return how a mesh is; starts nothing.

    Args:
        control: None: it has not been started.
        grpc_tls: What its gRPC clients say.
    """
    view = mesh._view
    if control is None:
        state = "disabled" if mesh.is_disabled else "idle"
        text = "the mesh is disabled (MESHLIB_DISABLE=1)" if mesh.is_disabled else "not started"
        return MeshStatus("", "", state, text, view.number, problems={}, grpc_tls=grpc_tls, unused={})
    connection = control.connection
    return MeshStatus(
        control.node_id,
        control.server_uri,
        connection.state,
        control.describe(mesh.clock()),
        view.number,
        _targets(view, control),
        tuple(cluster_status(name, cluster) for name, cluster in sorted(view.clusters.items())),
        certificate_statuses(mesh, control),
        control.problems,
        grpc_tls,
        _unused(control),
    )


def _unused(control: ControlPlane) -> Mapping[str, tuple[str, ...]]:
    found = {f"{short_name(entry.type_url)} {entry.name}": entry.unused for entry in control.entries() if entry.unused}
    return dict(sorted(found.items()))


def resource_statuses(mesh: Source, control: ControlPlane | None) -> tuple[ResourceStatus, ...]:
    """Return every resource subscribed to, by type and name."""
    if control is None:
        return ()
    now = mesh.clock()
    return tuple(sorted((_resource(entry, now) for entry in control.entries()), key=lambda one: (one.type, one.name)))


def cluster_status(name: str, cluster: ClusterState | ConfigFault) -> ClusterStatus:
    """Return how a cluster is."""
    if isinstance(cluster, ConfigFault):
        return ClusterStatus(name, "failed", cluster.message)
    states, policy = cluster.states, cluster.config.cluster.lb_policy
    endpoints = []
    for locality in cluster.config.assignment.localities:
        for endpoint in locality.endpoints:
            state = states.get(endpoint.address)
            endpoints.append(
                EndpointStatus(
                    endpoint.address,
                    str(locality.locality),
                    locality.priority,
                    endpoint.weight,
                    endpoint.health.name,
                    state is not None and state.is_ejected,
                    0 if state is None else state.active,
                    "" if state is None else score_words(policy, state, cluster.memory.now),
                    None if state is None else check_status(cluster, state),
                    state is not None and state.is_on_probation,
                )
            )
    active = cluster.breaker.active + cluster.high_breaker.active
    return ClusterStatus(name, "ready" if endpoints else "empty", cluster.config.note, active, tuple(endpoints))


def check_status(cluster: ClusterState, state: EndpointState) -> CheckStatus | None:
    """Return how the health checks of an endpoint go; None: it has none."""
    checks = cluster.checks
    if checks is None or not checks.concerns(state.endpoint):
        return None
    facts, now = checks.facts(state.address), cluster.memory.now
    if facts is None:
        return CheckStatus("waiting")
    return CheckStatus(
        "failing" if state.is_failed else "passing",
        facts.failure,
        facts.reason,
        facts.consecutive,
        max(0.0, now - facts.ended_at),
        max(0.0, facts.due_at - now),
    )


def _targets(view: View, control: ControlPlane) -> tuple[TargetStatus, ...]:
    waiting = control.waiting
    result = []
    for kind, names, known in (
        ("target", control.targets, view.targets),
        ("inbound", control.inbound, view.inbound),
    ):
        for name in sorted(names):
            found = known.get(name)
            waits = waiting.get(name, ())
            if isinstance(found, ConfigFault):
                result.append(TargetStatus(name, kind, "failed", found.message, waits))
            elif found is None:
                result.append(TargetStatus(name, kind, "waiting", "", waits))
            else:
                result.append(TargetStatus(name, kind, "ready", _security(found), waits))
    return tuple(result)


def _security(found: object) -> str:
    if not isinstance(found, InboundConfig) or (tls := found.listener.tls) is None:
        return ""
    if found.listener.takes_plaintext:
        return "takes mTLS and plaintext" if tls.require_client_certificate else "takes TLS and plaintext"
    return "requires mTLS" if tls.require_client_certificate else ""


def _resource(entry: Entry, now: float) -> ResourceStatus:
    return ResourceStatus(
        short_name(entry.type_url),
        entry.name,
        entry.state.name,
        entry.value is not None,
        entry.version,
        entry.error,
        entry.failed_version,
        None if entry.value is None else now - entry.updated_at,
        entry.is_spare,
        entry.unused,
    )


def _dash(note: str) -> str:
    return f" - {note}" if note else ""
