"""From documents to configs: each kind is recognised, decoded strictly, and named."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xds_server.codes import (
    DUPLICATE_RESOURCE,
    KIND_NOT_SUPPORTED,
    NO_EFFECT,
    UNKNOWN_KIND,
)
from xds_server.model import Document, Position
from xds_server.translate.fields import INVALID, At, Kind, Obj, Str, suggestion
from xds_server.translate.names import DEFAULT_NAMESPACE
from xds_server.translate.report import Report
from xds_server.translate.schema_common import METADATA, STATUS
from xds_server.translate.schema_destination_rule import DESTINATION_RULE
from xds_server.translate.schema_security import AUTHORIZATION_POLICY, PEER_AUTHENTICATION
from xds_server.translate.schema_service_entry import SERVICE_ENTRY, WORKLOAD_ENTRY
from xds_server.translate.schema_virtual_service import VIRTUAL_SERVICE

NETWORKING = "networking.istio.io"
SECURITY = "security.istio.io"
_VERSIONS = {NETWORKING: ("v1", "v1beta1", "v1alpha3"), SECURITY: ("v1", "v1beta1")}

# Kind: its group, its schema, and its name in resource paths.
_KINDS: dict[str, tuple[str, Kind, str]] = {
    "VirtualService": (NETWORKING, VIRTUAL_SERVICE, "virtual-service"),
    "DestinationRule": (NETWORKING, DESTINATION_RULE, "destination-rule"),
    "ServiceEntry": (NETWORKING, SERVICE_ENTRY, "service-entry"),
    "WorkloadEntry": (NETWORKING, WORKLOAD_ENTRY, "workload-entry"),
    "AuthorizationPolicy": (SECURITY, AUTHORIZATION_POLICY, "authorization-policy"),
    "PeerAuthentication": (SECURITY, PEER_AUTHENTICATION, "peer-authentication"),
}

_LATER_GROUPS = frozenset(
    [
        "gateway.networking.k8s.io",
        "gateway.networking.x-k8s.io",
        "split.smi-spec.io",
        "specs.smi-spec.io",
        "access.smi-spec.io",
        "metrics.smi-spec.io",
    ]
)
_LATER_KINDS = frozenset(
    [
        "Gateway",
        "Sidecar",
        "EnvoyFilter",
        "RequestAuthentication",
        "Telemetry",
        "ProxyConfig",
        "WasmPlugin",
        "WorkloadGroup",
        "HTTPRoute",
        "GRPCRoute",
        "GatewayClass",
        "ReferenceGrant",
        "BackendTLSPolicy",
        "TrafficSplit",
        "HTTPRouteGroup",
        "TCPRoute",
        "TrafficTarget",
    ]
)


@dataclass(frozen=True, slots=True)
class Config:
    """One decoded document.

    Attributes:
        spec: The cleaned spec: what is there has the type that the kind's schema says.
    """

    kind: str
    namespace: str
    name: str
    created: str
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    document: Document

    def position(self, *path: str | int) -> Position | None:
        return self.document.position("spec", *path)

    @property
    def age(self) -> tuple[str, str, str]:
        """Order in which configs of one kind apply: as Istio, by creation, then name, then namespace."""
        return (self.created, self.name, self.namespace)

    @property
    def resource(self) -> str:
        """The path under which Istio knows the config."""
        group, _, word = _KINDS[self.kind]
        return f"/apis/{group}/v1/namespaces/{self.namespace}/{word}/{self.name}"


def is_native(document: Document) -> bool:
    """Tell whether a document holds xDS resources rather than a Kubernetes-style object."""
    return "@type" in document.content or ("resources" in document.content and "kind" not in document.content)


def decode_documents(documents: Iterable[Document], report: Report) -> dict[str, list[Config]]:
    """Decode every Kubernetes-style document.

    Returns:
        By kind, what could be decoded, oldest first.
    """
    result: dict[str, list[Config]] = {kind: [] for kind in _KINDS}
    seen: dict[tuple[str, str, str], Config] = {}
    for document in documents:
        if is_native(document):
            continue
        config = _decode(document, report)
        if config is None:
            continue
        key = (config.kind, config.namespace, config.name)
        if key in seen:
            other = seen[key].document.position()
            message = f"{config.kind} {config.namespace}/{config.name} is defined twice; also at {other}"
            report.error(DUPLICATE_RESOURCE, message, document.position("metadata", "name"))
            continue
        seen[key] = config
        result[config.kind].append(config)
    for configs in result.values():
        configs.sort(key=lambda config: config.age)
    return result


def _decode(document: Document, report: Report) -> Config | None:
    content = document.content
    at = At(document, report)
    kind, version = content.get("kind"), content.get("apiVersion")
    if not isinstance(kind, str) or not isinstance(version, str):
        missing = "kind" if not isinstance(kind, str) else "apiVersion"
        report.error(
            UNKNOWN_KIND, f"the document has no {missing} (a text) and is no xDS resource with @type", at.position
        )
        return None
    group, _, short_version = version.rpartition("/")
    if _without_effect(kind, group, document, report):
        return None
    if group in _LATER_GROUPS or (kind in _LATER_KINDS and kind not in _KINDS):
        report.error(KIND_NOT_SUPPORTED, f"kind {kind} is not supported yet", document.position("kind"))
        return None
    if kind not in _KINDS:
        message = f"unknown kind {kind!r:.80} (apiVersion {version!r:.80}){suggestion(kind, tuple(_KINDS))}"
        report.error(UNKNOWN_KIND, message, document.position("kind"))
        return None
    want, schema, _ = _KINDS[kind]
    if group != want or short_version not in _VERSIONS[want]:
        known = ", ".join(f"{want}/{known}" for known in _VERSIONS[want])
        report.error(UNKNOWN_KIND, f"apiVersion of {kind} must be one of {known}", document.position("apiVersion"))
        return None
    whole = Obj(
        {"apiVersion": Str(), "kind": Str(), "metadata": METADATA, "spec": schema, "status": STATUS},
        required=("metadata",) if kind in ("AuthorizationPolicy", "PeerAuthentication") else ("metadata", "spec"),
    ).decode(content, at)
    if whole is INVALID or ("spec" in content and "spec" not in whole):
        return None
    metadata = whole["metadata"]
    return Config(
        kind=kind,
        namespace=metadata.get("namespace", DEFAULT_NAMESPACE),
        name=metadata["name"],
        created=metadata.get("creationTimestamp", ""),
        annotations=metadata.get("annotations", {}),
        labels=metadata.get("labels", {}),
        spec=whole.get("spec", {}),
        document=document,
    )


def _without_effect(kind: str, group: str, document: Document, report: Report) -> bool:
    """Accept the documents of an Istio installation that set up proxies, and say what they do not change here."""
    metadata = document.content.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if kind == "ConfigMap" and group == "":
        data = document.content.get("data")
        if name == "istio":
            keys = f" ({', '.join(str(key) for key in data)})" if isinstance(data, dict) and data else ""
            message = (
                f"ConfigMap istio is accepted and changes nothing{keys}: MeshConfig, proxyStatsMatcher among it, sets up "
                "Envoy sidecars, and there are none; metrics are chosen in the application"
            )
        else:
            message = f"ConfigMap {name!r:.80} is accepted and changes nothing"
        report.info(
            NO_EFFECT, message, document.position("data") if "data" in document.content else document.position()
        )
        return True
    if kind == "IstioOperator" and group == "install.istio.io":
        environment = _environment(document)
        for variable in environment or ("",):
            place = document.position("spec", "values", "pilot", "env", *([variable] if variable else []))
            what = (
                f"{variable} (no variable of istiod's by any version known here)"
                if variable in _NOT_ISTIOD
                else variable
            )
            message = "IstioOperator is accepted and changes nothing: it installs istiod, which is not used here"
            report.info(NO_EFFECT, f"{message}{f'; without effect: {what}' if what else ''}", place)
        return True
    return False


_NOT_ISTIOD = ("PILOT_ENABLE_VALIDATION", "PILOT_DISABLE_UNUSED_LISTENERS")


def _environment(document: Document) -> tuple[str, ...]:
    value: Any = document.content
    for step in ("spec", "values", "pilot", "env"):
        value = value.get(step) if isinstance(value, dict) else None
    return tuple(value) if isinstance(value, dict) else ()
