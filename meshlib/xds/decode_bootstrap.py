"""Reading the bootstrap, in gRPC's JSON format.

Unknown keys are ignored, wrong JSON types are errors, and every error names the place by its JSON pointer.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from meshlib.errors import BootstrapError
from meshlib.model.discovery import RuntimeLayer
from meshlib.model.endpoint import Locality
from meshlib.xds.bootstrap import (
    DEFAULT_REFRESH_S,
    AllowedGrpcService,
    AuthorityConfig,
    Bootstrap,
    ChannelCreds,
    FileWatcherConfig,
    GoogleDefaultCreds,
    InsecureCreds,
    JwtTokenFile,
    NodeConfig,
    ProviderConfig,
    ServerConfig,
    TlsCreds,
    WorkloadApiConfig,
)
from meshlib.xds.bootstrap_json import JsonPlace, parse_json
from meshlib.xds.decode_runtime import runtime_values
from meshlib.xds.problems import Problems

__all__ = ["load_bootstrap", "parse_bootstrap"]

PATH_VARIABLE: Final = "GRPC_XDS_BOOTSTRAP"
TEXT_VARIABLE: Final = "GRPC_XDS_BOOTSTRAP_CONFIG"


def load_bootstrap(env: Mapping[str, str], read_file: Callable[[str], str]) -> Bootstrap:
    """Find and parse the bootstrap as gRPC does: the file of `GRPC_XDS_BOOTSTRAP`, else `GRPC_XDS_BOOTSTRAP_CONFIG`.

    A file that is named but cannot be used is an error; the second variable is not tried then.

    Args:
        env: Environment variables.
        read_file: Returns the text of a file; raises OSError or UnicodeError.

    Raises:
        BootstrapError: Neither variable is set, the file cannot be read, or its content is not valid.
    """
    path = env.get(PATH_VARIABLE)
    if path:
        origin = f"{PATH_VARIABLE} ({path})"
        try:
            text = read_file(path)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BootstrapError(f"bootstrap {origin}: cannot be read: {reason}") from error
        return parse_bootstrap(text, origin=origin)
    text = env.get(TEXT_VARIABLE, "")
    if text:
        return parse_bootstrap(text, origin=TEXT_VARIABLE)
    raise BootstrapError(f"bootstrap: environment variables {PATH_VARIABLE} or {TEXT_VARIABLE} not defined")


def parse_bootstrap(text_or_dict: str | Mapping[str, Any], *, origin: str) -> Bootstrap:
    """Parse a bootstrap.

    Args:
        text_or_dict: JSON text, or the same as Python data.
        origin: The variable or path that it comes from, for errors.

    Raises:
        BootstrapError: Naming the origin, the JSON pointer and the reason.
    """
    root = parse_json(text_or_dict, origin)
    servers = _servers(root, required=True)
    return Bootstrap(
        servers=servers,
        node=_node(root.object("node")),
        authorities=_authorities(root, servers),
        client_default_listener_resource_name_template=root.string("client_default_listener_resource_name_template")
        or "%s",
        server_listener_resource_name_template=root.string("server_listener_resource_name_template") or None,
        certificate_providers=_providers(root),
        allowed_grpc_services=_allowed(root),
        registry_uri=_registry(root.object("meshlib")),
        runtime=_runtime(root.object("meshlib").object("layered_runtime")),
        local_cluster=root.object("meshlib").string("local_cluster"),
        default_port=root.object("meshlib").integer("default_port", 0, least=1, most=65535),
    )


def _servers(place: JsonPlace, *, required: bool) -> tuple[ServerConfig, ...]:
    servers = tuple(_server(server) for server in place.array("xds_servers").objects())
    if required and not servers:
        place.fail("at least one server is required", "xds_servers")
    return servers


def _server(place: JsonPlace) -> ServerConfig:
    uri = place.string("server_uri")
    if not uri:
        place.fail("is required", "server_uri")
    if uri.lower().startswith("xds:"):
        # It would wait for itself.
        place.fail("a management server cannot be found through the mesh itself", "server_uri")
    channel, calls = _credentials(place)
    features = place.array("server_features").value
    return ServerConfig(uri, channel, calls, frozenset(item for item in features if isinstance(item, str)))


def _credentials(place: JsonPlace) -> tuple[ChannelCreds, tuple[JwtTokenFile, ...]]:
    """Take the first channel credentials of a known type and all call credentials of known types."""
    channel = [
        creds for entry in place.array("channel_creds").objects() if (creds := _channel_creds(entry)) is not None
    ]
    if not channel:
        place.fail("no known creds type found (known: insecure, google_default, tls)", "channel_creds")
    calls = tuple(token for entry in place.array("call_creds").objects() if (token := _call_creds(entry)) is not None)
    if calls and isinstance(channel[0], InsecureCreds):
        # A token would go over the wire in the clear: gRPC too only composes call credentials with secure channels.
        place.fail("jwt_token_file needs secure channel credentials, not insecure", "call_creds")
    return channel[0], calls


def _channel_creds(place: JsonPlace) -> ChannelCreds | None:
    config = place.object("config")
    match _kind(place):
        case "insecure":
            return InsecureCreds()
        case "google_default":
            return GoogleDefaultCreds()
        case "tls":
            certificate, key = _key_pair(config)
            return TlsCreds(config.string("ca_certificate_file"), certificate, key, _refresh(config))
        case _:
            return None


def _call_creds(place: JsonPlace) -> JwtTokenFile | None:
    config = place.object("config")
    if _kind(place) != "jwt_token_file":
        return None
    path = config.string("jwt_token_file")
    if not path:
        config.fail("is required", "jwt_token_file")
    return JwtTokenFile(path)


def _kind(credentials: JsonPlace) -> str:
    if not credentials.has("type"):
        credentials.fail("is required", "type")
    return credentials.string("type")


def _key_pair(config: JsonPlace) -> tuple[str, str]:
    certificate, key = config.string("certificate_file"), config.string("private_key_file")
    if bool(certificate) != bool(key):
        config.fail("certificate_file and private_key_file must be given together")
    return certificate, key


def _refresh(config: JsonPlace) -> float:
    return config.duration("refresh_interval", DEFAULT_REFRESH_S)


def _node(place: JsonPlace) -> NodeConfig:
    locality = place.object("locality")
    node = NodeConfig(
        id=place.string("id"),
        cluster=place.string("cluster"),
        locality=Locality(locality.string("region"), locality.string("zone"), locality.string("sub_zone")),
        metadata=MappingProxyType(dict(place.object("metadata").value)),
    )
    if node.metadata:
        try:
            node.to_proto()
        except Exception as error:
            # Python data that is no JSON, numbers and depths that a Struct does not hold, lone surrogates: of several
            # kinds, one of which comes from a library that is not loaded for bootstraps without metadata.
            place.fail(f"cannot be told to a server: {error}", "metadata")
    return node


def _authorities(root: JsonPlace, servers: tuple[ServerConfig, ...]) -> Mapping[str, AuthorityConfig]:
    result = {}
    for name, place in root.object("authorities").members():
        prefix = f"xdstp://{name}/"
        template = place.string("client_listener_resource_name_template")
        if template and not template.startswith(prefix):
            place.fail(f"must start with {prefix}", "client_listener_resource_name_template")
        result[name] = AuthorityConfig(
            template or f"{prefix}envoy.config.listener.v3.Listener/%s",
            _servers(place, required=False) or servers,
            place.boolean("fallback_on_reachability_only"),
        )
    return MappingProxyType(result)


def _providers(root: JsonPlace) -> Mapping[str, ProviderConfig]:
    result: dict[str, ProviderConfig] = {}
    for name, place in root.object("certificate_providers").members():
        plugin, config = place.string("plugin_name"), place.object("config")
        match plugin:
            case "file_watcher":
                result[name] = _file_watcher(config)
            case "spiffe_workload_api":
                result[name] = _workload_api(config)
            case _:
                known = "known: file_watcher, spiffe_workload_api"
                place.fail(f"unknown plugin {plugin!r} ({known})" if plugin else "is required", "plugin_name")
    return MappingProxyType(result)


def _file_watcher(config: JsonPlace) -> FileWatcherConfig:
    certificate, key = _key_pair(config)
    roots = config.string("ca_certificate_file")
    # gRFC A87 has the first name, C-core reads the second.
    bundles = config.string("spiffe_trust_bundle_map_file") or config.string("spiffe_bundle_map_file")
    if not (certificate or roots or bundles):
        config.fail("at least one of certificate_file and ca_certificate_file is required")
    return FileWatcherConfig(certificate, key, roots, bundles, _refresh(config))


def _workload_api(config: JsonPlace) -> WorkloadApiConfig:
    socket, spiffe_id = config.string("endpoint_socket"), config.string("spiffe_id")
    if socket and not socket.startswith("unix:"):
        config.fail("must be unix:///path", "endpoint_socket")
    if spiffe_id and not spiffe_id.startswith("spiffe://"):
        config.fail("must start with spiffe://", "spiffe_id")
    return WorkloadApiConfig(socket, spiffe_id)


def _allowed(root: JsonPlace) -> Mapping[str, AllowedGrpcService]:
    members = root.object("allowed_grpc_services").members()
    return MappingProxyType({target: AllowedGrpcService(*_credentials(place)) for target, place in members})


def _registry(place: JsonPlace) -> str | None:
    uri = place.string("registry_uri")
    if uri and not uri.startswith(("http://", "https://")):
        place.fail("must be an http:// or https:// address", "registry_uri")
    return uri or None


def _runtime(place: JsonPlace) -> tuple[RuntimeLayer | str, ...]:
    names: set[str] = set()
    layers = []
    for layer in place.array("layers").objects():
        name = layer.string("name")
        if not name or name in names:
            layer.fail(f"{name!r} is the name of an earlier layer" if name else "is required", "name")
        names.add(name)
        layers.append(_runtime_layer(layer, name))
    return tuple(layers)


def _runtime_layer(layer: JsonPlace, name: str) -> RuntimeLayer | str:
    kinds = [kind for kind in ("static_layer", "rtds_layer", "disk_layer", "admin_layer") if layer.has(kind)]
    if kinds == ["static_layer"]:
        problems = Problems()
        values = runtime_values(layer.object("static_layer").value, "", problems)
        for error in problems.errors:
            layer.fail(error, "static_layer")
        return RuntimeLayer(name, values)
    if kinds != ["rtds_layer"]:
        layer.fail(f"must be one static_layer or rtds_layer, is {' and '.join(kinds) or 'neither'}")
    rtds = layer.object("rtds_layer")
    resource = rtds.string("name")
    if not resource:
        rtds.fail("is required", "name")
    source = rtds.object("rtds_config")
    if source.value and not (source.has("ads") or source.has("self")):
        rtds.fail("must be ads or self", "rtds_config")
    return resource
