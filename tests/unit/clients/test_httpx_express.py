"""What is remembered of requests with the same headers, and what is not; and what chance decides."""

from collections import Counter
from dataclasses import replace

import httpx
import pytest

from meshlib.call import Attempt
from meshlib.clients import httpx_express
from meshlib.clients.httpx_express import MAX_SHAPES, _shape, begin
from meshlib.model.lb_policy import RingHash
from meshlib.model.snapshot import ClusterConfig
from meshlib.testing import FakeClock, SeededRng, split
from meshlib.testing.source import FakeMesh


def raw(*headers: tuple[str, str], content: bytes | None = None) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(httpx.Request("POST", "http://a/", headers=list(headers), content=content).headers.raw)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx_express, "_shapes", {})


def test_headers_are_written_once_the_host_first() -> None:
    found = _shape(raw(("X-User", "ann"), ("user-agent", "test"), content=b"body"))
    assert found is not None
    assert ("a", 4) == (found.authority, found.length)
    assert (("x-user", "ann"), ("user-agent", "test"), ("content-length", "4")) == found.headers.items
    # Names go out as all of the mesh's do, in lower case.
    assert b"host: a\r\nx-user: ann\r\nuser-agent: test\r\ncontent-length: 4\r\n" == found.lines
    assert [found] == list(httpx_express._shapes.values())


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", "Bearer x"),
        ("cookie", "a=b"),
        ("proxy-authorization", "x"),
        ("x-token", "t" * 200),
        ("host", "h" * 200),
    ],
    ids=lambda header: header[0],
)
def test_secrets_and_long_values_are_not_kept(header: tuple[str, str]) -> None:
    found = _shape(raw(header))
    assert found is not None and header[1].encode() in found.lines
    assert {} == httpx_express._shapes


@pytest.mark.parametrize(
    "headers",
    [
        [("content-type", "application/grpc")],
        [("content-type", "application/grpc+proto")],
        [("x-envoy-max-retries", "1")],
        [("grpc-timeout", "1S")],
        [("x-meshlib-attempt", "2")],
        [("host", "a"), ("host", "b")],
        [("transfer-encoding", "chunked")],
        [("connection", "close")],
        [("connection", "upgrade"), ("upgrade", "websocket")],
        [("content-length", "1"), ("content-length", "1")],
        [("x-bad", "a\nb")],
        [("bad name", "a")],
    ],
    ids=lambda headers: headers[-1][0] + "=" + headers[-1][1],
)
def test_what_needs_a_closer_look_has_no_shape(headers: list[tuple[str, str]]) -> None:
    assert _shape(raw(*headers)) is None
    assert {} == httpx_express._shapes


def test_memory_is_bounded() -> None:
    for number in range(MAX_SHAPES + 5):
        assert _shape(raw(("x-request-id", str(number)))) is not None
    assert 5 == len(httpx_express._shapes)


def test_canary_keeps_its_shares_where_one_side_goes_the_long_way() -> None:
    """Chance is asked once for a request, also if it turns out that it cannot go the short way."""
    made = split("a", {"old": (80, ["h:1"]), "new": (20, ["h:2"])})
    new = made.clusters["a|new"]
    assert isinstance(new, ClusterConfig)
    hashing = replace(new, cluster=replace(new.cluster, lb_policy=RingHash()))
    snapshot = replace(made, clusters={**made.clusters, "a|new": hashing})
    mesh = FakeMesh(snapshot, clock=FakeClock(), rng=SeededRng(5), guard_unsafe=True, is_disabled=False)
    target = mesh.target("a")
    assert target is not None
    request = httpx.Request("GET", "http://a/")
    kinds, shares = Counter[str](), Counter[str]()
    for _ in range(4000):
        begun = begin(mesh, lambda target: (mesh.view, None), request, "a", target)
        assert begun is not None
        call, step = begun.joined()
        assert isinstance(step, Attempt)
        kinds[f"{type(begun).__name__} {call.cluster_name}"] += 1
        shares[call.cluster_name] += 1
        call.close(0.0)
    assert 1 == kinds["Routed a|old"]  # the first, which left its way
    assert shares["a|new"] == kinds["Routed a|new"]
    assert 700 < shares["a|new"] < 900
