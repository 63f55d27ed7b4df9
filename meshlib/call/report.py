"""What a call came to, for its caller and for the hooks."""

from typing import TYPE_CHECKING

from meshlib.errors import DeadlineExceeded, IdentityError, MeshError, RoutingError, UnavailableError
from meshlib.events import AttemptFinished, CallFinished
from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Outcome, Response
from meshlib.model.profile import GRPC
from meshlib.model.snapshot import ConfigFault

if TYPE_CHECKING:
    from meshlib.call.facts import CallFacts

__all__ = ["attempt_finished", "call_error", "call_finished"]

_FAILURES = {
    FailureKind.CONNECT: "no connection to the endpoint",
    FailureKind.IDENTITY: "the endpoint did not prove the identity it must have",
    FailureKind.RESET: "the connection ended before the response",
    FailureKind.STREAM_RESET: "the endpoint reset the stream before the response",
    FailureKind.REFUSED_STREAM: "the endpoint refused the request unprocessed",
    FailureKind.TIMEOUT: "the time allowed is over",
    FailureKind.OVERFLOW: "too many requests wait for a connection",
}


def attempt_finished(
    call: "CallFacts", endpoint: Endpoint, number: int, outcome: Outcome | None, duration_s: float, *, will_retry: bool
) -> AttemptFinished:
    """Make the event of an attempt that ended; without an outcome it was given up, as another had won."""
    status, grpc_status, failure = 0, None, ""
    if outcome is None:
        failure = "cancelled"
    elif isinstance(outcome, Response):
        status, grpc_status = outcome.status, outcome.grpc_status
    else:
        failure = outcome.kind.value
    # Events are made for every call. By position, as keywords cost a quarter more; in the order of the class.
    target, match = call.target.name, call.match
    cluster = "" if match is None else match.cluster
    return AttemptFinished(target, cluster, endpoint, number, duration_s, status, grpc_status, failure, will_retry)


def call_finished(call: "CallFacts", duration_s: float, status: int, grpc_status: int | None) -> CallFinished:
    """Make the event of a call that ended.

    Args:
        status: As the caller sees it; 0: none.
        grpc_status: None: unknown, or none.
    """
    head, match = call.head, call.match
    tried = call._tried
    endpoint = None
    if tried:
        endpoint = (call._answered or tried[-1]).endpoint
    return CallFinished(
        head.profile.name,
        call.target.name,
        head.path if head.profile is GRPC else head.method,
        "" if match is None else match.route_name,
        "" if match is None else match.cluster,
        endpoint,
        len(tried),
        duration_s,
        status,
        grpc_status,
        call.flag or "-",
        call._tls is not None,
    )


def call_error(call: "CallFacts", message: str, cause: BaseException | None) -> MeshError:
    """Make the exception for the caller of a call."""
    kind: type[MeshError]
    match call.result:
        case Failure(kind=FailureKind.TIMEOUT):
            kind = DeadlineExceeded
        case Failure(kind=FailureKind.IDENTITY):
            kind = IdentityError
        case LocalReply(flag="NR" | "NC"):
            kind = RoutingError
        case _:
            kind = UnavailableError
    fault = _config_fault(call)
    error = kind(
        message or _explanation(call),
        cluster=call.cluster_name,
        endpoints=call.endpoints,
        attempts=call.attempts,
        flag=call.flag,
        resource="" if fault is None else fault.resource,
    )
    if cause is None and isinstance(call.result, Failure):
        cause = call.result.error
    error.__cause__ = cause
    return error


def _config_fault(call: "CallFacts") -> ConfigFault | None:
    """Why the route's cluster cannot be used."""
    found = call.target.clusters.get(call.cluster_name) if call.cluster is None else None
    return found if isinstance(found, ConfigFault) else None


def _explanation(call: "CallFacts") -> str:
    """Say in a sentence why there is no response from the service."""
    result, head = call.result, call.head
    what = f"{head.method} {head.scheme}://{head.authority}{head.path.partition('?')[0]}"
    match result:
        case None:
            return f"{what}: no result yet"
        case Response(status=status):
            return f"{what}: the service answered {status}"
        case Failure(kind=kind, error=error):
            cause = f": {error}" if error is not None and str(error) else ""
            return f"{what}: {_FAILURES[kind]}{cause}"
        case LocalReply():
            return f"{what}: {_local_explanation(call, result)}"


def _local_explanation(call: "CallFacts", reply: LocalReply) -> str:
    cluster, fault = call.cluster, _config_fault(call)
    match reply.flag:
        case "NR":
            return f"no route of {call.target.name!r} takes this request"
        case "NC" if fault is not None:
            return fault.message
        case "NC":
            return f"the route leads to cluster {call.cluster_name!r}, which is not known"
        case "UH" if cluster is not None:
            count, ejected = len(cluster.states), sum(state.is_ejected for state in cluster.states.values())
            note = f"; {cluster.config.note}" if cluster.config.note else ""
            return f"no healthy endpoint among {count} ({ejected} ejected){note}"
        case "UO":
            return "too many requests are in flight, or wait for a connection (circuit breaker of the cluster)"
        case _:
            return f"{reply.details} (status {reply.status})"
