"""Calls that end before there is anything to route them by: the mesh does not know the host, or not yet."""

from meshlib.clients.source import MeshSource
from meshlib.errors import DeadlineExceeded, MeshError, RoutingError
from meshlib.events import CallFinished

__all__ = ["count_unrouted", "flag_of"]


def flag_of(error: MeshError) -> str:
    """Return Envoy's response flag for such an end, or nothing."""
    if error.flag:
        return error.flag
    return "NR" if isinstance(error, RoutingError) else "UT" if isinstance(error, DeadlineExceeded) else ""


def count_unrouted(
    mesh: MeshSource,
    error: MeshError,
    *,
    kind: str,
    authority: str,
    method: str,
    began_at: float | None = None,
    grpc_status: int | None = None,
) -> None:
    """Emit the event of a call that the mesh could lead nowhere, for metrics and access logs: no cluster, no attempt.

    Args:
        kind: `http` or `grpc`.
        authority: What the mesh was asked for.
        method: Of HTTP; the path for gRPC.
        began_at: When the call began to wait; None: it did not.
    """
    mesh.emit(
        CallFinished(
            kind=kind,
            target=authority,
            method=method,
            route="",
            cluster="",
            endpoint=None,
            attempts=0,
            duration_s=0.0 if began_at is None else mesh.clock() - began_at,
            status=0,
            grpc_status=grpc_status,
            flag=flag_of(error) or "-",
            secure=False,
        )
    )
