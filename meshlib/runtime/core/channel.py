"""Channels whose calls core carries out, in the sync and the aio form."""

import secrets
from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio

from meshlib.runtime.core.resources import LISTENER, bootstrap_json, fail_closed
from meshlib.runtime.own_channels import own_aio_channel, own_channel

__all__ = ["is_unsent", "new_node_id", "open_aio", "open_sync"]

Options = tuple[tuple[str, Any], ...]

_BOOTSTRAP: Final = "grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config"
"""Whatever its name says: the only way to a bootstrap that is not the whole process's. Core's own tests use it."""

CONNECT_TIMEOUT_MS: Final = 1000
"""Of one connection. It is the same for all clusters, so it is short: the relay takes over with the cluster's own."""


def new_node_id() -> str:
    """Return a name that nobody can guess: core writes it into its own errors, which tells them from a server's."""
    return f"meshlib-{secrets.token_hex(16)}"


def _target_options(
    server_uri: str, node_id: str, providers: Mapping[str, Mapping[str, str]], options: Options
) -> Options:
    return (
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.max_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        *options,
        (_BOOTSTRAP, bootstrap_json(server_uri, node_id, providers)),
        ("grpc.enable_http_proxy", 0),
    )


def open_sync(
    server_uri: str,
    node_id: str,
    providers: Mapping[str, Mapping[str, str]],
    options: Options = (),
    compression: grpc.Compression | None = None,
) -> grpc.Channel:
    """Make a channel; no I/O before the first call.

    Args:
        server_uri: Of the management server.
        node_id: By which that server knows the channel.
        providers: Fields of `file_watcher`, by instance name.
        options: The application's.
    """
    made = _target_options(server_uri, node_id, providers, options)
    return own_channel(f"xds:///{LISTENER}", fail_closed(), made, compression)


def open_aio(
    server_uri: str,
    node_id: str,
    providers: Mapping[str, Mapping[str, str]],
    options: Options = (),
    compression: grpc.Compression | None = None,
) -> grpc.aio.Channel:
    """As `open_sync`, for the running event loop."""
    made = _target_options(server_uri, node_id, providers, options)
    return own_aio_channel(f"xds:///{LISTENER}", fail_closed(), made, compression)


def is_unsent(error: Any, node_id: str) -> bool:
    """Whether core had no connection to send a call on: it knows no such endpoint, cannot reach it, or refused it.

    Source: the texts of grpcio 1.85; core adds the node's id to what its load balancing policies say.
    """
    return error.code() is grpc.StatusCode.UNAVAILABLE and f"(xDS node ID:{node_id})" in (error.details() or "")
