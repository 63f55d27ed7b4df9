"""The configuration of the scale rows, as protobuf messages in bytes: a thousand services of ten endpoints, and a big one.

Names: `all` is one listener whose thousand routes `/s<n>/` lead to the clusters `s<n>`; `s<n>` is a listener of its own
for each of them; `chosen` has the cluster named by the header `x-cluster`; `h<n>` is the same as `s<n>`, but over HTTP/1.1.
`big` has as many endpoints as it is told.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

from meshlib.protos import from_dict, message_class

LDS, RDS, CDS, EDS = (
    f"type.googleapis.com/envoy.config.{name}"
    for name in (
        "listener.v3.Listener",
        "route.v3.RouteConfiguration",
        "cluster.v3.Cluster",
        "endpoint.v3.ClusterLoadAssignment",
    )
)
CLUSTERS, ENDPOINTS, ADDRESSES = 1000, 10, 1000
HEADER = "x-cluster"
_TYPES = "type.googleapis.com/envoy.extensions.filters"
_ADS = {"ads": {}, "resource_api_version": "V3"}


def address(index: int) -> str:
    """Return one of the addresses that the servers listen on."""
    index %= ADDRESSES
    return f"127.0.{index // 250 + 1}.{index % 250 + 1}"


def _bytes(kind: str, value: dict[str, Any]) -> bytes:
    data: bytes = from_dict(kind.rpartition("/")[2], value).SerializeToString()
    return data


def _listener(name: str, routes: list[dict[str, Any]] | None, *, on_demand: bool = False) -> bytes:
    """Return a client's listener; None: its routes come by RDS, under its own name."""
    filters = ["on_demand.v3.OnDemand", "router.v3.Router"] if on_demand else ["router.v3.Router"]
    manager: dict[str, Any] = {
        "@type": f"{_TYPES}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [
            {
                "name": f"envoy.filters.http.{kind.partition('.')[0]}",
                "typed_config": {
                    "@type": f"{_TYPES}.http.{kind}",
                    **({"odcds": {"source": _ADS}} if on_demand and kind.startswith("on_demand") else {}),
                },
            }
            for kind in filters
        ],
    }
    if routes is None:
        manager["rds"] = {"config_source": _ADS, "route_config_name": name}
    else:
        manager["route_config"] = _routes(name, routes)
    return _bytes(LDS, {"name": name, "api_listener": {"api_listener": manager}})


def _routes(name: str, routes: list[dict[str, Any]]) -> dict[str, Any]:
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def _cluster(name: str) -> bytes:
    return _bytes(
        CDS, {"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": _ADS}, "connect_timeout": "5s"}
    )


@cache
def _assignment_class() -> Any:
    return message_class(EDS.rpartition("/")[2])


def endpoints(name: str, addresses: Iterable[tuple[str, int, int]]) -> bytes:
    """Return an assignment of one locality.

    Args:
        addresses: Host, port and weight of each endpoint.
    """
    message = _assignment_class()(cluster_name=name)
    locality = message.endpoints.add()
    locality.locality.zone = "a"
    locality.load_balancing_weight.value = 1
    for host, port, weight in addresses:
        entry = locality.lb_endpoints.add()
        entry.endpoint.address.socket_address.address = host
        entry.endpoint.address.socket_address.port_value = port
        entry.load_balancing_weight.value = weight
    data: bytes = message.SerializeToString()
    return data


def small(name: str, port: int, weight: int = 1) -> bytes:
    """Return the ten endpoints of a service; the first one has the weight."""
    first = int(name[1:]) * ENDPOINTS
    return endpoints(name, ((address(first + index), port, 1 if index else weight) for index in range(ENDPOINTS)))


def big(count: int, port: int, generation: int) -> bytes:
    """Return so many endpoints, of which the first, with a weight of its own each time, can be called."""
    others = ((f"10.{index >> 16}.{(index >> 8) & 255}.{index & 255}", 80, 1) for index in range(1, count))
    return endpoints("big", ((address(0), port, 2 + generation % 7), *others))


def world(grpc_port: int, http_port: int, clusters: int = CLUSTERS) -> dict[str, dict[str, bytes]]:
    """Return all resources, by type URL and name."""
    services = [f"s{number}" for number in range(clusters)]
    web = [f"h{number}" for number in range(100)]

    def to(name: str) -> list[dict[str, Any]]:
        return [{"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "10s"}}]

    chosen = [{"match": {"prefix": "/"}, "route": {"cluster_header": HEADER}}]
    every = [{"match": {"prefix": f"/{name}/"}, "route": {"cluster": name, "timeout": "10s"}} for name in services]
    return {
        LDS: {
            **{name: _listener(name, to(name)) for name in (*services, *web, "big")},
            "all": _listener("all", None),
            "chosen": _listener("chosen", chosen, on_demand=True),
        },
        RDS: {"all": _bytes(RDS, _routes("all", every))},
        CDS: {name: _cluster(name) for name in (*services, *web, "big")},
        EDS: {
            **{name: small(name, grpc_port) for name in services},
            **{name: small(name, http_port) for name in web},
            "big": big(10, http_port, 0),
        },
    }
