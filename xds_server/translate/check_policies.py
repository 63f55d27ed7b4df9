"""Checks of the security documents."""

from collections.abc import Sequence

from xds_server.codes import PERMISSIVE_NEEDS_MESHLIB, SELECTOR_MATCHES_NOTHING, SEVERAL_POLICIES
from xds_server.model import Instance
from xds_server.translate.documents import Config
from xds_server.translate.names import ROOT_NAMESPACE
from xds_server.translate.peer_authentication import selector_of
from xds_server.translate.report import Report
from xds_server.translate.services import instance_labels, selects


def check_peer_authentications(configs: Sequence[Config], report: Report) -> None:
    """Report PERMISSIVE modes, which not every server can have, and policies that another one of their scope hides."""
    scopes: dict[tuple[str, tuple[tuple[str, str], ...]], Config] = {}
    for config in configs:
        where = f"PeerAuthentication {config.namespace}/{config.name}"
        modes = [("mtls", "mode")] + [("portLevelMtls", port, "mode") for port in config.spec.get("portLevelMtls", {})]
        for path in modes:
            value = config.spec
            for step in path[:-1]:
                value = value.get(step, {})
            if value.get("mode") == "PERMISSIVE":
                message = (
                    f"{where}: PERMISSIVE: gRPC's own xDS servers, and all while there is no CA, take plaintext only"
                )
                report.info(PERMISSIVE_NEEDS_MESHLIB, message, config.position(*path))
        scope = (config.namespace, tuple(sorted(selector_of(config).items())))
        other = scopes.setdefault(scope, config)
        if other is not config:
            message = f"{where} has no effect: {other.name} is for the same workloads and comes first"
            report.warning(SEVERAL_POLICIES, message, config.document.position("metadata", "name"))
        if config.namespace == ROOT_NAMESPACE and selector_of(config):
            message = f"{where} has no effect: in the root namespace a selector is not honoured"
            report.warning(SEVERAL_POLICIES, message, config.position("selector"))


def check_selectors(configs: Sequence[Config], instances: Sequence[Instance], report: Report) -> None:
    """Report policies whose selector matches no instance; with no instance at all there is nothing to tell."""
    if not instances:
        return
    for config in configs:
        selector = selector_of(config)
        everywhere = config.namespace == ROOT_NAMESPACE
        if selector and not any(
            (everywhere or one.namespace == config.namespace) and selects(selector, instance_labels(one))
            for one in instances
        ):
            text = ", ".join(f"{name}={value}" for name, value in sorted(selector.items()))
            message = f"{config.kind} {config.namespace}/{config.name}: no registered instance has the labels {text}"
            report.info(SELECTOR_MATCHES_NOTHING, message, config.position("selector"))
