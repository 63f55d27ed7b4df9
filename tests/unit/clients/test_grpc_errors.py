"""Errors that gRPC users get."""

import pickle
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from meshlib.clients.grpc_errors import (
    AioMeshRpcError,
    CallInfo,
    MeshRpcError,
    refusal_of_failure,
    refusal_of_mesh_error,
    refusal_of_reply,
)
from meshlib.errors import DeadlineExceeded, MeshError, RoutingError
from meshlib.model.outcome import Failure, FailureKind, LocalReply

INFO = CallInfo("checkout", ("10.0.0.1:80", "10.0.0.2:80"), 2, "URX,UF")


def cause(message: str = "why") -> MeshError:
    return MeshError(message, cluster="checkout")


@pytest.mark.parametrize("kind", [MeshRpcError, AioMeshRpcError])
def test_error_info_holds_what_the_mesh_knows(kind: Any) -> None:
    status = rpc_status.from_call(kind(grpc.StatusCode.UNAVAILABLE, "nobody", INFO))
    assert (14, "nobody") == (status.code, status.message)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert ("URX", "meshlib") == (info.reason, info.domain)
    assert {
        "cluster": "checkout",
        "endpoint": "10.0.0.2:80",
        "endpoints": "10.0.0.1:80,10.0.0.2:80",
        "attempts": "2",
    } == dict(info.metadata)


def test_a_sync_error_is_a_finished_call_and_future() -> None:
    error = MeshRpcError(grpc.StatusCode.UNAVAILABLE, "nobody", INFO)
    assert isinstance(error, grpc.RpcError | grpc.Call)
    assert (True, False, error) == (error.done(), error.is_active(), error.exception())
    with pytest.raises(MeshRpcError):
        error.result()


@pytest.mark.parametrize("kind", [MeshRpcError, AioMeshRpcError])
def test_errors_can_be_pickled_as_task_queues_do(kind: Any) -> None:
    copy = pickle.loads(pickle.dumps(kind(grpc.StatusCode.UNAVAILABLE, "nobody", INFO)))  # noqa: S301
    assert (kind, grpc.StatusCode.UNAVAILABLE, "nobody", INFO) == (type(copy), copy.code(), copy.details(), copy.mesh)


@pytest.mark.parametrize(
    ("reply", "code", "text"),
    [
        (LocalReply(404, "NR", "x", b"No route", grpc_status=14), "UNAVAILABLE", "No route: why (cluster 'checkout')"),
        (LocalReply(503, "UO", "overflow"), "UNAVAILABLE", "circuit breaker drop: why (cluster 'checkout')"),
        (LocalReply(503, "UH", "no_healthy"), "UNAVAILABLE", "why (cluster 'checkout')"),
        (LocalReply(403, "FI", "fault"), "PERMISSION_DENIED", "Fault injected (cluster 'checkout')"),
        (LocalReply(418, "FI", "fault"), "UNKNOWN", "Fault injected (cluster 'checkout')"),
        (LocalReply(503, "FI", "fault", grpc_status=8), "RESOURCE_EXHAUSTED", "Fault injected (cluster 'checkout')"),
        (LocalReply(301, "", "redirect"), "UNAVAILABLE", "Matching route has inappropriate action: why"),
    ],
)
def test_local_replies_become_statuses(reply: LocalReply, code: str, text: str) -> None:
    refusal = refusal_of_reply(reply, cause)
    assert code == refusal.code.name
    assert refusal.details.startswith(text)


def test_failures_become_statuses() -> None:
    late = refusal_of_failure(Failure(FailureKind.TIMEOUT, True), cause)
    assert ("DEADLINE_EXCEEDED", "Deadline Exceeded (cluster 'checkout')") == (late.code.name, late.details)
    wrong = refusal_of_failure(Failure(FailureKind.IDENTITY, False, ValueError("not spiffe://a")), cause)
    assert "UNAVAILABLE" == wrong.code.name
    assert "connections to all backends failing; last error: not spiffe://a" in wrong.details


def test_errors_before_a_call_become_statuses() -> None:
    assert "UNAVAILABLE" == refusal_of_mesh_error(RoutingError("no such service")).code.name
    assert "DEADLINE_EXCEEDED" == refusal_of_mesh_error(DeadlineExceeded("too late")).code.name
