import pytest

from meshlib.model.request import Headers
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.resilience.deadline import (
    format_grpc_timeout,
    parse_grpc_timeout_s,
    parse_ms,
    per_try_timeout_s,
    route_timeout_s,
    stream_duration_s,
)


def action(**options: float | None) -> RouteAction:
    return RouteAction(SingleCluster("c"), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 15.0),
        ({"timeout_s": 3.0}, 3.0),
        ({"timeout_s": 0.0}, None),
        ({"timeout_s": 3.0, "max_stream_duration_s": 0.0}, None),
        ({"max_stream_duration_s": 9.0}, None),
    ],
)
def test_global_timeout(options: dict[str, float], expected: float | None) -> None:
    assert route_timeout_s(action(**options)) == expected


@pytest.mark.parametrize(
    ("per_try", "total", "expected"),
    [(None, 15.0, None), (2.0, 15.0, 2.0), (2.0, None, 2.0), (2.0, 2.0, None), (3.0, 2.0, None), (0.0, 2.0, None)],
)
def test_per_try_timeout_counts_only_below_the_global_one(
    per_try: float | None, total: float | None, expected: float | None
) -> None:
    assert per_try_timeout_s(per_try, total) == expected


@pytest.mark.parametrize(
    ("options", "listener", "expected"),
    [
        ({}, None, None),
        ({}, 9.0, 9.0),
        ({"max_stream_duration_s": 7.0}, 9.0, 7.0),
        ({"max_stream_duration_s": 0.0}, 9.0, None),
        ({"max_stream_duration_s": 7.0, "grpc_timeout_header_max_s": 5.0}, 9.0, 5.0),
        ({"max_stream_duration_s": 7.0, "grpc_timeout_header_max_s": 0.0}, 9.0, None),
        ({"timeout_s": 3.0}, None, None),
    ],
)
def test_grpc_takes_the_first_limit_given(
    options: dict[str, float], listener: float | None, expected: float | None
) -> None:
    """A31: grpc_timeout_header_max, else max_stream_duration, else the listener's; 0 is none; `timeout` is ignored."""
    assert stream_duration_s(action(**options), listener, None, is_grpc=True) == expected


@pytest.mark.parametrize(
    ("options", "header", "expected"),
    [
        ({"max_stream_duration_s": 7.0}, 10.0, 7.0),
        ({"max_stream_duration_s": 7.0, "grpc_timeout_header_max_s": 3.0}, None, 7.0),
        (
            {"max_stream_duration_s": 7.0, "grpc_timeout_header_max_s": 3.0, "grpc_timeout_header_offset_s": 1.0},
            10.0,
            2.0,
        ),
        ({"grpc_timeout_header_max_s": 0.0}, 10.0, 10.0),
        ({"grpc_timeout_header_max_s": 0.0, "grpc_timeout_header_offset_s": 20.0}, 10.0, 0.001),
    ],
)
def test_http_reads_the_grpc_timeout_header_only_with_a_maximum(
    options: dict[str, float], header: float | None, expected: float | None
) -> None:
    assert stream_duration_s(action(**options), None, header, is_grpc=False) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10S", 10.0),
        ("100m", 0.1),
        ("2M", 120.0),
        ("1H", 3600.0),
        ("1u", 0.001),
        ("1500u", 0.002),
        ("2000001n", 0.003),
        ("99999999S", 99999999.0),
        ("100000000S", None),
        ("S", None),
        ("", None),
        ("5", None),
        ("-1S", None),
        ("1.5S", None),
        ("1x", None),
    ],
)
def test_grpc_timeout_is_read(text: str, expected: float | None) -> None:
    assert parse_grpc_timeout_s(text) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2.0, "2000m"),
        (0.0, "0m"),
        (99_999.999, "99999999m"),
        (100_000.0, "100000S"),
        (1e9, "16666666M"),
        (1e14, "99999999H"),
    ],
)
def test_grpc_timeout_is_written_in_the_finest_unit_that_fits(seconds: float, expected: str) -> None:
    assert format_grpc_timeout(seconds) == expected


@pytest.mark.parametrize(("text", "expected"), [("250", 0.25), ("0", 0.0), ("x", None), ("-5", None), ("1.5", None)])
def test_milliseconds_that_cannot_be_read_mean_nothing(text: str, expected: float | None) -> None:
    assert parse_ms(Headers([("h", text)]), "h") == expected


def test_absent_header_is_no_time() -> None:
    assert parse_ms(Headers(), "h") is None
