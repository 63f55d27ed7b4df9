"""The blocking httpx transport against real servers."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from meshlib.clients.httpx_sync import MeshTransport
from meshlib.errors import DeadlineExceeded, MeshError, RoutingError
from meshlib.events import CallFinished
from meshlib.model.cluster import CircuitBreakers, OutlierDetection
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    DirectResponse,
    HeaderAdd,
    HeaderMutation,
    Route,
    RouteAction,
    RouteMatcher,
    SingleCluster,
)

RETRY = RetryPolicy(frozenset({"connect-failure", "reset", "gateway-error"}), num_retries=3, base_interval_s=0.001)
ANY_PATH = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"))


@pytest.fixture
def client(mesh) -> Iterator[httpx.Client]:
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        yield client


def test_host_of_the_url_finds_the_service_and_is_sent_on(mesh, client, http_server):
    server = http_server(200, b"hello")
    mesh.serve("checkout", {"c": [server.address]})
    response = client.get("http://checkout/orders?id=1", headers={"X-User": "ann"})
    method, path, headers, body = server.requests[0]
    assert (response.status_code, response.text) == (200, "hello")
    assert (method, path, body) == ("GET", "/orders?id=1", b"")
    assert (headers["host"], headers["x-user"]) == ("checkout", "ann")


def test_response_says_what_the_mesh_did(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    record = client.get("http://checkout/").extensions["mesh"]
    assert ("c", server.address, 1, "-") == (record.cluster, record.endpoint, record.attempts, record.flag)


def test_port_of_the_url_belongs_to_the_name(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout:8080", {"c": [server.address]})
    assert client.get("http://checkout:8080/").status_code == 200
    assert server.requests[0][2]["host"] == "checkout:8080"


def test_host_header_of_the_application_is_the_authority(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    client.get("http://checkout/", headers={"host": "shop.example.com"})
    assert server.requests[0][2]["host"] == "shop.example.com"


def test_requests_are_split_by_weight(mesh, client, http_server):
    old, new = http_server(200, b"v1"), http_server(200, b"v2")
    mesh.serve("checkout", {"v1": [old.address], "v2": [new.address]}, weights={"v1": 80, "v2": 20})
    seen = Counter(client.get("http://checkout/").text for _ in range(300))
    # Binomial(300, 0.2): mean 60, standard deviation 6.9; five of them are 35.
    assert abs(seen["v2"] - 60) < 35
    assert seen["v1"] + seen["v2"] == 300


def test_endpoints_keep_their_connections(mesh, client, http_server):
    servers = [http_server(), http_server()]
    mesh.serve("checkout", {"c": [server.address for server in servers]})
    for _ in range(10):
        client.get("http://checkout/")
    assert [len(server.connections) for server in servers] == [1, 1]


def test_retry_goes_to_another_endpoint_when_nobody_listens(mesh, client, http_server, dead_address):
    server = http_server()
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    responses = [client.post("http://checkout/", json={"n": n}) for n in range(4)]
    assert [response.status_code for response in responses] == [200] * 4
    assert max(response.extensions["mesh"].attempts for response in responses) > 1
    assert mesh.held("c") == (0, 0)


def test_retry_after_503_repeats_a_safe_request_and_keeps_the_connection(mesh, client, http_server):
    answers = iter([503, 503, 200])

    def answer(handler, body):
        status = next(answers)
        handler.send_response(status)
        handler.send_header("content-length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)
    response = client.put("http://checkout/", content=b"data")
    assert (response.status_code, response.extensions["mesh"].attempts) == (200, 3)
    assert [body for _, _, _, body in server.requests] == [b"data"] * 3
    assert len(server.connections) == 1


def test_last_response_is_given_when_retries_are_used_up(mesh, client, http_server):
    server = http_server(503, b"busy")
    mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)
    response = client.get("http://checkout/")
    assert (response.status_code, response.text, response.extensions["mesh"].attempts) == (503, "busy", 4)
    assert "URX" in response.extensions["mesh"].flag


def test_post_is_not_repeated_after_it_was_sent(mesh, client, http_server):
    server = http_server(503)
    mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)
    assert client.post("http://checkout/", json={}).status_code == 503
    assert len(server.requests) == 1


def test_generator_is_never_replayed(mesh, client, http_server):
    server = http_server(503)
    mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)

    def body():
        yield b"part 1,"
        yield b"part 2"

    response = client.put("http://checkout/", content=body())
    assert (response.status_code, response.extensions["mesh"].attempts) == (503, 1)
    assert [sent for _, _, _, sent in server.requests] == [b"part 1,part 2"]


def test_generator_goes_on_to_the_next_endpoint_when_nothing_was_read_of_it(mesh, client, http_server, dead_address):
    server = http_server()
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    for _ in range(2):
        assert client.post("http://checkout/", content=iter([b"once"])).status_code == 200
    assert [sent for _, _, _, sent in server.requests] == [b"once", b"once"]


def test_what_a_body_generator_raises_reaches_the_caller(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)

    def body():
        yield b"x"
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        client.post("http://checkout/", content=body())
    assert mesh.held("c") == (0, 0)


def test_response_streams_and_holds_its_permit_until_it_is_closed(mesh, client, http_server):
    go_on = threading.Event()

    def answer(handler, body):
        handler.send_response(200)
        handler.send_header("content-length", "10")
        handler.end_headers()
        handler.wfile.write(b"first")
        assert go_on.wait(10)
        handler.wfile.write(b"final")

    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    with client.stream("GET", "http://checkout/") as response:
        parts = response.iter_raw()
        assert next(parts) == b"first"
        assert mesh.held("c") == (1, 1)
        go_on.set()
        assert b"".join(parts) == b"final"
    assert mesh.held("c") == (0, 0)


def test_large_bodies_pass_in_both_directions_piece_by_piece(mesh, client, http_server):
    piece = b"x" * 65536

    def answer(handler, body):
        handler.send_response(200)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    with client.stream("POST", "http://checkout/", content=(piece for _ in range(64))) as response:
        sizes = [len(part) for part in response.iter_raw()]
    assert sum(sizes) == 64 * 65536
    assert max(sizes) <= 65536


def test_connect_error_names_cluster_and_endpoints(mesh, client, dead_address):
    mesh.serve("checkout", {"c": [dead_address]}, retry=RETRY)
    with pytest.raises(httpx.ConnectError) as caught:
        client.get("http://checkout/orders")
    record = caught.value.mesh
    assert isinstance(record, MeshError)
    assert ("c", (dead_address,) * 4, 4) == (record.cluster, record.endpoints, record.attempts)
    assert "UF" in record.flag
    assert caught.value.__cause__ is record
    assert dead_address in str(caught.value)
    assert mesh.held("c") == (0, 0)


def test_unknown_host_is_an_error_that_says_what_to_do(mesh, client):
    with pytest.raises(httpx.ConnectError, match='"unknown"') as caught:
        client.get("http://elsewhere/")
    assert isinstance(caught.value.mesh, RoutingError)


def test_unknown_host_goes_out_directly_when_asked_and_is_counted(mesh, http_server):
    server = http_server(200, b"outside")
    with httpx.Client(transport=MeshTransport(mesh, passthrough="unknown")) as client:
        assert client.get(f"http://{server.address}/").text == "outside"
    event = mesh.events[-1]
    assert isinstance(event, CallFinished)
    assert ("PassthroughCluster", server.address, 200) == (event.cluster, event.target, event.status)


def test_disabled_mesh_sends_directly(mesh, client, http_server):
    server = http_server()
    mesh.is_disabled = True
    response = client.get(f"http://{server.address}/")
    assert "mesh" not in response.extensions
    assert mesh.events == []


def test_https_is_refused_where_the_mesh_has_no_tls(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    with pytest.raises(httpx.ConnectError, match="without TLS"):
        client.get("https://checkout/")
    assert server.requests == []
    assert mesh.held("c") == (0, 0)


def test_other_schemes_are_refused(client):
    with pytest.raises(httpx.UnsupportedProtocol):
        client.get("ftp://checkout/")


def test_mesh_answers_itself_as_a_response(mesh, client):
    mesh.serve("checkout", {"c": []})
    response = client.get("http://checkout/")
    assert (response.status_code, response.text) == (503, "no healthy upstream")
    assert (
        response.headers["content-type"],
        response.extensions["mesh"].flag,
        response.extensions["mesh"].endpoint,
    ) == ("text/plain", "UH", "")


def test_direct_response_to_head_has_no_body(mesh, client):
    mesh.serve("checkout", {"c": []}, route=Route(ANY_PATH, DirectResponse(418, b"teapot")))
    assert (client.get("http://checkout/").text, client.head("http://checkout/").text) == ("teapot", "")


def test_route_changes_headers_both_ways(mesh, client, http_server):
    server = http_server()
    mutation = HeaderMutation(
        request_add=(HeaderAdd("x-added", "1"),),
        request_remove=("x-secret",),
        response_add=(HeaderAdd("x-answered-by", "mesh"),),
        response_remove=("server",),
    )
    route = Route(ANY_PATH, RouteAction(SingleCluster("c"), prefix_rewrite="/v2/"), mutation=mutation)
    mesh.serve("checkout", {"c": [server.address]}, route=route)
    response = client.get("http://checkout/orders", headers={"x-secret": "1"})
    _, path, headers, _ = server.requests[0]
    assert (path, headers["x-added"], headers.get("x-secret")) == ("/v2/orders", "1", None)
    assert (response.headers["x-answered-by"], response.headers.get("server")) == ("mesh", None)


def test_route_timeout_ends_an_attempt_that_trickles(mesh, client, raw_server):
    """Each byte comes well within httpx's read time-out; only the whole is too slow."""

    def trickle(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:  # until the client leaves
            connection.sendall(b"x")
            time.sleep(0.02)

    server = raw_server(trickle)
    mesh.serve("checkout", {"c": [server.address]}, timeout_s=0.2)
    with pytest.raises(httpx.ReadTimeout) as caught:
        client.get("http://checkout/")
    assert isinstance(caught.value.mesh, DeadlineExceeded)
    assert caught.value.mesh.flag == "UT"
    assert mesh.held("c") == (0, 0)


def test_httpx_timeout_caps_the_route(mesh, client, raw_server):
    over = threading.Event()
    server = raw_server(lambda connection, number: over.wait(60))
    mesh.serve("checkout", {"c": [server.address]}, timeout_s=50.0)
    start = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        client.get("http://checkout/", timeout=0.1)
    assert time.monotonic() - start < 40.0
    over.set()


def test_upload_may_take_longer_than_the_route_timeout(mesh, client, http_server):
    """Envoy's time-out starts when the request is complete."""
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]}, timeout_s=1.0)

    def slow():
        for _ in range(3):
            time.sleep(0.5)
            yield b"x"

    assert client.post("http://checkout/", content=slow()).status_code == 200


def test_connection_limit_of_the_client_gives_httpx_pool_timeout(mesh, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    limits = httpx.Limits(max_connections=1)
    with httpx.Client(transport=MeshTransport(mesh, limits=limits), timeout=httpx.Timeout(5, pool=0.05)) as client:
        with client.stream("GET", "http://checkout/"):
            with pytest.raises(httpx.PoolTimeout) as caught:
                client.get("http://checkout/")
    assert caught.value.mesh.cluster == "c"
    assert mesh.held("c") == (0, 0)


def test_limit_of_requests_is_answered_by_the_mesh(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]}, circuit_breakers=CircuitBreakers(max_requests=1))
    with client.stream("GET", "http://checkout/"):
        response = client.get("http://checkout/")
    assert (response.status_code, response.extensions["mesh"].flag) == (503, "UO")
    assert client.get("http://checkout/").status_code == 200


def die_on_second_request(connection: socket.socket, number: int) -> None:
    """Answer one request on each connection, and close it as soon as the next one arrives (a keep-alive race)."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    connection.recv(65536)


def test_safe_request_survives_a_dying_keep_alive_connection(mesh, client, raw_server):
    server = raw_server(die_on_second_request)
    mesh.serve("checkout", {"c": [server.address]})
    responses = [client.get("http://checkout/") for _ in range(4)]
    assert [(r.status_code, r.extensions["mesh"].attempts) for r in responses] == [(200, 1)] * 4


def test_unsafe_request_on_a_dying_connection_is_an_error_of_httpx(mesh, client, raw_server):
    server = raw_server(die_on_second_request)
    mesh.serve("checkout", {"c": [server.address]})
    assert client.post("http://checkout/", json={}).status_code == 200
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        client.post("http://checkout/", json={})
    assert "UC" in caught.value.mesh.flag


def test_body_that_is_cut_off_raises_and_releases(mesh, client, raw_server):
    def cut(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

    server = raw_server(cut)
    mesh.serve("checkout", {"c": [server.address]})
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        client.get("http://checkout/")
    assert caught.value.mesh.cluster == "c"
    assert mesh.held("c") == (0, 0)


def test_connections_retire_after_the_number_of_requests_that_the_cluster_allows(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]}, max_requests_per_connection=2)
    for _ in range(6):
        client.get("http://checkout/")
    assert len(server.connections) == 3


def test_unix_socket_is_an_endpoint_too(mesh, client, tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        mesh.serve("checkout", {"c": [f"unix:{path}"]})
        assert client.get("http://checkout/").status_code == 204
        thread.join()


def test_redirects_cookies_and_hooks_of_the_client_work(mesh, http_server):
    def answer(handler, body):
        status, headers = (302, {"location": "/next", "set-cookie": "a=1"}) if handler.path == "/" else (200, {})
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", "0")
        handler.end_headers()

    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    seen: list[int] = []
    hooks = {"response": [lambda response: seen.append(response.status_code)]}
    with httpx.Client(transport=MeshTransport(mesh), follow_redirects=True, event_hooks=hooks) as client:
        assert client.get("http://checkout/").status_code == 200
    assert seen == [302, 200]
    assert server.requests[1][2]["cookie"] == "a=1"


def test_threads_share_a_transport(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    statuses: list[int] = []

    def work() -> None:
        statuses.extend(client.get("http://checkout/").status_code for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 160
    assert mesh.held("c") == (0, 0)


def test_closed_transport_refuses_work(mesh, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    transport = MeshTransport(mesh)
    transport.close()
    with pytest.raises(RuntimeError, match="closed"):
        transport.handle_request(httpx.Request("GET", "http://checkout/"))
    assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize("headers_first", [False, True])
def test_idle_timeout_ends_a_response_that_stops_coming(mesh, client, raw_server, headers_first):
    """Bytes that come in time keep the response alive, however long it takes in all."""
    over = threading.Event()

    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        if headers_first:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
            for _ in range(4):
                time.sleep(0.1)
                connection.sendall(b"x")
        over.wait(20)

    server = raw_server(handle)
    action = RouteAction(SingleCluster("c"), timeout_s=0.0, idle_timeout_s=0.25)
    mesh.serve("checkout", {"c": [server.address]}, route=Route(ANY_PATH, action))
    with pytest.raises(httpx.ReadTimeout) as caught:
        client.get("http://checkout/", timeout=60)
    over.set()
    assert caught.value.mesh.flag == "SI"
    assert mesh.events[-1].flag == "SI"
    assert mesh.held("c") == (0, 0)


def test_connection_lost_in_the_body_counts_against_the_endpoint(mesh, client, raw_server):
    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nxyz")

    server = raw_server(handle)
    rules = OutlierDetection(consecutive_5xx=2, max_ejection_percent=100)
    mesh.serve("checkout", {"c": [server.address]}, outlier_detection=rules)
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        client.get("http://checkout/")
    assert caught.value.mesh.flag == "UC"
    assert mesh.cluster("c").states[server.address].is_ejected
    assert mesh.events[-1].flag == "UC"
