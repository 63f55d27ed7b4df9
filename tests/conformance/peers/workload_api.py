"""A SPIFFE Workload API as an agent serves it: the real protocol, over a unix socket."""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificates, load_pem_x509_crl

from peers.authority import Authority, Leaf


class WorkloadApi:
    """Attributes:
    metadata: Of every stream: agents refuse those without `workload.spiffe.io`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "api.sock"
        self.address = f"unix://{self.path}"
        self.metadata: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self._response: Any = None
        self._streams: set[queue.SimpleQueue[Any]] = set()
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        from spiffe._proto import workload_pb2_grpc

        api = self

        class Servicer(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
            def FetchX509SVID(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                return api._stream(context)

        self._server = grpc.server(ThreadPoolExecutor(8))
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(Servicer(), self._server)
        self._server.add_insecure_port(f"unix:{self.path}")
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        assert self._server is not None
        self._server.stop(0).wait()

    def _stream(self, context: grpc.ServicerContext) -> Iterator[Any]:
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            self.metadata.append({key: str(value) for key, value in context.invocation_metadata()})
            self._streams.add(news)
            if self._response is not None:
                news.put(self._response)
        context.add_callback(lambda: news.put(None))
        while (response := news.get()) is not None:
            yield response
        with self._lock:
            self._streams.discard(news)

    def serve(
        self,
        trust_domain: str,
        leaf: Leaf,
        roots: Mapping[str, list[Authority]],
        *others: tuple[str, Leaf],
        crls: Sequence[bytes] = (),
        raw_crls: Sequence[bytes] = (),
    ) -> None:
        """Push identities and bundles.

        Args:
            trust_domain: Of the identity; the other domains in `roots` are federated ones.
            others: Further identities of the same domain, with their ids.
            crls: Revocation lists, as PEM.
            raw_crls: More of them, sent as they are.
        """
        from spiffe._proto import workload_pb2

        bundles = {name: b"".join(_der(one.pem) for one in found) for name, found in roots.items()}
        own = bundles.pop(trust_domain)
        first = next(uri for uri in _uris(leaf))
        svids = [
            workload_pb2.X509SVID(
                spiffe_id=uri, x509_svid=_der(one.chain_pem), x509_svid_key=_pkcs8(one.key_pem), bundle=own
            )
            for uri, one in ((first, leaf), *others)
        ]
        federated = {f"spiffe://{name}": bundle for name, bundle in bundles.items()}
        response = workload_pb2.X509SVIDResponse(
            svids=svids,
            federated_bundles=federated,
            crl=[*(load_pem_x509_crl(one).public_bytes(Encoding.DER) for one in crls), *raw_crls],
        )
        with self._lock:
            self._response = response
            for news in self._streams:
                news.put(response)

    def cut(self) -> None:
        """End all streams."""
        with self._lock:
            for news in self._streams:
                news.put(None)


def _uris(leaf: Leaf) -> list[str]:
    from cryptography import x509

    names = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


def _der(pem: bytes) -> bytes:
    return b"".join(one.public_bytes(Encoding.DER) for one in load_pem_x509_certificates(pem))


def _pkcs8(pem: bytes) -> bytes:
    return load_pem_private_key(pem, None).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
