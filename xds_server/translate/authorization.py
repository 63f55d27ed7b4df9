"""Which AuthorizationPolicies guard a workload, as RBAC filters.

Evaluation order: DENY, then ALLOW. Without an ALLOW policy everything is allowed; with one, even without rules, only
what a rule says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xds_server.codes import AUDIT_HAS_NO_EFFECT
from xds_server.model import Profile
from xds_server.translate.documents import Config
from xds_server.translate.messages import Json, http_filter
from xds_server.translate.names import ROOT_NAMESPACE
from xds_server.translate.peer_authentication import selector_of
from xds_server.translate.rbac import rule_policy
from xds_server.translate.report import Report
from xds_server.translate.services import selects

DRY_RUN = "istio.io/dry-run"
_RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
_NEVER: Json = {"permissions": [{"not_rule": {"any": True}}], "principals": [{"not_id": {"any": True}}]}


@dataclass(frozen=True, slots=True)
class Authorizations:
    """The AuthorizationPolicies of all namespaces, oldest first."""

    configs: Sequence[Config]
    profile: Profile
    report: Report

    def filters(self, namespace: str, labels: Mapping[str, str]) -> list[Json]:
        """Return the HTTP filters that guard a workload, in the order in which they run."""
        mine = [
            config
            for config in self.configs
            if config.namespace in (namespace, ROOT_NAMESPACE) and selects(selector_of(config), labels)
        ]
        result = []
        for action, name in (("DENY", "envoy.filters.http.rbac.DENY"), ("ALLOW", "envoy.filters.http.rbac")):
            with_action = [config for config in mine if config.spec.get("action", "ALLOW") == action]
            enforced = [config for config in with_action if not is_dry_run(config)]
            dry = [config for config in with_action if is_dry_run(config)]
            value: Json = {}
            if enforced:
                value["rules"] = {"action": action, "policies": self._policies(enforced)}
            if dry and self._can_shadow(dry):
                value["shadow_rules"] = {"action": action, "policies": self._policies(dry)}
                value["shadow_rules_stat_prefix"] = f"istio_dry_run_{action.lower()}_"
            if value:
                result.append(http_filter(name, _RBAC, value))
        return result

    def _policies(self, configs: Sequence[Config]) -> Json:
        result: Json = {}
        for config in configs:
            # A policy without rules becomes one that never matches: left out, allow-nothing would turn into allow-all.
            rules = [rule_policy(rule, config.namespace) for rule in config.spec.get("rules", ())] or [_NEVER]
            for index, policy in enumerate(rules):
                result[self._key(config, index, result)] = policy
        return result

    def _key(self, config: Config, index: int, taken: Json) -> str:
        """Return the policy's name: Istio's for its kind of client. No two may share one, or a rule would be lost."""
        short = f"{config.namespace}-{config.name}-{index}"
        if self.profile is Profile.GRPC and short not in taken:
            return short
        return f"ns[{config.namespace}]-policy[{config.name}]-rule[{index}]"

    def _can_shadow(self, configs: Sequence[Config]) -> bool:
        if self.profile is not Profile.GRPC:
            return True
        for config in configs:
            place = config.document.position("metadata", "annotations", DRY_RUN)
            what = f"dry-run of {config.namespace}/{config.name}"
            self.report.dropped(self.profile, what, "the policy is left out, neither enforced nor logged", place)
        return False


def is_dry_run(config: Config) -> bool:
    return config.annotations.get(DRY_RUN, "").lower() in ("true", "1", "t")


def check_audit(configs: Sequence[Config], report: Report) -> None:
    """Say that AUDIT policies do nothing."""
    for config in configs:
        if config.spec.get("action") == "AUDIT":
            message = (
                f"AuthorizationPolicy {config.namespace}/{config.name}: action AUDIT is accepted and logs nothing yet"
            )
            report.info(AUDIT_HAS_NO_EFFECT, message, config.position("action"))
