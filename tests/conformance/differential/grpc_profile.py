"""The profile of gRPC beside gRPC's own client: both get the same resources from one server, and answer each.

A table of cases goes to gRPC C-core (`xds:///`, one stream per service) and to a mesh whose bootstrap has the server
feature `meshlib.validation_grpc`. What is compared is the acknowledgement of each resource.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from peers.grpcio import GrpcioClient
from peers.processes import poll

from differential.grpc_resources import PROVIDER_INSTANCE, Case
from meshlib import Mesh
from meshlib.protos import message_class
from meshlib.xds.bootstrap import GRPC_RULES_FEATURE

__all__ = ["Disagreement", "Judge", "ask_mesh", "bootstrap_for", "compare", "verdicts_of"]

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
ANSWER_S = 30.0


@dataclass(frozen=True, slots=True)
class Disagreement:
    """Attributes:
    grpc: Its reason for a refusal; empty: taken.
    meshlib: The same.
    """

    case: str
    grpc: str
    meshlib: str


class Judge:
    """A management server that notes what became of each resource that it sent.

    Attributes:
        verdicts: By (node, type, resource): the reason of a refusal, or empty.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._tables: dict[str, dict[str, bytes]] = {}
        for case in cases:
            for kind, body in case.resources().items():
                self._tables.setdefault(kind, {})[case.name] = body
        self.verdicts: dict[tuple[str, str, str], str] = {}
        self._lock = threading.Lock()
        handler = grpc.stream_stream_rpc_method_handler(self._stream)
        # A stream holds a thread, and C-core has a stream for each target.
        self._server = grpc.server(
            ThreadPoolExecutor(len(cases) + 4), options=(("grpc.so_reuseport", 0), ("grpc.enable_http_proxy", 0))
        )
        handlers = grpc.method_handlers_generic_handler(SERVICE, {"StreamAggregatedResources": handler})
        self._server.add_generic_rpc_handlers((handlers,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        node, count = "", 0
        subscribed: dict[str, set[str]] = {}
        sent: dict[tuple[str, str], list[str]] = {}
        for data in messages:
            request = message_class("envoy.service.discovery.v3.DiscoveryRequest").FromString(data)
            kind = request.type_url
            node = request.node.id or node
            reason = request.error_detail.message
            with self._lock:
                for name in sent.pop((kind, request.response_nonce), ()):
                    if not reason or len(subscribed[kind]) == 1 or f": {name}: " in reason:
                        self.verdicts[node, kind, name] = reason
                    else:
                        self.verdicts[node, kind, name] = ""
            wanted = set(request.resource_names)
            new, subscribed[kind] = wanted - subscribed.get(kind, set()), wanted
            if new:
                count += 1
                nonce = str(count)
                table = self._tables.get(kind, {})
                found = [name for name in sorted(wanted) if name in table]
                sent[kind, nonce] = found
                response = message_class("envoy.service.discovery.v3.DiscoveryResponse")(
                    type_url=kind, version_info="1", nonce=nonce
                )
                for name in found:
                    response.resources.add(type_url=kind, value=table[name])
                yield response.SerializeToString()


def bootstrap_for(address: str, node_id: str, *features: str, folder: Path) -> dict[str, Any]:
    """Return a bootstrap in gRPC's format, with a certificate provider whose files do not matter."""
    provider = {
        "plugin_name": "file_watcher",
        "config": {
            "certificate_file": str(folder / "none.pem"),
            "private_key_file": str(folder / "none.key"),
            "ca_certificate_file": str(folder / "none.pem"),
        },
    }
    creds = [{"type": "insecure"}]
    return {
        "xds_servers": [{"server_uri": address, "channel_creds": creds, "server_features": list(features)}],
        "node": {"id": node_id},
        "certificate_providers": {PROVIDER_INSTANCE: provider},
    }


def compare(cases: Sequence[Case], folder: Path) -> list[Disagreement]:
    """Send all cases to both clients and return those in which they do not agree.

    Raises:
        AssertionError: A client did not answer for a resource in time.
    """
    with Judge(cases) as judge:
        peer = _ask_grpc(judge, cases, folder)
        ours = ask_mesh(judge, cases, folder)
    pairs = ((case, peer[case.name], ours[case.name]) for case in cases)
    return [Disagreement(case.name, theirs, own) for case, theirs, own in pairs if bool(theirs) != bool(own)]


def _ask_grpc(judge: Judge, cases: Sequence[Case], folder: Path) -> Mapping[str, str]:
    node = "grpcio"
    with GrpcioClient(
        node, judge.address, folder, bootstrap=bootstrap_for(judge.address, node, folder=folder)
    ) as client:
        client.open([f"xds:///{case.name}" for case in cases])
        return verdicts_of(judge, node, cases)


def ask_mesh(judge: Judge, cases: Sequence[Case], folder: Path) -> Mapping[str, str]:
    """Return why meshlib refuses each case with gRPC's rules; empty: it is taken."""
    node = "meshlib"
    path = folder / "meshlib.json"
    path.write_text(json.dumps(bootstrap_for(judge.address, node, GRPC_RULES_FEATURE, folder=folder)))
    with Mesh(path, state_dir="") as mesh:
        # What `wait_ready` begins with, for all of them at once.
        mesh._running().watch(targets=frozenset(case.name for case in cases))
        return verdicts_of(judge, node, cases)


def verdicts_of(judge: Judge, node: str, cases: Sequence[Case]) -> Mapping[str, str]:
    """Wait for a client's answers to all cases; each is the reason of a refusal, or empty."""
    keys = {case.name: (node, case.type_url, case.name) for case in cases}
    missing: list[str] = []

    def answered() -> bool:
        missing[:] = [name for name, key in keys.items() if key not in judge.verdicts]
        return not missing

    try:
        poll(answered, f"{node} to answer for every resource", timeout_s=ANSWER_S)
    except AssertionError as error:
        raise AssertionError(f"{error}; missing: {missing[:20]}") from None
    return {name: judge.verdicts[key] for name, key in keys.items()}
