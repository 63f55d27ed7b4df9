"""Channels to management servers: their credentials, read from files anew for every stream.

So `refresh_interval` is kept whatever it is: no connection is begun with files as they were before it, and one that is
up needs them no more. Files that cannot be used, as in the middle of a replacement, leave those before in use.
"""

import base64
import binascii
import json
import logging
from dataclasses import dataclass
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import grpc

from meshlib.errors import ConfigError
from meshlib.ports import WallClock
from meshlib.runtime.certificate_files import check_pair
from meshlib.runtime.own_channels import own_channel
from meshlib.xds.bootstrap import GoogleDefaultCreds, InsecureCreds, ServerConfig, TlsCreds

__all__ = ["TlsFiles", "authorization", "is_local", "open_channel", "read_token"]

_LOG = logging.getLogger(__name__)

KEEPALIVE_S: Final = 300
"""C-core's and grpc-go's for management servers."""
KEEPALIVE_TIMEOUT_S: Final = 20

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # a full CDS answer of a large mesh has tens of megabytes
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    # C-core waits a minute for the answer to a ping whatever the timeout above says.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    # gRPC holds pings back that no data came between, and a stream without news has none: then nobody would notice.
    ("grpc.http2.max_pings_without_data", 0),
    # The waits between attempts are ours: each attempt gets a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


def is_local(uri: str) -> bool:
    """Whether a gRPC target stays on this machine: a unix socket or a loopback address."""
    if uri.startswith(("unix:", "unix-abstract:")):
        return True
    host = uri.rpartition("/")[2].rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class _Material:
    """PEM. None: the system's roots; no certificate."""

    roots: bytes | None
    key: bytes | None = None
    chain: bytes | None = None


class TlsFiles:
    """What the files of `tls` credentials held when they could be used last. Streams of several threads share it."""

    def __init__(self) -> None:
        self._good: dict[TlsCreds, _Material] = {}

    def read(self, config: TlsCreds) -> _Material:
        """Return what they hold now; if that is of no use, what they held before.

        Raises:
            ConfigError: They have never been of use.
        """
        try:
            found = _read_material(config)
        except ConfigError as error:
            kept = self._good.get(config)
            if kept is None:
                raise
            _LOG.warning("%s; the credentials before stay in use", error)
            return kept
        self._good[config] = found
        return found


def open_channel(server: ServerConfig, files: TlsFiles) -> grpc.Channel:
    """Open a channel with the server's credentials.

    Args:
        files: Of the same mesh.

    Raises:
        ConfigError: A file of the credentials cannot be read, or a library for them is missing.
    """
    options: tuple[tuple[str, int], ...] = _OPTIONS
    if is_local(server.uri):
        options = (*options, ("grpc.enable_http_proxy", 0))
    match server.channel_creds:
        case InsecureCreds():
            if server.call_creds and not is_local(server.uri):
                raise ConfigError(f"a bearer token may not go to {server.uri} in the clear; use channel_creds tls")
            return own_channel(server.uri, None, options)
        case TlsCreds() as tls:
            return own_channel(server.uri, _tls(files.read(tls)), options)
        case GoogleDefaultCreds():
            return own_channel(server.uri, _google(), options)


def authorization(server: ServerConfig, wall_clock: WallClock) -> tuple[tuple[str, str], ...]:
    """Return the metadata that proves who we are.

    Raises:
        ConfigError: The token cannot be read or has expired.
    """
    return tuple(
        ("authorization", f"Bearer {read_token(credentials.path, wall_clock())}") for credentials in server.call_creds
    )


def read_token(path: str, wall: float) -> str:
    """Return the bearer token in a file.

    Args:
        path: The file is rewritten by whoever issues tokens, so it is read each time.
        wall: Seconds since the epoch.

    Raises:
        ConfigError: The file cannot be read, holds no token, or one that has expired. Never with the token in the text.
    """
    token = _read(path, "token").decode("ascii", "replace").strip()
    parts = token.split(".")
    if len(parts) != 3 or not token.isprintable() or any(character.isspace() for character in token):
        raise ConfigError(f"token file {path} does not hold a JWT")
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error):
        raise ConfigError(f"token file {path} does not hold a JWT") from None
    expires = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expires, int | float) and expires <= wall:
        raise ConfigError(f"the token in {path} expired {int(wall - expires)} s ago; write a new one there")
    return token


def _tls(material: _Material) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(material.roots, material.key, material.chain)


def _read_material(config: TlsCreds) -> _Material:
    roots = None
    if config.ca_certificate_file:
        roots = _read(config.ca_certificate_file, "ca_certificate_file")
        # Not parsed: of the system's many roots one may be odd, and it is gRPC that has to read them.
        if b"-----BEGIN " not in roots or b"-----END " not in roots:
            raise ConfigError(f"ca_certificate_file {config.ca_certificate_file} holds no PEM certificates")
    if not config.certificate_file:
        return _Material(roots)
    chain, key = _read(config.certificate_file, "certificate_file"), _read(config.private_key_file, "private_key_file")
    check_pair(f"{config.certificate_file}, {config.private_key_file}", chain, key)
    return _Material(roots, key, chain)


def _google() -> grpc.ChannelCredentials:
    # By name: the packages are optional, and have no types.
    try:
        auth = import_module("google.auth")
        plugins = import_module("google.auth.transport.grpc")
        requests = import_module("google.auth.transport.requests")
    except ImportError:
        raise ConfigError("channel_creds google_default needs the packages google-auth and requests") from None
    try:
        credentials, _ = auth.default(scopes=("https://www.googleapis.com/auth/cloud-platform",))
    except auth.exceptions.GoogleAuthError as error:
        raise ConfigError(f"channel_creds google_default: {error}") from error
    plugin = plugins.AuthMetadataPlugin(credentials, requests.Request())
    return grpc.composite_channel_credentials(grpc.ssl_channel_credentials(), grpc.metadata_call_credentials(plugin))


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror or error}") from error
