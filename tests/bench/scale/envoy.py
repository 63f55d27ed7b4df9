"""The memory of an Envoy beside the process, with the same clusters."""

import os
import tempfile
from pathlib import Path
from typing import Any

from peers.envoy import TYPE, Envoy, find_envoy, socket_address, static_cluster

from scale.resources import ENDPOINTS, address

_MANAGER = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}


def _bootstrap(services: int, grpc_port: int, http_port: int) -> dict[str, Any]:
    names = [f"s{number}" for number in range(services)]
    clusters = [
        static_cluster(
            name,
            *(
                f"{address(number * ENDPOINTS + index)}:{http_port if number < services // 2 else grpc_port}"
                for index in range(ENDPOINTS)
            ),
        )
        for number, name in enumerate(names)
    ]
    hosts = [
        {"name": name, "domains": [name], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": name}}]}
        for name in names
    ]
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "outbound",
        "route_config": {"name": "outbound", "virtual_hosts": hosts},
        "http_filters": [_ROUTER],
    }
    listener = {
        "name": "outbound",
        "address": socket_address("127.0.0.1:0"),
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    return {"static_resources": {"clusters": clusters, "listeners": [listener]}}


def envoy_memory(services: int, grpc_port: int, http_port: int) -> dict[str, Any]:
    """Return how much memory an Envoy with these services holds, before any request; nothing without an Envoy."""
    try:
        find_envoy()
    except BaseException as error:  # pytest's, which is none of `Exception`
        print(f"without the memory of an Envoy: {error}")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        envoy = Envoy("envoy", _bootstrap(services, grpc_port, http_port), Path(folder))
        try:
            pages = int(Path(f"/proc/{envoy.process.pid}/statm").read_text().split()[1])
        finally:
            envoy.stop()
    return {"an Envoy beside it, MB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)}
