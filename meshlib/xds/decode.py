"""From the bytes of a resource to a value of the model, or to the reasons why not.

This is the one place where resources are validated: what leaves it can be used without further checks. The profile is
Envoy's: accepted is what Envoy accepts and refused what Envoy refuses. A field that the model cannot express is refused
by name if ignoring it would change a decision, and reported as unused if not. With the profile of gRPC, which is chosen
by server, what gRPC's clients refuse is refused too (`grpc_rules.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import DecodeError

from meshlib.model.cluster import Cluster
from meshlib.model.discovery import FilterConfig, RuntimeLayer, ScopedRoute
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint
from meshlib.model.listener import Listener
from meshlib.model.route import RouteConfiguration, VirtualHost
from meshlib.model.secret import Secret
from meshlib.ports import Pause, no_pause
from meshlib.protos import message_class
from meshlib.xds.constraints import check_constraints
from meshlib.xds.decode_cluster import decode_cluster
from meshlib.xds.decode_common import report_unknown
from meshlib.xds.decode_endpoint import decode_assignment, decode_member
from meshlib.xds.decode_filters import decode_filter_config
from meshlib.xds.decode_listener import decode_listener
from meshlib.xds.decode_route import decode_route_configuration, decode_virtual_host
from meshlib.xds.decode_runtime import decode_runtime
from meshlib.xds.decode_scopes import decode_scope
from meshlib.xds.decode_secret import decode_secret
from meshlib.xds.grpc_rules import check_grpc_rules
from meshlib.xds.problems import Problems
from meshlib.xds.resources import CDS, ECDS, EDS, LDS, LEDS, RDS, RESOURCE_WRAPPER, RTDS, SDS, SRDS, VHDS
from meshlib.xds.wire import peek_name

__all__ = ["Decoded", "Resource", "decode_resource", "unwrap"]

Resource = (
    Listener
    | RouteConfiguration
    | ScopedRoute
    | VirtualHost
    | Cluster
    | ClusterLoadAssignment
    | Endpoint
    | Secret
    | FilterConfig
    | RuntimeLayer
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of one resource.

    Attributes:
        name: Its name; empty when not even that could be read, and of types whose name is not in their bytes.
        value: None if and only if there are errors.
        errors: Each as `field.path[0]: reason`; all that were found.
        unused: Each as `field.path` or `field.path: reason`: fields without an effect here.
    """

    name: str
    value: Resource | None
    errors: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Kind:
    """Attributes:
    name_field: Empty: the name stands outside of the resource.
    has_fast_checks: The decoder checks the constraints of the proto itself.
    """

    name_field: str
    decode: Callable[[Any, str, Problems], Resource]
    has_fast_checks: bool = False


_KINDS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        LDS: _Kind("name", decode_listener),
        RDS: _Kind("name", decode_route_configuration),
        CDS: _Kind("name", decode_cluster),
        EDS: _Kind("cluster_name", decode_assignment, has_fast_checks=True),
        SDS: _Kind("name", decode_secret),
        SRDS: _Kind("name", decode_scope),
        VHDS: _Kind("", decode_virtual_host),
        LEDS: _Kind("", decode_member, has_fast_checks=True),
        ECDS: _Kind("name", decode_filter_config),
        RTDS: _Kind("name", decode_runtime),
    }
)


def decode_resource(
    type_url: str,
    body: bytes,
    pause: Pause = no_pause,
    *,
    with_grpc_rules: bool = False,
    is_trusted: bool = False,
    providers: frozenset[str] | None = None,
) -> Decoded:
    """Decode and validate one resource; never raises.

    Args:
        type_url: One of `meshlib.xds.resources.TYPE_URLS`.
        body: The serialised resource, out of its `Any` and of its `Resource` wrapper.
        pause: Called before, and now and then while there are many endpoints.
        with_grpc_rules: Refuse what gRPC's clients refuse, beside what Envoy refuses.
        is_trusted: Of a server whose routes may choose the authority of gRPC calls (gRFC A81).
        providers: Names of the bootstrap's certificate providers, beyond which gRPC's rules know none; None: any.
    """
    pause()
    kind = _KINDS.get(type_url)
    if kind is None:
        return Decoded("", None, (f"unknown resource type {type_url!r}",))
    message_name = type_url.rpartition("/")[2]
    try:
        message = message_class(message_name).FromString(body)
    except DecodeError:
        return Decoded(peek_name(body), None, (f"its bytes are not a {message_name}",))
    problems = Problems(is_trusted=is_trusted)
    if not kind.has_fast_checks:
        check_constraints(message, "", problems)
        report_unknown(message, "", problems)
    if type_url == EDS:
        value: Resource = decode_assignment(message, "", problems, pause=pause)
    else:
        value = kind.decode(message, "", problems)
    if with_grpc_rules:
        check_grpc_rules(type_url, message, problems, pause, providers)
    name: str = getattr(message, kind.name_field) if kind.name_field else ""
    return Decoded(name, None if problems else value, problems.errors, problems.unused_fields)


def unwrap(packed: Any) -> tuple[str, str, str, bytes]:
    """Return name, version, type URL and body of an entry of a response, out of its `Resource` wrapper if it has one.

    Without a wrapper name and version are empty; a wrapper without a resource has an empty type URL.

    Args:
        packed: A `google.protobuf.Any`.

    Raises:
        google.protobuf.message.DecodeError: The bytes of the wrapper are not a `Resource`.
    """
    if packed.type_url != RESOURCE_WRAPPER:
        return "", "", packed.type_url, packed.value
    wrapper = message_class(RESOURCE_WRAPPER.rpartition("/")[2]).FromString(packed.value)
    return (
        wrapper.name or wrapper.resource_name.name,
        wrapper.version,
        wrapper.resource.type_url,
        wrapper.resource.value,
    )
