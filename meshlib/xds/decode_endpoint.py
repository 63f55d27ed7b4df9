"""Endpoints (EDS, and inline in clusters).

The hot path of decoding: an assignment may hold ten thousand endpoints, so the constraints of its protos are checked
here by hand, and field paths are only made for errors.
"""

import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from meshlib.model.dialling import DEFAULT_ORDER, MAX_DIALS
from meshlib.model.endpoint import (
    NO_METADATA,
    ClusterLoadAssignment,
    DropOverload,
    Endpoint,
    HealthStatus,
    Locality,
    LocalityEndpoints,
)
from meshlib.model.health import CheckTarget
from meshlib.ports import Pause, no_pause
from meshlib.xds.decode_common import cover, is_discovered_by_ads, join, metadata, read_metadata
from meshlib.xds.decode_health_check import check_target
from meshlib.xds.decode_matcher import fraction
from meshlib.xds.names import is_collection, normal
from meshlib.xds.problems import Problems

__all__ = ["decode_assignment", "decode_member", "fast_address", "socket_address"]

MAX_WEIGHT_SUM: Final = 2**32 - 1
MAX_PRIORITY: Final = 128
MAX_MODE: Final = 0o777
MAX_PORT: Final = 65535
PAUSE_EVERY: Final = 64
"""Endpoints: about 0.2 ms."""
SOCKET_METADATA: Final = "envoy.transport_socket_match"

MAX_KNOWN: Final = 16384
"""Endpoints that are remembered by their bytes, some 250 bytes each."""
# An update repeats nearly all endpoints of the one before: those stay the same objects, at a seventh of the price, and the
# garbage collector has none of them to look at. Beyond the limit all are forgotten.
_KNOWN: Final[dict[bytes, Endpoint]] = {}

_HEALTH: Final = {status.value: status for status in HealthStatus}
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!$)|$)){4}")

_ASSIGNMENT_USED: Final = frozenset({"cluster_name", "endpoints", "policy"})
_ASSIGNMENT_HARMLESS: Final = frozenset({"named_endpoints"})  # only endpoint_name refers to them, which is refused
_LOCALITY_USED: Final = frozenset(
    {
        "locality",
        "lb_endpoints",
        "load_balancing_weight",
        "priority",
        "metadata",
        "load_balancer_endpoints",
        "leds_cluster_locality_config",
    }
)
_LOCALITY_HARMLESS: Final = frozenset({"proximity"})
_ENDPOINT_FIELDS: Final = frozenset({"endpoint", "health_status", "metadata", "load_balancing_weight"})
_HOST_USED: Final = frozenset({"address", "hostname", "health_check_config", "additional_addresses"})
_ADDITIONAL_USED: Final = frozenset({"address"})
_SOCKET_USED: Final = frozenset({"protocol", "address", "port_value"})
_SOCKET_HARMLESS: Final = frozenset({"ipv4_compat"})


class _Group:
    """What the entries of one locality and priority come to."""

    __slots__ = ("collections", "endpoints", "weight")

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self.weight: int | None = None
        self.collections: list[str] = []


class _Metadata:
    """Freezes endpoint metadata once per distinct value: most endpoints of an assignment share theirs."""

    def __init__(self) -> None:
        self._known: dict[bytes, Mapping[str, Mapping[str, Any]]] = {}

    def of(self, message: Any) -> Mapping[str, Mapping[str, Any]]:
        # Map entries have no order of their own, so only the deterministic form is a key.
        key = message.SerializeToString(deterministic=True)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = metadata(message)
        return found


def decode_assignment(
    message: Any,
    path: str,
    problems: Problems,
    *,
    allow_names: bool = False,
    keep_duplicates: bool = False,
    pause: Pause = no_pause,
) -> ClusterLoadAssignment:
    """Decode a ClusterLoadAssignment.

    Entries of the same locality and priority are put together. An address that stands in the resource twice is taken
    once, as Envoy does with EDS.

    Args:
        message: The message; its constraints need not have been checked.
        path: Its field path, empty for the resource itself.
        problems: Takes the errors.
        allow_names: Host names are addresses too (DNS clusters).
        keep_duplicates: Keep addresses that stand twice (Envoy does for STATIC clusters).
        pause: Called now and then on the way.
    """
    cover(message, path, problems, used=_ASSIGNMENT_USED, harmless=_ASSIGNMENT_HARMLESS)
    if not message.cluster_name:
        problems.error(join(path, "cluster_name"), "must not be empty")
    groups: dict[tuple[int, Locality], _Group] = {}
    seen: set[str] | None = None if keep_duplicates else set()
    shared = _Metadata()
    for index, entry in enumerate(message.endpoints):
        place = f"{join(path, 'endpoints')}[{index}]"
        _check_locality(entry, place, problems)
        place_of = entry.locality
        locality = _locality(place_of.region, place_of.zone, place_of.sub_zone)
        key = (entry.priority, locality)
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group()
        if entry.HasField("load_balancing_weight"):
            group.weight = entry.load_balancing_weight.value
        if path and entry.HasField("leds_cluster_locality_config"):
            problems.error(join(place, "leds_cluster_locality_config"), "is only supported in EDS")
        elif entry.HasField("leds_cluster_locality_config"):
            group.collections.append(_collection(entry, place, problems))
        elif entry.HasField("load_balancer_endpoints"):
            inner = join(place, "load_balancer_endpoints")
            _endpoints(
                entry.load_balancer_endpoints, inner, problems, group.endpoints, seen, shared, allow_names, pause
            )
        else:
            _endpoints(entry, place, problems, group.endpoints, seen, shared, allow_names, pause)
    _check_sums(groups, join(path, "endpoints"), problems)
    drops, factor = _policy(message, path, problems) if message.HasField("policy") else ((), NO_FACTOR)
    localities = [
        LocalityEndpoints(locality, tuple(group.endpoints), group.weight, priority, tuple(group.collections))
        for (priority, locality), group in groups.items()
    ]
    weighs_health: bool = message.policy.weighted_priority_health
    return ClusterLoadAssignment(message.cluster_name, tuple(localities), drops, factor, weighs_health)


def decode_member(message: Any, path: str, problems: Problems) -> Endpoint:
    """Decode an LbEndpoint that is a resource of its own (LEDS)."""
    return Endpoint(
        address=(address := _check_endpoint(message, path, problems, allow_names=False)),
        weight=message.load_balancing_weight.value or 1,
        health=_HEALTH.get(message.health_status, HealthStatus.UNKNOWN),
        hostname=message.endpoint.hostname,
        metadata=read_metadata(message.metadata, join(path, "metadata"), problems),
        check=_check_target(message.endpoint, join(path, "endpoint"), problems),
        dials=_dials(message.endpoint, address, join(path, "endpoint"), problems),
    )


def _collection(entry: Any, path: str, problems: Problems) -> str:
    place = join(path, "leds_cluster_locality_config")
    config = entry.leds_cluster_locality_config
    is_discovered_by_ads(config.leds_config, join(place, "leds_config"), problems)
    if entry.lb_endpoints:
        problems.error(join(path, "lb_endpoints"), "cannot be given together with leds_cluster_locality_config")
    name: str = config.leds_collection_name
    if not name.startswith("xdstp:") or not is_collection(name):
        problems.error(join(place, "leds_collection_name"), "must be an xdstp:// name that ends with /*")
        return name
    return normal(name)


def socket_address(message: Any, path: str, problems: Problems, *, allow_names: bool = False) -> str:
    """Decode an Address as `host:port`, `[v6]:port` or `unix:/path`."""
    kind = message.WhichOneof("address")
    if kind == "pipe":
        if not message.pipe.path:
            problems.error(join(path, "pipe.path"), "must not be empty")
        if "\0" in message.pipe.path:
            problems.error(join(path, "pipe.path"), "has a NUL")
        if message.pipe.mode > MAX_MODE:
            problems.error(join(path, "pipe.mode"), f"must be at most {MAX_MODE}")
        elif message.pipe.mode:
            problems.unused(join(path, "pipe.mode"), "who listens there has made it")
        return f"unix:{message.pipe.path}"
    if kind != "socket_address":
        problems.error(join(path, kind or "address"), "is not supported" if kind else "is required")
        return ""
    place = join(path, kind)
    socket = message.socket_address
    cover(socket, place, problems, used=_SOCKET_USED, harmless=_SOCKET_HARMLESS)
    if socket.protocol != 0:
        problems.error(join(place, "protocol"), "is not supported (only TCP)")
    if socket.WhichOneof("port_specifier") is None:
        problems.error(join(place, "port_value"), "is required")
    elif socket.port_value > MAX_PORT:
        problems.error(join(place, "port_value"), f"must be at most {MAX_PORT}")
    host = _canonical_host(socket.address)
    if host is None:
        if not socket.address:
            problems.error(join(place, "address"), "must not be empty")
        elif not allow_names or ":" in socket.address or "/" in socket.address:
            problems.error(join(place, "address"), f"{socket.address!r} is not an IP address")
        host = socket.address
    return f"{host}:{socket.port_value}"


@lru_cache(maxsize=16384)
def _canonical_host(address: str) -> str | None:
    """Return the canonical text of an IP address, IPv6 in brackets, or None."""
    if _IPV4.fullmatch(address):
        return address
    try:
        return f"[{ipaddress.IPv6Address(address)}]"
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def _locality(region: str, zone: str, sub_zone: str) -> Locality:
    """There are few, and every assignment names some."""
    return Locality(region, zone, sub_zone)


def _check_locality(entry: Any, path: str, problems: Problems) -> None:
    cover(entry, path, problems, used=_LOCALITY_USED, harmless=_LOCALITY_HARMLESS)
    if entry.HasField("load_balancing_weight") and not entry.load_balancing_weight.value:
        problems.error(join(path, "load_balancing_weight"), "must be at least 1")
    if entry.priority > MAX_PRIORITY:
        problems.error(join(path, "priority"), f"must be at most {MAX_PRIORITY}")
    if entry.HasField("metadata"):
        if SOCKET_METADATA in entry.metadata.filter_metadata:
            problems.error(f'{path}.metadata.filter_metadata["{SOCKET_METADATA}"]', "is not supported for localities")
        else:
            problems.unused(join(path, "metadata"))


def _endpoints(
    entry: Any,
    path: str,
    problems: Problems,
    into: list[Endpoint],
    seen: set[str] | None,
    shared: _Metadata,
    allow_names: bool,
    pause: Pause,
) -> None:
    append, known = into.append, _KNOWN
    for index, message in enumerate(entry.lb_endpoints):
        if not index % PAUSE_EVERY:
            pause()
        data = message.SerializeToString()
        endpoint = known.get(data)
        if endpoint is None or (allow_names and endpoint.dials):
            endpoint = _endpoint(message, data, f"{path}.lb_endpoints[{index}]", problems, shared, allow_names)
        if seen is not None:
            address = endpoint.address
            if address in seen:
                problems.unused(f"{path}.lb_endpoints[{index}]", f"{address} is there already")
                continue
            seen.add(address)
        append(endpoint)


def _endpoint(
    message: Any, data: bytes, path: str, problems: Problems, shared: _Metadata, allow_names: bool
) -> Endpoint:
    """Decode an LbEndpoint, and remember it if there is nothing to say about it.

    Args:
        data: The message's bytes.
    """
    host = message.endpoint
    address = fast_address(host.address)
    weight = 1
    health = _HEALTH.get(message.health_status)
    metadata = NO_METADATA
    if message.HasField("load_balancing_weight"):
        weight = message.load_balancing_weight.value
    is_usual = address is not None and weight and health is not None and not _is_unusual(host)
    if message.HasField("metadata"):
        metadata = shared.of(message.metadata)
        is_usual = is_usual and not message.metadata.typed_filter_metadata
    dials: tuple[str, ...] | None = ()
    if host.additional_addresses:
        dials = _fast_dials(host, address) if is_usual and not allow_names else None
        is_usual = is_usual and dials is not None
    # Everything that is out of the ordinary is looked at again, slowly, with the field's path at hand.
    if not is_usual:
        address = _check_endpoint(message, path, problems, allow_names)
    check = _check_target(host, f"{path}.endpoint", problems)
    if dials is None:
        # In DNS clusters they are not looked at.
        dials = () if allow_names else _dials(host, address or "", f"{path}.endpoint", problems)
    found = Endpoint(address or "", weight, health or HealthStatus.UNKNOWN, host.hostname, metadata, check, dials)
    if is_usual and check is None:
        if len(_KNOWN) >= MAX_KNOWN:
            _KNOWN.clear()
        _KNOWN[data] = found
    return found


def fast_address(message: Any) -> str | None:
    """Return the address of a plain TCP endpoint, or None if it needs a closer look."""
    socket = message.socket_address
    port = socket.port_value
    if not port or port > MAX_PORT or len(socket.ListFields()) > 2:
        return None
    host = _canonical_host(socket.address)
    return None if host is None else f"{host}:{port}"


def _is_unusual(host: Any) -> bool:
    return len(host.ListFields()) > 1 + bool(host.hostname) + bool(host.additional_addresses)


def _fast_dials(host: Any, address: str | None) -> tuple[str, ...] | None:
    """As `_dials`; None: they need a closer look."""
    found = [address]
    for other in host.additional_addresses:
        found.append(fast_address(other.address) if len(other.ListFields()) == 1 else None)
    every = tuple(dict.fromkeys(text for text in found if text is not None))
    return None if None in found or len(every) > MAX_DIALS else _in_order(every)


def _check_endpoint(message: Any, path: str, problems: Problems, allow_names: bool) -> str:
    cover(message, path, problems, used=_ENDPOINT_FIELDS, harmless=frozenset())
    if message.WhichOneof("host_identifier") is None:
        problems.error(join(path, "endpoint"), "is required")
    if message.HasField("load_balancing_weight") and not message.load_balancing_weight.value:
        problems.error(join(path, "load_balancing_weight"), "must be at least 1")
    if message.health_status not in _HEALTH:
        problems.error(join(path, "health_status"), f"unknown value {message.health_status}")
    if message.metadata.typed_filter_metadata:
        problems.unused(join(path, "metadata.typed_filter_metadata"))
    place = join(path, "endpoint")
    cover(message.endpoint, place, problems, used=_HOST_USED, harmless=frozenset())
    if allow_names and message.endpoint.additional_addresses:
        problems.unused(join(place, "additional_addresses"), "a name has the addresses that DNS knows")
    return socket_address(message.endpoint.address, join(place, "address"), problems, allow_names=allow_names)


def _dials(host: Any, address: str, path: str, problems: Problems) -> tuple[str, ...]:
    """Return all addresses of an endpoint in the order of a cluster that wants none of its own; empty: just the one."""
    if not host.additional_addresses:
        return ()
    others = []
    for index, other in enumerate(host.additional_addresses):
        here = f"{join(path, 'additional_addresses')}[{index}]"
        cover(other, here, problems, used=_ADDITIONAL_USED, harmless=frozenset())
        found = socket_address(other.address, f"{here}.address", problems)
        if found.startswith("unix:"):
            problems.unused(f"{here}.address.pipe", "only IP addresses are tried")
        else:
            others.append(found)
    if address.startswith("unix:"):
        problems.unused(join(path, "additional_addresses"), "a unix socket is tried alone")
        return ()
    every = tuple(dict.fromkeys((address, *others)))
    if len(every) > MAX_DIALS:
        problems.unused(join(path, "additional_addresses"), f"{len(every)} addresses; the first {MAX_DIALS} are tried")
    return _in_order(every[:MAX_DIALS])


def _in_order(addresses: tuple[str, ...]) -> tuple[str, ...]:
    return DEFAULT_ORDER.of(addresses) if len(addresses) > 1 else ()


def _check_target(host: Any, path: str, problems: Problems) -> CheckTarget | None:
    if not host.HasField("health_check_config"):
        return None
    place = join(path, "health_check_config")
    config, address = host.health_check_config, ""
    if config.HasField("address"):
        # Of a DNS cluster's endpoint too it has to be an IP address: nobody looks this one up.
        address = socket_address(config.address, join(place, "address"), problems)
    elif config.port_value and host.address.HasField("pipe"):
        problems.error(join(place, "port_value"), "is not for an address without a port")
    return check_target(config, place, problems, address)


def _check_sums(groups: Mapping[tuple[int, Locality], _Group], path: str, problems: Problems) -> None:
    locality_sums: dict[int, int] = {}
    endpoint_sums: dict[int, int] = {}
    for (priority, _), group in groups.items():
        locality_sums[priority] = locality_sums.get(priority, 0) + (group.weight or 0)
        weights = [endpoint.weight for endpoint in group.endpoints]
        endpoint_sums[priority] = endpoint_sums.get(priority, 0) + sum(weights)
    gap = next((place for place, priority in enumerate(sorted(locality_sums)) if place != priority), None)
    if gap is not None:
        # "Priorities should range from 0 (highest) to N (lowest) without skipping" (endpoint_components.proto).
        problems.error(path, f"priority {gap} is empty, but there are lower ones")
    for kind, sums in (("locality", locality_sums), ("endpoint", endpoint_sums)):
        for priority, total in sums.items():
            if total > MAX_WEIGHT_SUM:
                problems.error(path, f"the sum of {kind} weights of priority {priority} is more than {MAX_WEIGHT_SUM}")


NO_FACTOR: Final = 140
"""Per cent; Envoy's default of `overprovisioning_factor`."""
_POLICY_USED: Final = frozenset({"drop_overloads", "overprovisioning_factor", "weighted_priority_health"})


def _policy(message: Any, path: str, problems: Problems) -> tuple[tuple[DropOverload, ...], int]:
    policy, place = message.policy, join(path, "policy")
    cover(policy, place, problems, used=_POLICY_USED, harmless=frozenset())
    drops = []
    for index, overload in enumerate(policy.drop_overloads):
        here = f"{place}.drop_overloads[{index}]"
        if not overload.category:
            problems.error(join(here, "category"), "must not be empty")
        share = fraction(overload.drop_percentage, join(here, "drop_percentage"), problems)
        drops.append(DropOverload(overload.category, share.numerator, share.denominator))
    factor = NO_FACTOR
    if policy.HasField("overprovisioning_factor"):
        factor = policy.overprovisioning_factor.value
        if not factor:
            problems.error(join(place, "overprovisioning_factor"), "must be greater than 0")
    return tuple(drops), factor
