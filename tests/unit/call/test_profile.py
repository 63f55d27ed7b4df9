"""Whose rules hold: a request of an HTTP client with gRPC's content type is decided as Envoy decides it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import meshlib
from meshlib.call import Attempt, Call, Done
from meshlib.model.cluster import Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import LocalReply, Response
from meshlib.model.profile import GRPC, HTTP
from meshlib.model.request import Headers, RequestHead, is_grpc_type
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import FaultAbort, FaultPolicy, RouteAction, SingleCluster
from meshlib.testing import service

TYPED = (("content-type", "application/grpc"),)
EJECTS = Cluster("", EdsDiscovery(""), outlier_detection=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100))


def typed_call(d, *headers, profile=HTTP, **options):
    head = RequestHead("POST", d.target.name, "/p.S/M", Headers((*TYPED, *headers)), is_grpc=True, profile=profile)
    return Call(d.target, head, rng=d.mesh.rng, now=d.clock(), hook=d.mesh.emit, **options)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc-web", False),
        ("application/grpc;x", False),
        ("text/plain", False),
        ("", False),
    ],
)
def test_content_type(content_type, expected):
    assert is_grpc_type(content_type) is expected


def test_the_client_decides_unless_nobody_says():
    assert RequestHead("POST", "a", "/", Headers(), is_grpc=True).profile is GRPC
    assert RequestHead("GET", "a", "/", Headers()).profile is HTTP
    head = RequestHead("POST", "a", "/", Headers(), is_grpc=True, profile=HTTP)
    assert head.but(authority="b").profile is HTTP
    assert head.but(authority="b").is_grpc


def test_fault_of_status_ok_ends_an_http_request_and_no_grpc_call(driver):
    abort = FaultAbort(Fraction(100, 100), by_header=True)
    d = driver(service("a", "h:1", fault=FaultPolicy(abort=abort)))
    asked = ("x-envoy-fault-abort-grpc-request", "0")

    done = typed_call(d, asked).start(0.0)

    assert isinstance(done, Done)
    answer = done.result
    assert isinstance(answer, LocalReply)
    assert (200, b"", 0, "FI") == (answer.status, answer.body, answer.grpc_status, answer.flag)
    assert {
        "content-type": "application/grpc",
        "grpc-status": "0",
        "grpc-message": "fault filter abort",
    } == dict(answer.headers)
    assert isinstance(typed_call(d, asked, profile=GRPC).start(0.0), Attempt)


def test_mesh_answers_in_the_form_of_grpc(driver):
    snapshot = replace(service("a", "h:1"), clusters={})
    done = typed_call(driver(snapshot)).start(0.0)
    assert isinstance(done, Done)
    assert "NC" == done.flag
    assert (200, b"", (("content-type", "application/grpc"), ("grpc-status", "14"))) == (
        done.result.status,
        done.result.body,
        done.result.headers,
    )


def test_times_are_those_of_http(driver):
    d = driver(service("a", "h:1"))
    assert 15.0 == typed_call(d).start(d.clock()).timeout_s
    assert typed_call(d, profile=GRPC).start(d.clock()).timeout_s is None


def test_attempts_are_not_capped(driver):
    d = driver(service("a", "h:1", retry=RetryPolicy(frozenset({"unavailable"}), num_retries=9, base_interval_s=0.001)))
    answer = Response(200, Headers((("grpc-status", "14"),)))
    call = typed_call(d, guard_unsafe=False)
    step, now = call.start(d.clock()), d.clock()
    while not isinstance(step, Done):
        step = call.finished(answer, now) if isinstance(step, Attempt) else call.slept(now)
    assert 10 == call.attempts


def test_outliers_are_counted_by_the_status_in_the_headers(driver):
    d = driver(service("a", "h:1", template=EJECTS))
    outlier = d.mesh.cluster("a").outlier
    for headers, expected in (((), 0), ((("grpc-status", "x"),), 0), ((("grpc-status", "14"),), 1)):
        call = typed_call(d)
        call.start(d.clock())
        call.finished(Response(200, Headers(headers)), d.clock())
        call.close(d.clock())
        assert expected == outlier.ejections_active, headers


def test_a_deadline_that_the_route_cuts_is_told(driver):
    d = driver(service("a", "h:1", action=RouteAction(SingleCluster("a"), max_stream_duration_s=7.0)))
    for asked in ((("grpc-timeout", "10S"),), ()):
        step = typed_call(d, *asked).start(d.clock())
        assert isinstance(step, Attempt)
        assert ("7000m",) == step.head.headers.all("grpc-timeout")
    untyped = d.call(headers={"grpc-timeout": "10S"}).start(d.clock())
    assert "10S" == untyped.head.headers.get("grpc-timeout")


def test_rules_are_asked_for_by_name():
    """What the decisions may ask of the content type itself; all else is a rule of the profile."""
    allowed = {
        "meshlib/call/endings.py",  # answers to such requests are judged by their gRPC status
        "meshlib/call/hedging.py",
        "meshlib/call/machine.py",
        "meshlib/routing/changes.py",  # the form of the mesh's own answers
        "meshlib/routing/headers.py",  # a copy
        "meshlib/routing/internal_redirect.py",  # a copy
        "meshlib/routing/matchers.py",  # the condition `grpc`
        "meshlib/routing/prepare.py",  # what is refused instead of redirected
        "meshlib/routing/replies.py",
    }
    root = Path(meshlib.__file__).parent
    folders = ("balancing", "call", "identity", "resilience", "routing", "view")
    files = [root / "matching.py", *(file for folder in folders for file in (root / folder).rglob("*.py"))]
    asking = {str(file.relative_to(root.parent)) for file in files if re.search(r"head\.is_grpc", file.read_text())}
    assert allowed == asking
