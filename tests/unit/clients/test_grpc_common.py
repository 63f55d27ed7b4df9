"""Targets, heads and metadata, and what became of an attempt."""

import re
import ssl
from typing import Any

import grpc
import pytest

from meshlib.clients.grpc_common import (
    HeadMaker,
    Target,
    attempt_metadata,
    classify_error,
    parse_target,
    split_options,
)
from meshlib.errors import ConfigError
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead

DIALLED = "ipv4:10.0.0.1:80"
REFUSED = f"failed to connect to all addresses; last error: UNKNOWN: {DIALLED}: Failed to connect: Connection refused"
ERROR = RuntimeError("raised")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("xds:///checkout", Target("checkout", "checkout")),
        ("xds:checkout:8080", Target("checkout:8080", "checkout:8080")),
        ("XDS:///a%2Fb", Target("a/b", "a%2Fb")),
        ("xds://traffic/checkout", Target("xds://traffic/checkout", "checkout")),
        ("xds:////a//b", Target("/a//b", "%2Fa%2F%2Fb")),
        ("xds:///a?b=c#d", Target("a", "a")),
        ("xds:///a%3Fb%23c#d?e", Target("a?b#c", "a%3Fb%23c")),
        ("xds:///[::1]:80", Target("[::1]:80", "[::1]:80")),
        ("xds:///a b:8080", Target("a b:8080", "a%20b:8080")),
    ],
)
def test_targets_are_parsed(target: str, expected: Target) -> None:
    assert expected == parse_target(target)


@pytest.mark.parametrize("target", ["checkout", "dns:///checkout", "xds:", "xds:///", "xds://checkout", "xds:///?a"])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(target)):
        parse_target(target)


def test_options_that_take_over_the_meshs_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"grpc\.service_config"):
        split_options([("grpc.service_config", "{}")])


def test_the_default_authority_is_taken_out_of_the_options() -> None:
    options = [("grpc.default_authority", "shop"), ("grpc.keepalive_time_ms", 10)]
    assert ((("grpc.keepalive_time_ms", 10),), "shop") == split_options(options)


def test_heads_show_what_routes_may_see() -> None:
    head = HeadMaker("checkout", "/a.B/C")([("key", "value"), ("raw-bin", b"\0"), ("other-bin", "text")])
    assert ("POST", "checkout", "/a.B/C", True) == (head.method, head.authority, head.path, head.is_grpc)
    assert (("content-type", "application/grpc"), ("key", "value")) == head.headers.items


def test_calls_without_text_metadata_share_a_head() -> None:
    heads = HeadMaker("checkout", "/a.B/C")
    assert heads(None) is heads(()) is heads([("raw-bin", b"\0")])


def test_metadata_of_an_unchanged_head_are_the_callers_own() -> None:
    head = HeadMaker("checkout", "/a.B/C")(None)
    metadata = (("key", "value"),)
    assert metadata is attempt_metadata(head, head, metadata)


def test_metadata_follow_a_changed_head_and_keep_binary_entries() -> None:
    metadata = (("key", "value"), ("raw-bin", b"\0"))
    head = HeadMaker("checkout", "/a.B/C")(metadata)
    headers = Headers((("content-type", "application/grpc"), ("key", "changed"), ("grpc-timeout", "1S"), ("x", "1")))
    sent = RequestHead("POST", "checkout", "/a.B/C", headers, is_grpc=True)
    assert (("key", "changed"), ("x", "1"), ("raw-bin", b"\0")) == attempt_metadata(head, sent, metadata)


def classified(code: str, details: str, **changes: Any) -> Outcome:
    options: dict[str, Any] = {"dialled": DIALLED, "timed_out": False, "error": ERROR} | changes
    return classify_error(grpc.StatusCode[code], details, (("t", "1"), ("b-bin", b"\0")), **options)


def test_a_failure_to_connect_was_not_sent() -> None:
    assert Failure(FailureKind.CONNECT, False, ERROR) == classified("UNAVAILABLE", REFUSED)


def test_a_server_that_quotes_a_failure_of_its_own_has_answered() -> None:
    text = REFUSED.replace("10.0.0.1", "10.9.9.9")
    assert isinstance(classified("UNAVAILABLE", text), Response)


def test_a_refused_identity_is_told_from_a_refused_connection() -> None:
    wrong = ssl.SSLCertVerificationError("somebody else")
    assert Failure(FailureKind.IDENTITY, False, wrong) == classified("UNAVAILABLE", REFUSED, refused_by=wrong)
    reset = ConnectionResetError("gone")
    assert Failure(FailureKind.CONNECT, False, reset) == classified("UNAVAILABLE", REFUSED, refused_by=reset)


@pytest.mark.parametrize(
    ("details", "kind", "sent"),
    [
        ("Stream removed (RST_STREAM (Received RST_STREAM with error code 7))", FailureKind.REFUSED_STREAM, False),
        ("Stream removed (Socket closed)", FailureKind.RESET, True),
        ("Socket closed", FailureKind.RESET, True),
        ("keepalive watchdog timeout", FailureKind.RESET, True),
    ],
)
def test_ends_of_connections_are_told_apart(details: str, kind: FailureKind, sent: bool) -> None:
    assert Failure(kind, sent, ERROR) == classified("UNAVAILABLE", details)


def test_the_end_of_the_attempts_time_is_a_timeout() -> None:
    assert Failure(FailureKind.TIMEOUT, True, ERROR) == classified(
        "DEADLINE_EXCEEDED", "Deadline Exceeded", timed_out=True
    )


def test_a_servers_own_deadline_is_its_answer() -> None:
    outcome = classified("DEADLINE_EXCEEDED", "my backend is slow")
    assert isinstance(outcome, Response)
    assert (200, 4, (("t", "1"),)) == (outcome.status, outcome.grpc_status, outcome.headers.items)
