"""Bootstraps for clients of this server, in gRPC's format; `meshlib` reads one key more."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

LISTENER_TEMPLATE = "xds.istio.io/grpc/lds/inbound/%s"


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What the bootstraps of one client have in common.

    Attributes:
        admin: `host:port` of the server's HTTP side, where instances register.
        locality: Region, zone and sub-zone of the client; empty ones are not known.
    """

    node_id: str
    cluster: str
    admin: str
    locality: tuple[str, str, str] = ("", "", "")

    def plaintext(self, address: str) -> dict[str, Any]:
        """Return a bootstrap for the plaintext listener."""
        return self._document({"server_uri": address, "channel_creds": [{"type": "insecure"}]})

    def secure(self, address: str, root: Path, token_file: Path | None) -> dict[str, Any]:
        """Return a bootstrap for the secure listener; paths in it are absolute."""
        server: dict[str, Any] = {
            "server_uri": address,
            "channel_creds": [{"type": "tls", "config": {"ca_certificate_file": str(root.absolute())}}],
        }
        if token_file is not None:
            config = {"jwt_token_file": str(token_file.absolute())}
            server["call_creds"] = [{"type": "jwt_token_file", "config": config}]
        return self._document(server)

    def _document(self, server: dict[str, Any]) -> dict[str, Any]:
        node: dict[str, Any] = {"id": self.node_id, "cluster": self.cluster}
        if any(self.locality):
            named = zip(("region", "zone", "sub_zone"), self.locality, strict=True)
            node["locality"] = {name: part for name, part in named if part}
        return {
            "xds_servers": [{**server, "server_features": ["xds_v3"]}],
            "node": node,
            "server_listener_resource_name_template": LISTENER_TEMPLATE,
            "meshlib": {"registry_uri": f"http://{self.admin}"},
        }
