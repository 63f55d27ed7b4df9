"""`requests` over the mesh, with the real library."""

import gc
import io
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from test_httpx_behaviours import answer

from meshlib.errors import DeadlineExceeded, MeshError, RoutingError
from meshlib.integrations.requests import MeshAdapter
from meshlib.model.retry import RetryPolicy

from .test_httpx_express import ExpressMesh

RETRY = RetryPolicy(frozenset({"5xx", "connect-failure", "reset"}), num_retries=3, base_interval_s=0.001)


@pytest.fixture
def session(mesh: Any) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.mount("http://", MeshAdapter(mesh))
        yield session


@pytest.fixture
def server(mesh: Any, http_server: Any) -> Any:
    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    return server


def test_request_goes_out_as_requests_made_it(session: requests.Session, mesh: Any, server: Any) -> None:
    response = session.get("http://checkout/echo?a=%7e", params={"b": "c d"}, headers={"X-Own": "1"}, timeout=5)
    seen = response.json()
    assert (response.status_code, seen["path"], seen["headers"]["host"]) == (200, "/echo?a=~&b=c+d", "checkout")
    assert (seen["headers"]["x-own"], seen["headers"]["user-agent"][:15]) == ("1", "python-requests")
    assert ("c", server.address, 1) == (response.mesh.cluster, response.mesh.endpoint, response.mesh.attempts)
    assert (response.url, response.reason, response.encoding) == (
        "http://checkout/echo?a=%7E&b=c+d".replace("%7E", "~"),
        "OK",
        "utf-8",
    )
    assert response.elapsed.total_seconds() > 0
    assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({"data": b"bytes"}, "bytes"),
        ({"data": "text"}, "text"),
        ({"data": {"a": "1"}}, "a=1"),
        ({"json": [1]}, "[1]"),
        ({"data": io.BytesIO(b"of a file")}, "of a file"),
        ({"data": (piece for piece in (b"made ", b"later"))}, "made later"),
        ({}, ""),
    ],
)
def test_bodies(session: requests.Session, server: Any, options: Any, body: str) -> None:
    assert session.post("http://checkout/echo", **options).json()["body"] == body


def test_files(session: requests.Session, server: Any) -> None:
    seen = session.post("http://checkout/echo", files={"f": ("name.txt", b"content")}).json()
    assert "content" in seen["body"] and seen["headers"]["content-type"].startswith("multipart/form-data")


def test_cookies_redirects_authentication_and_hooks(session: requests.Session, server: Any) -> None:
    session.get("http://checkout/set-cookie?name=a&value=b")
    response = session.get("http://checkout/redirect?to=/echo", auth=("ann", "secret"))
    seen = response.json()["headers"]
    assert [one.status_code for one in response.history] == [302]
    assert (sorted(seen["cookie"].split("; ")), seen["authorization"][:5]) == (["a=b", "seen=redirect"], "Basic")
    heard: list[int] = []
    session.get("http://checkout/echo", hooks={"response": lambda r, **_: heard.append(r.status_code)})
    assert heard == [200]
    digest = requests.auth.HTTPDigestAuth("ann", "secret")
    assert session.get("http://checkout/digest", auth=digest).text == "welcome"


def test_content_is_decoded_and_streamed(session: requests.Session, mesh: Any, server: Any) -> None:
    plain = b"line one\nline two\n" * 100
    assert session.get("http://checkout/gzip").content == plain
    with session.get("http://checkout/gzip", stream=True) as response:
        assert mesh.held("c") == (1, 1)
        assert list(response.iter_lines()) == [b"line one", b"line two"] * 100
    with session.get("http://checkout/chunked", stream=True) as response:
        assert b"".join(response.iter_content(4)) == b"one\ntwo\nthree"
    assert session.head("http://checkout/echo").content == b""
    assert session.get("http://checkout/status?code=204").content == b""
    assert len(server.connections) == 1
    with session.get("http://checkout/mebibytes?count=8", stream=True):
        pass
    assert mesh.held("c") == (0, 0)
    assert session.get("http://checkout/echo").ok


def test_attempts_are_repeated(session: requests.Session, mesh: Any, server: Any, dead_address: str) -> None:
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    responses = [session.post("http://checkout/echo", json={}) for _ in range(4)]
    assert {response.status_code for response in responses} == {200}
    assert max(response.mesh.attempts for response in responses) > 1


def test_what_the_mesh_answers_is_a_response(session: requests.Session, mesh: Any) -> None:
    mesh.serve("checkout", {"c": []})
    response = session.get("http://checkout/")
    assert (response.status_code, response.text, response.mesh.flag) == (503, "no healthy upstream", "UH")


def test_errors_are_those_of_requests(session: requests.Session, mesh: Any, raw_server: Any, dead_address: str) -> None:
    mesh.serve("dead", {"c": [dead_address]})
    with pytest.raises(requests.ConnectionError) as caught:
        session.get("http://dead/")
    assert isinstance(caught.value.mesh, MeshError) and caught.value.mesh.endpoints == (dead_address,)
    assert caught.value.request.url == "http://dead/"

    with socket.create_server(("127.0.0.1", 0)) as silent:
        mesh.serve("silent", {"s": [f"127.0.0.1:{silent.getsockname()[1]}"]}, timeout_s=0.0)
        with pytest.raises(requests.ReadTimeout) as slow:
            session.get("http://silent/", timeout=(5, 0.05))
    assert isinstance(slow.value.mesh, DeadlineExceeded)

    def truncate(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")

    mesh.serve("cut", {"t": [raw_server(truncate).address]})
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.get("http://cut/")
    with pytest.raises(requests.ConnectionError) as unknown:
        session.get("http://elsewhere/")
    assert isinstance(unknown.value.mesh, RoutingError)
    with pytest.raises(ValueError, match="cert="):
        session.get("http://dead/", cert="mine.pem")


def test_ways_past_the_mesh(mesh: Any, server: Any) -> None:
    with requests.Session() as session:
        session.mount("http://", MeshAdapter(mesh, passthrough="unknown"))
        assert session.get(f"http://{server.address}/echo").json()["headers"]["host"] == server.address
        assert mesh.events[-1].cluster == "PassthroughCluster"
        assert session.get("http://checkout/echo").mesh.cluster == "c"
        mesh.is_disabled = True
        assert session.get(f"http://{server.address}/echo").ok


def test_threads_share_a_session(session: requests.Session, mesh: Any, server: Any) -> None:
    found: list[int] = []

    def work() -> None:
        for _ in range(10):
            found.append(session.get("http://checkout/echo", timeout=20).status_code)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 80
    assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize("is_express", [False, True])
def test_bodies_that_are_wrong_from_their_first_byte_are_errors_of_requests(raw_server: Any, is_express: bool) -> None:
    """What came together with the head: it was httpx's error that got out where no `Call` is needed."""

    def garble(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab")

    mesh = ExpressMesh(is_express=is_express)
    mesh.serve("checkout", {"c": [raw_server(garble).address]})
    with requests.Session() as session:
        session.mount("http://", MeshAdapter(mesh))
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            session.get("http://checkout/")
        with session.get("http://checkout/", stream=True) as response:
            assert 200 == response.status_code
    assert (0, 0) == mesh.held("c")


@pytest.mark.parametrize("read", [0, 10])
def test_finaliser_of_a_dropped_response_takes_no_lock(
    session: requests.Session, mesh: Any, server: Any, read: int
) -> None:
    response = session.get("http://checkout/mebibytes?count=8", stream=True, timeout=5)
    response.raw.read(read)
    pools = session.get_adapter("http://checkout")._transport._pools  # type: ignore[attr-defined]
    dropping = threading.Thread(target=_drop, args=([response],), daemon=True)
    del response
    with pools._lock:
        dropping.start()
        dropping.join(5)
        is_waiting = dropping.is_alive()
    dropping.join()
    assert not is_waiting
    assert session.get("http://checkout/echo", timeout=5).status_code == 200  # and what it held is given back
    assert mesh.held("c") == (0, 0)


def _drop(last: list[requests.Response]) -> None:
    last.clear()
    gc.collect()
