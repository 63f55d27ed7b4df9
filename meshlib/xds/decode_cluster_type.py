"""`cluster_type`: which kind of cluster an extension makes.

Envoy looks such an extension up by the type of its configuration. One without a configuration, and one whose
configuration is plain JSON (a `google.protobuf.Struct`), goes by its name.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from meshlib.protos import from_any, from_dict, message_class
from meshlib.xds.constraints import check_constraints
from meshlib.xds.decode_common import any_type, is_typed_struct, join, plain, unpack
from meshlib.xds.problems import Problems

__all__ = [
    "AGGREGATE_TYPE",
    "CUSTOM",
    "DNS_TYPE",
    "LOGICAL_DNS",
    "STRICT_DNS",
    "STRUCT",
    "configuration_of",
    "kind_of",
    "message_of_struct",
    "type_of",
]

AGGREGATE_TYPE: Final = "envoy.extensions.clusters.aggregate.v3.ClusterConfig"
DNS_TYPE: Final = "envoy.extensions.clusters.dns.v3.DnsCluster"
STRICT_DNS, LOGICAL_DNS = 1, 2
CUSTOM: Final = -1
"""Stands for a `cluster_type` that is none of `DiscoveryType`, whose numbers the others are."""

STRUCT: Final = "google.protobuf.Struct"
"""Stands for the configuration of an extension that is known by its name alone."""
_KINDS: Final[Mapping[str, int]] = MappingProxyType(
    {"envoy.cluster.static": 0, "envoy.cluster.strict_dns": STRICT_DNS, "envoy.cluster.logical_dns": LOGICAL_DNS}
)
"""`envoy.cluster.eds` leads nowhere in Envoy either: it takes no `eds_cluster_config`."""
_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"envoy.cluster.dns": DNS_TYPE, "envoy.clusters.aggregate": AGGREGATE_TYPE}
)


def kind_of(message: Any) -> int:
    """Return the number of the `DiscoveryType` that a Cluster comes to, or `CUSTOM`."""
    if not message.HasField("cluster_type"):
        return int(message.type)
    custom = message.cluster_type
    return _KINDS.get(custom.name, CUSTOM) if _goes_by_name(custom) else CUSTOM


def type_of(custom: Any) -> str:
    """Return the message name of a CustomClusterType's configuration; empty: its name is none that is known here."""
    return _TYPES.get(custom.name, "") if _goes_by_name(custom) else any_type(custom.typed_config)


def configuration_of(custom: Any, path: str, problems: Problems) -> Any:
    """Return the configuration of a CustomClusterType of a known type, checked, or None after an error.

    Args:
        path: Of the CustomClusterType.
    """
    place = join(path, "typed_config")
    if not _goes_by_name(custom):
        if is_typed_struct(custom.typed_config):
            problems.error(place, "must be the message itself, as in Envoy, not a TypedStruct of it")
            return None
        return unpack(custom.typed_config, place, problems)
    kind = type_of(custom)
    if custom.HasField("typed_config"):
        message = message_of_struct(kind, plain(from_any(custom.typed_config)), place, problems)
    else:
        message = message_class(kind)()
    if message is not None:
        check_constraints(message, place, problems)
    return message


def _goes_by_name(custom: Any) -> bool:
    return not custom.HasField("typed_config") or any_type(custom.typed_config) == STRUCT


def message_of_struct(kind: str, values: dict[str, Any], path: str, problems: Problems) -> Any:
    """Return the message that JSON stands for, or None after an error; Envoy passes over names that it does not know."""
    from google.protobuf.json_format import ParseError  # 2 MB, which most processes do without

    fields = message_class(kind).DESCRIPTOR.fields
    known = {name for field in fields for name in (field.name, field.json_name)}
    for name in sorted(values.keys() - known):
        problems.unused(join(path, name), "is not known to this version")
    try:
        return from_dict(kind, {name: value for name, value in values.items() if name in known})
    except ParseError as error:
        problems.error(path, f"is not a {kind}: {str(error).partition(chr(10))[0]}")
        return None
