"""The bootstrap: where the management servers are and who we are, as gRPC's JSON format says it (`decode_bootstrap.py`).

One key of our own stands beside gRPC's: `meshlib`, with `registry_uri`, the HTTP address where instances register themselves,
`default_port`, for servers whose listeners are called `host:port`, and two of Envoy's own names: `layered_runtime`, with the
layers that make sense here, and `local_cluster` (its `local_cluster_name`).

Source: gRFCs A27, A30, A47, A65, A71, A97, A102.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from meshlib.model.discovery import RuntimeLayer
from meshlib.model.endpoint import Locality
from meshlib.model.snapshot import HomePlace
from meshlib.protos import from_dict, message_class
from meshlib.version import VERSION

__all__ = [
    "CLIENT_FEATURES",
    "DELTA_FEATURE",
    "GRPC_RULES_FEATURE",
    "SEPARATE_FEATURE",
    "TRUSTED_FEATURE",
    "WILDCARD_CDS_FEATURE",
    "WILDCARD_LDS_FEATURE",
    "AllowedGrpcService",
    "AuthorityConfig",
    "Bootstrap",
    "ChannelCreds",
    "FileWatcherConfig",
    "GoogleDefaultCreds",
    "InsecureCreds",
    "JwtTokenFile",
    "NodeConfig",
    "ProviderConfig",
    "ServerConfig",
    "TlsCreds",
    "WorkloadApiConfig",
]

CLIENT_FEATURES: Final = ("xds.config.resource-in-sotw", "xds.config.supports-resource-ttl")
"""What we tell a server that we can do. Not `envoy.lb.does_not_support_overprovisioning`: we do support it."""

DELTA_FEATURE: Final = "meshlib.delta"
"""In `server_features`, ours: speak the incremental variant with this server, as long as it knows it."""

SEPARATE_FEATURE: Final = "meshlib.separate_streams"
"""In `server_features`, ours: one stream per type of resource instead of an aggregated one."""

GRPC_RULES_FEATURE: Final = "meshlib.validation_grpc"
"""In `server_features`, ours: refuse what gRPC's own clients refuse, beside what Envoy refuses."""

TRUSTED_FEATURE: Final = "trusted_xds_server"
"""In `server_features`: gRPC calls take their authority from endpoints where this server's routes say so (gRFC A81)."""

WILDCARD_LDS_FEATURE: Final = "meshlib.wildcard_lds"
WILDCARD_CDS_FEATURE: Final = "meshlib.wildcard_cds"
"""In `server_features`, ours: ask the server for all listeners, or clusters, and not only for those that are used."""

DEFAULT_REFRESH_S: Final = 600.0
"""`refresh_interval` of the credential plugins `tls` and `file_watcher` (A29, A65)."""


@dataclass(frozen=True, slots=True)
class InsecureCreds:
    """Plaintext."""


@dataclass(frozen=True, slots=True)
class GoogleDefaultCreds:
    """Google's application default credentials."""


@dataclass(frozen=True, slots=True)
class TlsCreds:
    """Attributes:
    ca_certificate_file: Empty: the system's roots.
    certificate_file: Given together with `private_key_file`, or both empty.
    """

    ca_certificate_file: str = ""
    certificate_file: str = ""
    private_key_file: str = ""
    refresh_interval_s: float = DEFAULT_REFRESH_S


ChannelCreds = InsecureCreds | GoogleDefaultCreds | TlsCreds


@dataclass(frozen=True, slots=True)
class JwtTokenFile:
    """A bearer token in a file, read again as it expires (A97)."""

    path: str


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One management server. Equal ones share a channel and a stream.

    Attributes:
        uri: gRPC target.
        features: The strings of `server_features`, known or not.
    """

    uri: str
    channel_creds: ChannelCreds
    call_creds: tuple[JwtTokenFile, ...] = ()
    features: frozenset[str] = frozenset()

    @property
    def is_delta(self) -> bool:
        """The incremental variant is spoken with it."""
        return DELTA_FEATURE in self.features

    @property
    def is_separate(self) -> bool:
        """Each type of resource has a stream of its own."""
        return SEPARATE_FEATURE in self.features

    def as_sotw(self) -> "ServerConfig":
        """Return the same server without the incremental variant."""
        return replace(self, features=self.features - {DELTA_FEATURE}) if self.is_delta else self


@dataclass(frozen=True, slots=True)
class AuthorityConfig:
    """Servers and naming of one `xdstp` authority (A47).

    Attributes:
        listener_template: `client_listener_resource_name_template`.
        servers: Never empty: the top-level servers when the bootstrap gives none.
    """

    listener_template: str
    servers: tuple[ServerConfig, ...]
    fallback_on_reachability_only: bool = False


@dataclass(frozen=True, slots=True)
class FileWatcherConfig:
    """A certificate provider that reads files again every `refresh_interval_s` (A29, A87)."""

    certificate_file: str = ""
    private_key_file: str = ""
    ca_certificate_file: str = ""
    spiffe_bundle_map_file: str = ""
    refresh_interval_s: float = DEFAULT_REFRESH_S


@dataclass(frozen=True, slots=True)
class WorkloadApiConfig:
    """A certificate provider that asks a SPIFFE Workload API (ours: other gRPC clients do not know this plugin).

    Attributes:
        socket: `unix:///path`; empty: the environment's `SPIFFE_ENDPOINT_SOCKET`.
        spiffe_id: Which of several identities to use; empty: the first, which is the default one.
    """

    socket: str = ""
    spiffe_id: str = ""


ProviderConfig = FileWatcherConfig | WorkloadApiConfig


@dataclass(frozen=True, slots=True)
class AllowedGrpcService:
    """Credentials for a side channel that the management server may name (A102)."""

    channel_creds: ChannelCreds
    call_creds: tuple[JwtTokenFile, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Who we are.

    Attributes:
        metadata: Any JSON object; servers choose configuration by it.
    """

    id: str = ""
    cluster: str = ""
    locality: Locality = field(default_factory=Locality)
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    def to_proto(self, *, user_agent_version: str = "", client_features: tuple[str, ...] = CLIENT_FEATURES) -> Any:
        """Return the `envoy.config.core.v3.Node` for the first request of a stream.

        Args:
            user_agent_version: Empty: this distribution's.
            client_features: What the caller's protocol code supports.
        """
        node = message_class("envoy.config.core.v3.Node")(
            id=self.id,
            cluster=self.cluster,
            user_agent_name="meshlib",
            user_agent_version=user_agent_version or VERSION,
            client_features=client_features,
        )
        if self.metadata:
            node.metadata.CopyFrom(from_dict("google.protobuf.Struct", dict(self.metadata)))
        if self.locality != Locality():
            node.locality.region = self.locality.region
            node.locality.zone = self.locality.zone
            node.locality.sub_zone = self.locality.sub_zone
        return node


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Attributes:
    servers: At least one, in order of preference (A71).
    client_default_listener_resource_name_template: For targets without an authority.
    server_listener_resource_name_template: None: a server cannot ask for its listener.
    certificate_providers: By instance name.
    registry_uri: Where instances register, or None.
    runtime: Layers of runtime values, each over the ones before it: static ones, or names of RTDS resources.
    local_cluster: The cluster whose endpoints the instances of this service are; empty: it is not said.
    default_port: What the name of a listener gets where the caller wrote no port; 0: nothing. HTTP clients leave a
        port 80 out of what they write, and istiod's listeners all have theirs in their names.
    """

    servers: tuple[ServerConfig, ...]
    node: NodeConfig = field(default_factory=NodeConfig)
    authorities: Mapping[str, AuthorityConfig] = field(default_factory=lambda: MappingProxyType({}), hash=False)
    client_default_listener_resource_name_template: str = "%s"
    server_listener_resource_name_template: str | None = None
    certificate_providers: Mapping[str, ProviderConfig] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    allowed_grpc_services: Mapping[str, AllowedGrpcService] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    registry_uri: str | None = None
    runtime: tuple[RuntimeLayer | str, ...] = ()
    local_cluster: str = ""
    default_port: int = 0

    @property
    def home(self) -> HomePlace | None:
        """Where we are, for zone aware routing; None: that is not said."""
        if not self.local_cluster or self.node.locality == Locality():
            return None
        return HomePlace(self.local_cluster, self.node.locality)
