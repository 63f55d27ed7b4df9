"""An upstream behind mutual TLS."""

import ssl
from pathlib import Path

from peers.authority import Authority, Leaf
from peers.upstreams import HttpUpstream


class TlsUpstream(HttpUpstream):
    """An HTTP server that shows a certificate and demands one of the root's."""

    def __init__(self, version: str, folder: Path, leaf: Leaf, root: Authority) -> None:
        super().__init__(version)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (folder / "chain.pem").write_bytes(leaf.chain_pem)
        (folder / "key.pem").write_bytes(leaf.key_pem)
        context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
        context.load_verify_locations(cadata=root.pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
