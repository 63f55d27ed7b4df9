"""Which mTLS mode a workload's port has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from xds_server.translate.documents import Config
from xds_server.translate.names import ROOT_NAMESPACE
from xds_server.translate.services import selects

TLS_MODE_LABEL = "security.istio.io/tlsMode"
"""Label of instances that can speak mTLS; its value is then `istio`."""


class MutualTls(StrEnum):
    UNSET = "UNSET"
    """Nobody has said anything."""
    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


@dataclass(frozen=True, slots=True)
class PeerAuthentications:
    """The PeerAuthentications of all namespaces, oldest first.

    Attributes:
        has_certificates: Servers can be given some. Without, PERMISSIVE is plaintext, since nobody could speak TLS.
    """

    configs: Sequence[Config]
    has_certificates: bool = True

    def mode(self, namespace: str, labels: Mapping[str, str], port: int) -> MutualTls:
        """Return a port's mode: what the mesh's policy says, overridden by the namespace's, the workload's, and the port's.

        UNSET leaves what the wider scope says, and is plaintext where nobody says anything (for Istio that is PERMISSIVE;
        here a service may have been started without a certificate). Of several policies of one scope the oldest applies.
        A selector has no effect in the root namespace.

        Source: Istio, pilot/pkg/security/authn `ComposePeerAuthentication`.
        """
        mesh = self._first(ROOT_NAMESPACE)
        in_namespace = self._first(namespace) if namespace != ROOT_NAMESPACE else None
        workload = self._first(namespace, labels) if namespace != ROOT_NAMESPACE else None
        mode = MutualTls.UNSET
        for config in (mesh, in_namespace, workload):
            if config is not None:
                mode = _override(mode, config.spec.get("mtls", {}))
        if workload is not None:
            mode = _override(mode, workload.spec.get("portLevelMtls", {}).get(str(port), {}))
        return MutualTls.UNSET if mode is MutualTls.PERMISSIVE and not self.has_certificates else mode

    def offers_tls(self, namespace: str, labels: Mapping[str, str], port: int) -> bool:
        """Tell whether clients of the mesh are to use mTLS: it is demanded, or taken by an instance that can."""
        mode = self.mode(namespace, labels, port)
        return mode is MutualTls.STRICT or (mode is MutualTls.PERMISSIVE and labels.get(TLS_MODE_LABEL) == "istio")

    def _first(self, namespace: str, labels: Mapping[str, str] | None = None) -> Config | None:
        """Return the oldest policy for a whole namespace, or for workloads with these labels."""
        for config in self.configs:
            if config.namespace != namespace:
                continue
            selector = selector_of(config)
            if bool(selector) == (labels is not None) and selects(selector, labels or {}):
                return config
        return None


def selector_of(config: Config) -> Mapping[str, str]:
    """Return the labels that a policy's workloads must have; empty: all of the namespace."""
    labels: Mapping[str, str] = config.spec.get("selector", {}).get("matchLabels", {})
    return labels


def _override(mode: MutualTls, mtls: Mapping[str, str]) -> MutualTls:
    word = mtls.get("mode", "UNSET")
    return mode if word == "UNSET" else MutualTls(word)
