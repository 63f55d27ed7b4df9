"""The profile of validation of gRPC's own clients: what they refuse although Envoy takes it.

The ordinary decoder has Envoy's rules. With a server of the feature `meshlib.validation_grpc` these are asked too, of
the same message, after it; a resource is in use only if it passes both. They refuse and change nothing: what gRPC passes
over without a refusal (a locality without weight, a route with conditions on queries) does here what it does in Envoy.
Where gRPC's languages differ, what C-core or Go refuses is refused, except policies and fields that only one of them
lacks (`least_request`). `tests/conformance/test_grpc_profile.py` compares with C-core, and lists what stays different.

Source: gRFCs A27, A28, A29, A36, A37, A39, A41, A42, A44, A52; C-core 1.85 and grpc-go, their xDS parsers.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from meshlib.ports import Pause, no_pause
from meshlib.xds.decode_common import any_type, is_typed_struct, join, unpack
from meshlib.xds.decode_endpoint import PAUSE_EVERY, fast_address, socket_address
from meshlib.xds.decode_fault import FAULT_TYPE
from meshlib.xds.decode_filters import ROUTER_TYPE
from meshlib.xds.decode_listener import HCM_TYPE
from meshlib.xds.decode_rbac import RBAC_TYPE
from meshlib.xds.decode_session import SESSION_TYPE
from meshlib.xds.grpc_rules_cluster import check_cluster
from meshlib.xds.grpc_rules_route import check_routes, check_virtual_host
from meshlib.xds.grpc_rules_security import check_rbac, check_server_socket
from meshlib.xds.problems import Problems
from meshlib.xds.resources import CDS, EDS, LDS, RDS, VHDS

__all__ = ["check_grpc_rules"]

_CLIENT_FILTERS: Final = frozenset({ROUTER_TYPE, FAULT_TYPE, SESSION_TYPE})
_SERVER_FILTERS: Final = frozenset({ROUTER_TYPE, RBAC_TYPE})


def check_grpc_rules(
    type_url: str, message: Any, problems: Problems, pause: Pause = no_pause, providers: frozenset[str] | None = None
) -> None:
    """Report what gRPC's clients refuse in a resource; of types that they do not know, nothing.

    Args:
        type_url: Of the resource.
        message: The resource.
        problems: Takes the errors, beside those of the ordinary decoder.
        pause: Called now and then while there are many endpoints.
        providers: Names of the bootstrap's certificate providers; None: any will do.
    """
    if type_url == EDS:
        _check_assignment(message, problems, pause)
    elif type_url == LDS:
        _check_listener(message, "", problems, providers)
    elif type_url == CDS:
        check_cluster(message, "", problems, providers)
    elif (check := _CHECKS.get(type_url)) is not None:
        check(message, "", problems)


# Listeners.


def _check_listener(message: Any, path: str, problems: Problems, providers: frozenset[str] | None) -> None:
    if message.HasField("api_listener"):
        place = join(path, "api_listener.api_listener")
        _check_manager(message.api_listener.api_listener, place, problems, is_server=False)
        return
    chains = [(chain, f"{join(path, 'filter_chains')}[{i}]") for i, chain in enumerate(message.filter_chains)]
    if message.HasField("default_filter_chain"):
        chains.append((message.default_filter_chain, join(path, "default_filter_chain")))
    for chain, place in chains:
        if chain.HasField("transport_socket"):
            check_server_socket(chain.transport_socket, join(place, "transport_socket"), problems, providers)
        for index, item in enumerate(chain.filters):
            _check_manager(item.typed_config, f"{place}.filters[{index}].typed_config", problems, is_server=True)
    if message.HasField("address") and message.address.WhichOneof("address") == "pipe":
        problems.error(join(path, "address.pipe"), "must be a socket_address for gRPC")


def _check_manager(packed: Any, path: str, problems: Problems, *, is_server: bool) -> None:
    if any_type(packed) != HCM_TYPE:
        return
    # What is wrong with the message itself has been reported by the decoder.
    manager = unpack(packed, path, Problems())
    if manager is None:
        return
    if manager.WhichOneof("route_specifier") == "scoped_routes":
        problems.error(join(path, "scoped_routes"), "is not supported by gRPC (only rds and route_config)")
    elif manager.HasField("route_config"):
        check_routes(manager.route_config, join(path, "route_config"), problems)
    known = _SERVER_FILTERS if is_server else _CLIENT_FILTERS
    for index, item in enumerate(manager.http_filters):
        place = f"{join(path, 'http_filters')}[{index}]"
        if item.HasField("config_discovery"):
            problems.error(join(place, "config_discovery"), "is not supported by gRPC (typed_config is required)")
        elif item.HasField("typed_config"):
            kind = any_type(item.typed_config)
            if kind not in known and not item.is_optional:
                side = "servers" if is_server else "clients"
                problems.error(join(place, "typed_config"), f"{kind} is not a filter of gRPC's {side}, nor optional")
            elif is_typed_struct(item.typed_config) and kind in known:
                problems.error(join(place, "typed_config"), f"must be {kind} itself for gRPC, not a TypedStruct of it")
            elif kind == RBAC_TYPE and is_server:
                check_rbac(item.typed_config, join(place, "typed_config"), problems)


# Endpoints.


def _check_assignment(message: Any, problems: Problems, pause: Pause) -> None:
    """Check an assignment. Localities without weight are not used by gRPC, and not looked at."""
    localities: set[tuple[int, str, str, str]] = set()
    priorities: set[int] = set()
    addresses: set[str] = set()
    for index, entry in enumerate(message.endpoints):
        place = f"endpoints[{index}]"
        if not entry.HasField("locality"):
            problems.error(join(place, "locality"), "is required for gRPC")
        if not entry.load_balancing_weight.value:
            continue
        priorities.add(entry.priority)
        name = (entry.priority, entry.locality.region, entry.locality.zone, entry.locality.sub_zone)
        if name in localities:
            problems.error(join(place, "locality"), f"stands in priority {entry.priority} already")
        localities.add(name)
        _check_endpoints(entry, place, addresses, problems, pause)
    gap = next((number for number, priority in enumerate(sorted(priorities)) if number != priority), None)
    if gap is not None:
        problems.error("endpoints", f"priority {gap} has no locality with a weight, but there are lower ones")
    for index, drop in enumerate(message.policy.drop_overloads):
        if not drop.HasField("drop_percentage"):
            problems.error(f"policy.drop_overloads[{index}].drop_percentage", "is required for gRPC")


def _check_endpoints(entry: Any, path: str, addresses: set[str], problems: Problems, pause: Pause) -> None:
    for index, item in enumerate(entry.lb_endpoints):
        if not index % PAUSE_EVERY:
            pause()
        place = f"{path}.lb_endpoints[{index}].endpoint"
        _check_address(item.endpoint.address, place, "address", addresses, problems)
        for other, more in enumerate(item.endpoint.additional_addresses):
            where = f"additional_addresses[{other}].address"
            _check_address(more.address, place, where, addresses, problems, is_checked=False)


def _check_address(
    address: Any, path: str, field: str, addresses: set[str], problems: Problems, *, is_checked: bool = True
) -> None:
    """Check that an address is of a socket and nowhere else.

    Args:
        is_checked: The ordinary decoder has said what is wrong with it as an address.
    """
    text = fast_address(address)
    if text is None:
        place = join(path, field)
        if address.WhichOneof("address") == "pipe":
            problems.error(join(place, "pipe"), "must be a socket_address for gRPC")
            is_checked = True
        text = socket_address(address, place, Problems() if is_checked else problems)
    if text in addresses:
        problems.error(join(path, field), f"{text} is there already")
    addresses.add(text)


_CHECKS: Final[Mapping[str, Callable[[Any, str, Problems], None]]] = MappingProxyType(
    {RDS: check_routes, VHDS: check_virtual_host}
)
