"""What an attempt's outcome means: the only place that decides success.

Source: Envoy's `grpc/status.cc`, "gRPC status to HTTP status", and the HTTP to gRPC mapping of gRPC's
`http-grpc-status-mapping.md`.
"""

from dataclasses import replace

from meshlib.model.outcome import Failure, FailureKind, Outcome, Response, grpc_status_of

__all__ = [
    "GRPC_TO_HTTP",
    "as_grpc_answer",
    "failure_code",
    "failure_flag",
    "grpc_code",
    "grpc_status_of",
    "http_code",
    "is_success",
]

GRPC_TO_HTTP = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
"""HTTP equivalent by gRPC status, 0 to 16."""

_DEADLINE_EXCEEDED, _UNAVAILABLE = 4, 14

_FLAGS = {
    FailureKind.CONNECT: "UF",
    FailureKind.IDENTITY: "UF",
    FailureKind.RESET: "UC",
    FailureKind.STREAM_RESET: "UR",
    FailureKind.REFUSED_STREAM: "UR",
    FailureKind.TIMEOUT: "UT",
    FailureKind.OVERFLOW: "UO",
}


def http_code(response: Response) -> int:
    """Return the status that outlier detection counts: the HTTP status, or the equivalent of the gRPC one."""
    status = response.grpc_status
    if status is None:
        return response.status
    return GRPC_TO_HTTP[status] if 0 <= status <= 16 else 500


def failure_code(failure: Failure) -> int:
    """Return the status that stands for a failure: 504 for a timeout, else 503 (Envoy's `resultToHttpCode`)."""
    return 504 if failure.kind is FailureKind.TIMEOUT else 503


def failure_flag(failure: Failure) -> str:
    """Return Envoy's response flag of a failure."""
    return _FLAGS[failure.kind]


def as_grpc_answer(response: Response) -> Response:
    """Return a response to an HTTP request of gRPC's content type with the status that its headers carry, if they do.

    Envoy counts it by that; a status that comes in trailers is not waited for.
    """
    text = response.headers.get("grpc-status")
    if response.grpc_status is not None or text is None or not (text.isascii() and text.isdigit()):
        return response
    return replace(response, grpc_status=int(text[:9]))


def grpc_code(outcome: Outcome) -> int | None:
    """Return the gRPC status of an outcome; None: a gRPC call that goes on, or has not said yet."""
    if isinstance(outcome, Failure):
        return _DEADLINE_EXCEEDED if outcome.kind is FailureKind.TIMEOUT else _UNAVAILABLE
    if outcome.grpc_status is None and outcome.status != 200:
        return grpc_status_of(outcome.status)
    return outcome.grpc_status


def is_success(outcome: Outcome) -> bool:
    """Whether an endpoint did its part: a response whose code is below 500."""
    return isinstance(outcome, Response) and http_code(outcome) < 500
