import pytest

from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.resilience.classify import failure_code, failure_flag, grpc_code, http_code, is_success


@pytest.mark.parametrize(
    ("grpc_status", "expected"),
    list(enumerate([200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401])),
)
def test_grpc_status_counts_as_its_http_equivalent(grpc_status: int, expected: int) -> None:
    assert http_code(Response(200, grpc_status=grpc_status)) == expected


def test_unknown_grpc_status_counts_as_500() -> None:
    assert (http_code(Response(200, grpc_status=17)), http_code(Response(200, grpc_status=-1))) == (500, 500)


def test_http_response_counts_as_itself() -> None:
    assert http_code(Response(418)) == 418


@pytest.mark.parametrize(
    ("kind", "code", "flag", "grpc"),
    [
        (FailureKind.CONNECT, 503, "UF", 14),
        (FailureKind.IDENTITY, 503, "UF", 14),
        (FailureKind.RESET, 503, "UC", 14),
        (FailureKind.STREAM_RESET, 503, "UR", 14),
        (FailureKind.REFUSED_STREAM, 503, "UR", 14),
        (FailureKind.TIMEOUT, 504, "UT", 4),
    ],
)
def test_failures_have_a_code_and_a_flag(kind: FailureKind, code: int, flag: str, grpc: int) -> None:
    failure = Failure(kind, True)

    assert (failure_code(failure), failure_flag(failure), grpc_code(failure)) == (code, flag, grpc)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (Response(200), None),
        (Response(200, grpc_status=5), 5),
        (Response(429), 14),
        (Response(404), 12),
        (Response(418), 2),
    ],
)
def test_grpc_code_of_a_response(response: Response, expected: int | None) -> None:
    assert grpc_code(response) == expected


def test_success_is_a_response_below_500() -> None:
    assert is_success(Response(404))
    assert not is_success(Response(500))
    assert not is_success(Response(200, grpc_status=14))
    assert not is_success(Failure(FailureKind.RESET, False))
