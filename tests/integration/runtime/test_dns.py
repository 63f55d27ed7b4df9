"""DNS clusters over a real name server on loopback: calls follow the name, at the pace of its answers and failures."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import httpx
import pytest
from peers.name_server import NameServer

from meshlib import Mesh
from meshlib.errors import MeshError
from meshlib.runtime import host_names
from meshlib.xds.resources import CDS, LDS, RDS

CARES = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
DNS_CLUSTER = "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster"
NAME = "shop.example"


class Handler(BaseHTTPRequestHandler):
    """Says at which address it serves, and for which host."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else headers and body, written apart, arrive 40 ms apart

    def do_GET(self) -> None:
        body = f"{self.server.server_address[0]} {self.headers['host']}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def two_servers() -> tuple[ThreadingHTTPServer, ThreadingHTTPServer]:
    """A port that is free at one address may be taken at the other."""
    for _ in range(20):
        first = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        try:
            return first, ThreadingHTTPServer(("127.0.0.2", first.server_port), Handler)
        except OSError:
            first.server_close()
    raise AssertionError("no port is free at both addresses")


@pytest.fixture
def port() -> Iterator[int]:
    """Of servers at 127.0.0.1 and 127.0.0.2."""
    with ExitStack() as stack:
        servers = [stack.enter_context(server) for server in two_servers()]
        for server in servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield servers[0].server_port
        for server in servers:
            server.shutdown()


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as server:
        yield server


Put = Callable[..., None]


@pytest.fixture
def put(ads: Any, tools: Any, names: NameServer, port: int) -> Put:
    """Puts the service `shop`, with a DNS cluster by fields or by type, whose names are asked of `names`."""

    def put_shop(kind: str = "STRICT_DNS", *, to_port: int = port, **fields: Any) -> None:
        resolver = {"@type": CARES, "resolvers": [address("127.0.0.1", names.port)]}
        resolver |= fields.pop("resolver", {})
        options = {
            "dns_lookup_family": "V4_ONLY",
            "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": resolver},
        }
        options |= fields.pop("options", {})
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(NAME, to_port)}}]}]
        cluster = {"name": "shop", "connect_timeout": "2s", **fields}
        cluster["load_assignment"] = {"cluster_name": "shop", "endpoints": endpoints}
        if kind == "DnsCluster":
            config = {"@type": DNS_CLUSTER, **options}
            cluster["cluster_type"] = {"name": "envoy.clusters.dns", "typed_config": config}
        else:
            cluster |= {"type": kind, **options}
        routes = tools.route_config("shop", "shop")
        routes["virtual_hosts"][0]["routes"][0]["route"]["auto_host_rewrite"] = True
        ads.put(LDS, tools.listener("shop", "shop"))
        ads.put(RDS, routes)
        ads.put(CDS, cluster)

    return put_shop


def address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


@pytest.fixture
def mesh(ads: Any) -> Iterator[Mesh]:
    with Mesh.connect(ads.address, node_id="dns", state_dir="", first_use_timeout_s=40) as started:
        yield started


@pytest.fixture
def get(mesh: Mesh) -> Iterator[Callable[[], str]]:
    with httpx.Client(transport=mesh.httpx_transport(), timeout=40) as client:
        yield lambda: client.get("http://shop/").text


def wait_for(get: Callable[[], str], expected: str) -> None:
    deadline = time.monotonic() + 40
    while (found := get()) != expected:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["STRICT_DNS", "DnsCluster"])
def test_calls_follow_a_name_when_its_time_to_live_is_over(
    names: NameServer, put: Put, get: Callable[[], str], kind: str
) -> None:
    names.put(NAME, "127.0.0.1", ttl=1)
    put(kind, options={"respect_dns_ttl": True, "dns_refresh_rate": "3600s"})
    assert get() == f"127.0.0.1 {NAME}"
    names.put(NAME, "127.0.0.2", ttl=3600)
    wait_for(get, f"127.0.0.2 {NAME}")
    first, second = names.times_of(NAME)
    assert 0.9 <= second - first
    assert [] == names.times_of(NAME, "AAAA")


def test_while_the_name_server_fails_calls_go_on_and_look_ups_back_off(
    names: NameServer, put: Put, get: Callable[[], str]
) -> None:
    """1. A good answer. 2. Failures: calls go on. 3. A new address is found. 4. The name is gone, and so is the host."""
    names.put(NAME, "127.0.0.1")
    pace = {"base_interval": "0.2s", "max_interval": "0.4s"}
    put(options={"dns_refresh_rate": "0.5s", "dns_failure_refresh_rate": pace})
    assert get() == f"127.0.0.1 {NAME}"
    names.fail(NAME)
    asked = len(names.times_of(NAME))
    failed = names.wait_asked(NAME, asked + 8)[asked:]
    assert get() == f"127.0.0.1 {NAME}"
    assert max(later - sooner for sooner, later in itertools.pairwise(failed)) >= 0.05
    names.put(NAME, "127.0.0.2")
    wait_for(get, f"127.0.0.2 {NAME}")
    names.drop(NAME)
    wait_for(get, "no healthy upstream")


def test_a_logical_host_has_one_address_at_a_time_and_keeps_it(
    names: NameServer, put: Put, get: Callable[[], str], mesh: Mesh
) -> None:
    names.put(NAME, "127.0.0.2", "127.0.0.1")
    put("LOGICAL_DNS", options={"dns_refresh_rate": "0.1s"})
    assert {get() for _ in range(5)} == {f"127.0.0.2 {NAME}"}
    names.put(NAME, "127.0.0.1", "127.0.0.2")
    asked = len(names.times_of(NAME))
    names.wait_asked(NAME, asked + 3)
    assert get() == f"127.0.0.2 {NAME}"
    names.drop(NAME)
    asked = len(names.times_of(NAME))
    names.wait_asked(NAME, asked + 3)
    assert get() == f"127.0.0.2 {NAME}"


def test_calls_go_on_to_the_next_address_of_a_logical_host_that_cannot_be_reached(
    names: NameServer, put: Put, get: Callable[[], str]
) -> None:
    names.put(NAME, "127.0.0.3", "127.0.0.2", "127.0.0.1")  # nobody listens at the first
    put("LOGICAL_DNS")
    assert {get() for _ in range(5)} == {f"127.0.0.2 {NAME}"}


def test_grpc_calls_reach_a_logical_host(names: NameServer, put: Put, mesh: Mesh) -> None:
    server = grpc.server(None)  # nobody serves: that there is an answer is enough
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    names.put(NAME, "127.0.0.3", "127.0.0.1")
    put("LOGICAL_DNS", to_port=port)
    with mesh.channel("xds:///shop") as channel:
        call: Any = channel.unary_unary("/a.B/C")
        with pytest.raises(grpc.RpcError) as error:
            call(b"", timeout=30)
    server.stop(None)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


def test_a_grpc_call_that_finds_nobody_has_the_name_looked_up_again(
    names: NameServer, put: Put, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster itself would wait for an hour."""
    monkeypatch.setattr(host_names, "MIN_BETWEEN_S", 0.2)
    server = grpc.server(None)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    names.put(NAME, "127.0.0.3", ttl=3600)  # nobody listens there
    put("LOGICAL_DNS", to_port=port, options={"dns_refresh_rate": "3600s"})
    codes: list[Any] = []
    with mesh.channel("xds:///shop") as channel:
        call: Any = channel.unary_unary("/a.B/C")
        deadline = time.monotonic() + 40
        while codes[-1:] != [grpc.StatusCode.UNIMPLEMENTED] and time.monotonic() < deadline:
            with pytest.raises(grpc.RpcError) as error:
                call(b"", timeout=30)
            codes.append(error.value.code())  # type: ignore[attr-defined]
            names.put(NAME, "127.0.0.1", ttl=3600)
            time.sleep(0.05)
    server.stop(None)
    assert (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED) == (codes[0], codes[-1])


def test_servers_are_asked_over_tcp_where_the_resolver_says_so(
    names: NameServer, put: Put, get: Callable[[], str]
) -> None:
    names.put(NAME, "127.0.0.1")
    put(resolver={"dns_resolver_options": {"use_tcp_for_dns_lookups": True}})
    assert get() == f"127.0.0.1 {NAME}"
    assert names.transports_of(NAME) == {"tcp"}


def test_a_name_that_cannot_be_looked_up_is_in_the_error(names: NameServer, put: Put, mesh: Mesh) -> None:
    names.fail(NAME)
    put()
    with httpx.Client(transport=mesh.httpx_transport(), timeout=40) as client:
        answer = client.get("http://shop/")
    assert answer.status_code == 503
    assert f"DNS resolution failed for {NAME}" in str(mesh.explain("GET", "http://shop/"))


@pytest.mark.parametrize("waits", [True, False])
def test_a_cluster_waits_for_its_name_unless_it_need_not(names: NameServer, put: Put, mesh: Mesh, waits: bool) -> None:
    names.silence(NAME)
    put(wait_for_warm_on_init=waits, resolver={"query_timeout_seconds": "9", "query_tries": 1})
    if waits:
        with pytest.raises(MeshError, match=f"waiting for DNS: {NAME}"):
            mesh.wait_ready("shop", timeout_s=0.5)
    else:
        mesh.wait_ready("shop", timeout_s=8)
        assert f"DNS: {NAME} has not been looked up yet" in str(mesh.explain("GET", "http://shop/"))
