"""A gRPC server's own certificate: followed as it changes, and never used when it cannot be."""

import socket
import ssl
from concurrent import futures
from typing import Any

import grpc
import pytest

from meshlib.errors import IdentityError
from meshlib.model.secret import Secret, SecretRef, ServerTls, TlsCertificate
from meshlib.servers.grpc_certificates import GrpcCertificates

TLS = ServerTls(SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA"), require_client_certificate=True)
SERVER = "spiffe://cluster.local/ns/default/sa/checkout"
CLIENT = "spiffe://cluster.local/ns/default/sa/orders"


def serial_shown(port: int, authority: Any, mine: Secret, tmp_path: Any) -> bytes | None:
    """Shake hands as a client of the mesh; the certificate shown, or None when the server is not to be trusted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=authority.pem.decode())
    assert isinstance(mine.value, TlsCertificate)
    pair = tmp_path / "client.pem"
    pair.write_bytes(mine.value.chain_pem + mine.value.key_pem)
    pair.chmod(0o600)
    context.load_cert_chain(pair)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        try:
            with context.wrap_socket(raw) as tls:
                return tls.getpeercert(binary_form=True)
        except ssl.SSLError:
            return None


def test_handshakes_follow_the_secrets_and_stop_without_them(authority: Any, tmp_path: Any) -> None:
    one, two, mine = authority.issue(SERVER), authority.issue(SERVER), authority.issue(CLIENT)
    secrets = {"default": one, "ROOTCA": authority.root}
    certificates = GrpcCertificates(TLS, lambda: secrets)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", certificates.credentials())
    server.start()
    try:
        first = serial_shown(port, authority, mine, tmp_path)
        secrets["default"] = two
        second = serial_shown(port, authority, mine, tmp_path)
        assert None not in (first, second)
        assert first != second
        del secrets["default"]
        assert [None, None] == [serial_shown(port, authority, mine, tmp_path) for _ in range(2)]
        secrets["default"] = two
        assert second == serial_shown(port, authority, mine, tmp_path)
    finally:
        server.stop(None).wait()


def test_a_server_does_not_start_without_a_certificate(authority: Any) -> None:
    with pytest.raises(IdentityError):
        GrpcCertificates(TLS, lambda: {"ROOTCA": authority.root})
