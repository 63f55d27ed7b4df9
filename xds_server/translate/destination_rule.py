"""Which DestinationRules apply to a host, merged, and which policy applies to one port and subset of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xds_server.model import Position
from xds_server.translate.documents import Config
from xds_server.translate.names import ROOT_NAMESPACE, fqdn, host_matches
from xds_server.translate.services import Service

BLOCKS = ("loadBalancer", "connectionPool", "outlierDetection", "tls")


@dataclass(frozen=True, slots=True)
class Subset:
    """A named part of a service's endpoints.

    Attributes:
        config: The rule that defines it; rules of one host are merged.
    """

    name: str
    labels: Mapping[str, str]
    policy: Mapping[str, Any] | None
    config: Config
    position: Position | None


@dataclass(frozen=True, slots=True)
class Rule:
    """The DestinationRules of one host as one.

    Attributes:
        configs: Where it comes from, oldest first; empty: no rule applies.
    """

    configs: tuple[Config, ...] = ()
    policy: Mapping[str, Any] | None = None
    policy_config: Config | None = None
    subsets: Mapping[str, Subset] = field(default_factory=dict)

    def policy_of(self, port: int, subset: str = "") -> Mapping[str, Any]:
        """Merge the policies of the host, its port, the subset, and the subset's port; an absent block means the defaults.

        A port's settings replace the whole policy of its level: a block they lack falls back to the defaults. A subset's
        block replaces the host's block.

        Source: Istio, pilot/pkg/networking/util `MergeTrafficPolicy`, `GetPortLevelTrafficPolicy`.
        """
        blocks = _level(self.policy, port, {})
        if subset in self.subsets:
            blocks = _level(self.subsets[subset].policy, port, blocks)
        return blocks


def _level(policy: Mapping[str, Any] | None, port: int, inherited: Mapping[str, Any]) -> dict[str, Any]:
    if policy is None:
        return dict(inherited)
    budget = policy.get("retryBudget", inherited.get("retryBudget"))
    for settings in policy.get("portLevelSettings", ()):
        if settings["port"]["number"] == port:
            blocks = {name: settings[name] for name in BLOCKS if name in settings}
            break
    else:
        blocks = {name: inherited[name] for name in BLOCKS if name in inherited}
        blocks |= {name: policy[name] for name in BLOCKS if name in policy}
    return blocks | ({"retryBudget": budget} if budget is not None else {})


class RuleIndex:
    """DestinationRules by namespace and host, oldest first."""

    def __init__(self, configs: Sequence[Config]) -> None:
        self._by_host: dict[tuple[str, str], list[Config]] = {}
        self._wildcards: dict[str, list[str]] = {}
        for config in configs:
            host = fqdn(config.spec["host"], config.namespace)
            self._by_host.setdefault((config.namespace, host), []).append(config)
            if host.startswith("*"):
                self._wildcards.setdefault(config.namespace, []).append(host)

    def most_specific(self, namespace: str, host: str) -> Sequence[Config]:
        """Return a namespace's rules for a host: with exactly this host, else with the longest wildcard."""
        if exact := self._by_host.get((namespace, host)):
            return exact
        matching = [pattern for pattern in self._wildcards.get(namespace, ()) if host_matches(pattern, host)]
        return self._by_host[namespace, max(matching, key=len)] if matching else ()


def find_rule(service: Service, index: RuleIndex) -> Rule:
    """Return the rule for a service: of its own namespace, else of the root namespace; the most specific host of each.

    Istio looks into the client's namespace first. One configuration is served to clients of all namespaces, so a rule in
    yet another namespace is for nobody (the checks say so).
    """
    for namespace in dict.fromkeys((service.namespace, ROOT_NAMESPACE)):
        if configs := index.most_specific(namespace, service.host):
            return _merge(configs)
    return Rule()


def _merge(configs: Sequence[Config]) -> Rule:
    """Merge rules with one host: subsets add up, of two with one name the first counts, as does the first policy."""
    subsets: dict[str, Subset] = {}
    policy: Mapping[str, Any] | None = None
    policy_config: Config | None = None
    for config in configs:
        if policy is None and "trafficPolicy" in config.spec:
            policy, policy_config = config.spec["trafficPolicy"], config
        for index, item in enumerate(config.spec.get("subsets", ())):
            subset = Subset(
                name=item["name"],
                labels=item.get("labels", {}),
                policy=item.get("trafficPolicy"),
                config=config,
                position=config.position("subsets", index),
            )
            subsets.setdefault(subset.name, subset)
    return Rule(tuple(configs), policy, policy_config, subsets)
