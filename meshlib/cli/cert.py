"""`meshctl cert`: the certificates of a process, of another one, or of files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import grpc

from meshlib.admin.certificates import (
    CertificateStatus,
    certificates_of_client_status,
    certificates_of_file,
)
from meshlib.errors import ConfigError, UnavailableError
from meshlib.mesh import Mesh
from meshlib.protos import message_class

__all__ = ["certificates", "expiring", "shown"]

_METHOD: Final = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"
_RESPONSE: Final = "envoy.service.status.v3.ClientStatusResponse"


def certificates(
    files: list[Path] | None, services: list[str] | None, csds: str, timeout_s: float
) -> tuple[CertificateStatus, ...]:
    """Return the certificates of files, else of the process that serves CSDS at an address, else of a mesh of our own.

    Raises:
        ConfigError: A file holds none, or the ways are mixed.
        UnavailableError: The other process does not answer.
    """
    if files:
        if csds or services:
            raise ConfigError("cert: give files, or --csds, or --service")
        return tuple(one for path in files for one in certificates_of_file(path))
    if csds:
        if services:
            raise ConfigError("cert: --service goes with a mesh of its own, not with --csds")
        return _of_process(csds, timeout_s)
    with Mesh.from_env() as mesh:
        mesh.start()
        if services:
            mesh.wait_ready(*services, timeout_s=timeout_s)
        return mesh.certificates()


def _of_process(address: str, timeout_s: float) -> tuple[CertificateStatus, ...]:
    with grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        fetch: Any = channel.unary_unary(_METHOD)
        try:
            data = fetch(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            raise UnavailableError(f"cert: CSDS at {address}: {error.code().name}: {error.details()}") from error
    return certificates_of_client_status(message_class(_RESPONSE).FromString(data))


def expiring(found: Iterable[CertificateStatus], within_s: float) -> tuple[CertificateStatus, ...]:
    """Return those that end within a time, or cannot be read."""
    return tuple(one for one in found if one.expires_in_s is None or one.expires_in_s < within_s)


def shown(found: tuple[CertificateStatus, ...], *, as_json: bool) -> str:
    """Return them as text, or as JSON."""
    if as_json:
        return json.dumps([one.to_dict() for one in found], indent=2)
    return "\n".join(map(str, found)) or "no certificates"
