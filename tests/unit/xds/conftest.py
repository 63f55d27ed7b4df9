from collections.abc import Callable
from typing import Any

import pytest
import trustme

from meshlib.protos import from_dict
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS

TYPES = {"LDS": LDS, "RDS": RDS, "CDS": CDS, "EDS": EDS, "SDS": SDS}
FILTERS = "envoy.extensions.filters."
ROUTER = {"name": "router", "typed_config": {"@type": f"type.googleapis.com/{FILTERS}http.router.v3.Router"}}
Decode = Callable[[str, dict[str, Any]], Decoded]


@pytest.fixture
def decode() -> Decode:
    """Decode a resource that is given as proto JSON."""

    def run(kind: str, data: dict[str, Any]) -> Decoded:
        message = from_dict(TYPES[kind].rpartition("/")[2], data)
        return decode_resource(TYPES[kind], message.SerializeToString())

    return run


@pytest.fixture
def packed() -> Callable[..., dict[str, Any]]:
    """Write an Any as proto JSON."""

    def make(full_name: str, **fields: Any) -> dict[str, Any]:
        return {"@type": f"type.googleapis.com/{full_name}", **fields}

    return make


@pytest.fixture
def decode_host(decode: Decode) -> Callable[..., Decoded]:
    """Decode a route configuration of one virtual host with the given fields."""

    def run(config: dict[str, Any] | None = None, **fields: Any) -> Decoded:
        host = {"name": "vh", "domains": ["*"], **fields}
        return decode("RDS", {"name": "rc", "virtual_hosts": [host], **(config or {})})

    return run


@pytest.fixture
def decode_route(decode_host: Callable[..., Decoded]) -> Callable[..., Decoded]:
    """Decode a route configuration of one route; without other fields it goes to cluster `c`."""

    def run(action: dict[str, Any] | None = None, **fields: Any) -> Decoded:
        route: dict[str, Any] = {"match": {"prefix": "/"}, **fields}
        if not route.keys() & {"redirect", "direct_response", "non_forwarding_action", "filter_action"}:
            route["route"] = {"cluster": "c", **(action or {})}
            if route["route"].keys() & {"weighted_clusters", "cluster_header", "cluster_specifier_plugin"}:
                route["route"].pop("cluster")
        return decode_host(routes=[route])

    return run


@pytest.fixture
def decode_cluster(decode: Decode) -> Callable[..., Decoded]:
    """Decode an EDS cluster named `c` with the given fields."""

    def run(**fields: Any) -> Decoded:
        base = {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}
        return decode("CDS", {**base, **fields})

    return run


@pytest.fixture
def decode_client(decode: Decode, packed: Callable[..., dict[str, Any]]) -> Callable[..., Decoded]:
    """Decode an API listener whose connection manager has the given fields and filters before the router."""

    def run(*filters: dict[str, Any], **fields: Any) -> Decoded:
        manager = {
            "rds": {"route_config_name": "rc", "config_source": {"ads": {}}},
            "http_filters": [*filters, ROUTER],
            **fields,
        }
        if "route_config" in manager or "scoped_routes" in manager:
            manager.pop("rds")
        manager = packed(f"{FILTERS}network.http_connection_manager.v3.HttpConnectionManager", **manager)
        return decode("LDS", {"name": "checkout", "api_listener": {"api_listener": manager}})

    return run


@pytest.fixture
def decode_server(decode: Decode, packed: Callable[..., dict[str, Any]]) -> Callable[..., Decoded]:
    """Decode a socket listener; `chain` and `listener` change those messages, `fields` the connection manager."""

    def run(
        *filters: dict[str, Any],
        chain: dict[str, Any] | None = None,
        listener: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Decoded:
        manager = {"route_config": {"name": "inbound"}, "http_filters": [*filters, ROUTER], **fields}
        if "rds" in manager:
            manager.pop("route_config")
        manager = packed(f"{FILTERS}network.http_connection_manager.v3.HttpConnectionManager", **manager)
        filter_chain = {"filters": [{"name": "hcm", "typed_config": manager}], **(chain or {})}
        address = {"socket_address": {"address": "10.0.0.1", "port_value": 8080}}
        base = {"name": "inbound", "address": address, "filter_chains": [filter_chain]}
        return decode("LDS", {**base, **(listener or {})})

    return run


@pytest.fixture(scope="session")
def issued() -> tuple[bytes, bytes, bytes]:
    """Return a root, a leaf chain and its private key as PEM."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert("checkout.example")
    return (
        authority.cert_pem.bytes(),
        b"".join(blob.bytes() for blob in leaf.cert_chain_pems),
        leaf.private_key_pem.bytes(),
    )


@pytest.fixture(scope="session")
def root_pem(issued: tuple[bytes, bytes, bytes]) -> bytes:
    return issued[0]
