"""Who is let in: random certificates before random validation contexts, judged by Envoy and by meshlib.

    python -m differential.tls --cases 500 --seed 7

Half of the cases are servers' certificates before a client (a cluster), half are clients' before a server (a
listener). Who refuses a peer must do so before the peer has a byte of the application's.
"""

import asyncio
import contextlib
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.authority import Authority, Leaf
from peers.envoy import Envoy, socket_address, static_cluster
from peers.upstreams import LOOPBACK

from differential.command import arguments_of, new_seed
from differential.generate import TYPE, Json
from differential.tls_cases import Case, CaseMaker
from meshlib.errors import IdentityError
from meshlib.model.endpoint import Endpoint
from meshlib.model.request import Headers, RequestHead
from meshlib.model.secret import Secret
from meshlib.model.snapshot import ClusterConfig
from meshlib.protos import from_dict
from meshlib.runtime.tls import client_context, server_context
from meshlib.runtime.tls_context import load_identity
from meshlib.view import ClusterState
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS, LDS

_TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."
_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
# Both versions for both: OpenSSL and BoringSSL differ in what they do by themselves.
_VERSIONS = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}
_TIMEOUT_S = 10.0


@dataclass(slots=True)
class TlsReport:
    """
    Attributes:
        accepted: By both.
        refused: By both.
        stricter: Refused by meshlib alone, by a rule that it has on purpose.
        disagreements: As texts.
    """

    seed: int
    accepted: int = 0
    refused: int = 0
    stricter: int = 0
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.accepted} accepted and {self.refused} refused by both, {self.stricter} refused by "
            f"meshlib's own rules, {len(self.disagreements)} disagreements"
        )

    def add(self, case: Case, envoy: bool, ours: str) -> None:
        """Take in one case.

        Args:
            envoy: It has accepted the peer.
            ours: Why meshlib refuses it, or empty.
        """
        if envoy and not ours:
            self.accepted += 1
        elif not envoy and ours:
            self.refused += 1
        elif envoy and ours and case.odd:
            self.stricter += 1
        else:
            verdict = "accepts" if envoy else "refuses"
            self.disagreements.append(f"Envoy {verdict}; meshlib: {ours or 'accepts'}; {case.story}; {case.socket}")


class Recorder:
    """A server per certificate, in one thread; counts the application's bytes that each is sent."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.received = [0] * len(leaves)
        self.addresses: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(leaves), self._loop).result(60)

    async def _open(self, leaves: Sequence[Leaf]) -> None:
        self._servers = []
        for number, leaf in enumerate(leaves):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            load_identity(context, leaf.chain_pem, leaf.key_pem)

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int = number) -> None:
                with contextlib.suppress(OSError):
                    while data := await reader.read(65536):
                        self.received[number] += len(data)
                        if b"\r\n\r\n" in data:
                            writer.write(_ANSWER)
                            await writer.drain()
                            break
                writer.close()

            server = await asyncio.start_server(serve, LOOPBACK, 0, ssl=context)
            self._servers.append(server)
            self.addresses.append(f"{LOOPBACK}:{server.sockets[0].getsockname()[1]}")

    def close(self) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def run(*, seed: int, cases: int, folder: Path) -> TlsReport:
    """Compare Envoy and meshlib.

    Args:
        cases: Of either kind.
    """
    report, maker = TlsReport(seed), CaseMaker(seed)
    with _loop_is_quiet():
        _clients(report, [maker.case(is_server=False) for _ in range(cases)], folder)
        _servers(report, [maker.case(is_server=True) for _ in range(cases)], folder)
    return report


@contextlib.contextmanager
def _loop_is_quiet() -> Iterator[None]:
    """Handshakes that fail are what this is about; asyncio would log each."""
    import logging

    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# Servers' certificates before a client.


def cluster(number: int, case: Case, address: str) -> Json:
    """Return the Cluster of a case, proto3 JSON."""
    context = {"@type": _TLS + "UpstreamTlsContext", **case.socket}
    context["common_tls_context"] = {**context["common_tls_context"], "tls_params": _VERSIONS}
    options: Json = {"@type": TYPE + _HTTP, "explicit_http_config": {"http_protocol_options": {}}}
    if case.options:
        options["upstream_http_protocol_options"] = case.options
    return static_cluster(
        f"c{number}",
        address,
        transport_socket={"name": "envoy.transport_sockets.tls", "typed_config": context},
        typed_extension_protocol_options={_HTTP: options},
    )


def _clients(report: TlsReport, cases: Sequence[Case], folder: Path) -> None:
    recorder = Recorder([case.leaf for case in cases])
    try:
        clusters = [cluster(number, case, recorder.addresses[number]) for number, case in enumerate(cases)]
        routes = [{"match": {"path": f"/{number}"}, "route": {"cluster": f"c{number}"}} for number in range(len(cases))]
        listener = _listener("out", {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]})
        resources = {"clusters": clusters, "listeners": [listener]}
        verdicts: list[bool] = []
        with Envoy("envoy-clients", {"static_resources": resources}, folder) as envoy:
            (listen,) = _addresses(envoy)
            for number, case in enumerate(cases):
                answer = envoy.request("GET", f"/{number}", authority=case.authority, listen=listen)
                verdicts.append(answer.status == 200)
                assert verdicts[-1] == bool(recorder.received[number]), f"Envoy, {case.story}"
        for number, case in enumerate(cases):
            before = recorder.received[number]
            ours = _as_client(clusters[number], case)
            assert before == recorder.received[number], f"meshlib, {case.story}"
            report.add(case, verdicts[number], ours)
    finally:
        recorder.close()


def _as_client(resource: Json, case: Case) -> str:
    """Return why meshlib does not talk to a server, or the empty string."""
    decoded = decode_resource(CDS, from_dict("envoy.config.cluster.v3.Cluster", resource).SerializeToString())
    if decoded.value is None:
        return f"resource refused: {decoded.errors}"
    value: Any = decoded.value
    state = ClusterState(ClusterConfig(value, value.discovery.assignment), 0.0)
    endpoint: Endpoint = value.discovery.assignment.localities[0].endpoints[0]
    tls = state.tls_for(endpoint)
    assert tls is not None
    if value.authority_names is not None:
        tls = state.tls_for_request(tls, value.authority_names, RequestHead("GET", case.authority, "/", Headers()))
    try:
        context = client_context(tls, {})
        with socket.create_connection((endpoint.host, endpoint.port), timeout=_TIMEOUT_S) as plain:
            context.wrap_socket(plain).close()
    except (IdentityError, OSError) as error:
        return str(error)
    return ""


# Clients' certificates before a server.


def _servers(report: TlsReport, cases: Sequence[Case], folder: Path) -> None:
    own = Authority("server").issue(dns=["server.example"])
    routes = [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}}]
    table = {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]}
    listeners = [_listener(f"in{number}", table, _downstream(case, own)) for number, case in enumerate(cases)]
    with Envoy("envoy-servers", {"static_resources": {"listeners": listeners}}, folder) as envoy:
        addresses = _addresses(envoy)
        with ThreadPoolExecutor(4) as pool:
            verdicts = list(pool.map(_ask, addresses, [case.leaf for case in cases]))
    for case, listener, verdict in zip(cases, listeners, verdicts, strict=True):
        report.add(case, verdict, _as_server(listener, case))


def _downstream(case: Case, own: Leaf) -> Json:
    common = {
        **case.socket["common_tls_context"],
        "tls_params": _VERSIONS,
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": own.chain_pem.decode()},
                "private_key": {"inline_string": own.key_pem.decode()},
            }
        ],
    }
    config = {"@type": _TLS + "DownstreamTlsContext", "common_tls_context": common, "require_client_certificate": True}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _anybody(leaf: Leaf) -> ssl.SSLContext:
    """A client that shows a certificate and trusts everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    load_identity(context, leaf.chain_pem, leaf.key_pem)
    return context


def _ask(address: str, leaf: Leaf) -> bool:
    """Whether a server answers a client with a certificate."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as plain:
            with _anybody(leaf).wrap_socket(plain) as secure:
                secure.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                return secure.recv(4096).startswith(b"HTTP/1.1 200")
    except (OSError, ssl.SSLError):
        return False


def _as_server(resource: Json, case: Case) -> str:
    """Return why meshlib does not talk to a client, or the empty string."""
    message = from_dict("envoy.config.listener.v3.Listener", resource)
    # Direct responses are for clients; a server's route hands the request to the application.
    manager = from_dict(_MANAGER, _manager({"name": "r"}))
    message.filter_chains[0].filters[0].typed_config.value = manager.SerializeToString()
    decoded = decode_resource(LDS, message.SerializeToString())
    if decoded.value is None:
        return f"resource refused: {decoded.errors}"
    value: Any = decoded.value
    secrets: dict[str, Secret] = {}
    try:
        server = server_context(value.tls, secrets)
        client = _anybody(case.leaf)
    except IdentityError as error:
        return str(error)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    left = [theirs, ours]
    for _ in range(8):
        for one in tuple(left):
            try:
                one.do_handshake()
                left.remove(one)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return str(error)
    return "" if not left else "the handshake does not end"


_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def _manager(table: Json) -> Json:
    router = {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}
    return {
        "stat_prefix": "m",
        "route_config": table,
        "http_filters": [{"name": "router", "typed_config": router}],
    }


def _listener(name: str, table: Json, transport_socket: Json | None = None) -> Json:
    chain: Json = {"filters": [{"name": "m", "typed_config": {"@type": TYPE + _MANAGER, **_manager(table)}}]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
    return {"name": name, "address": socket_address(f"{LOOPBACK}:0"), "filter_chains": [chain]}


def _addresses(envoy: Envoy) -> list[str]:
    """Return where the listeners listen, in the order of their names' numbers."""
    found = []
    for line in envoy.admin("/listeners").splitlines():
        name, _, address = line.partition("::")
        found.append((int("".join(filter(str.isdigit, name)) or 0), address))
    return [address for _, address in sorted(found)]


def main() -> None:
    parser = arguments_of("differential.tls", "whom meshlib trusts with Envoy's verdicts")
    parser.add_argument("--cases", type=int, default=300)
    options = parser.parse_args()
    seed = new_seed() if options.seed is None else options.seed
    disagreements = 0
    # An Envoy for each hundred: listeners and clusters take their time to come up.
    for part in range(0, options.cases, 100):
        with tempfile.TemporaryDirectory() as folder:
            report = run(seed=seed + part, cases=min(100, options.cases - part), folder=Path(folder))
        print(report)
        for text in report.disagreements:
            print("  " + text)
        disagreements += len(report.disagreements)
    sys.exit(1 if disagreements else 0)


if __name__ == "__main__":
    main()
