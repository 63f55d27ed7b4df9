"""Checks of VirtualServices and DestinationRules: rules that are never reached, and names that nothing defines."""

from collections.abc import Mapping, Sequence
from typing import Any

from xds_server.codes import (
    CONFLICTING_HOSTS,
    INEFFECTIVE_MATCH,
    NO_EFFECT,
    OTHER_NAMESPACE,
    REFERENCE_NOT_FOUND,
    UNREACHABLE_RULE,
)
from xds_server.model import Instance
from xds_server.translate.documents import Config
from xds_server.translate.fields import suggestion
from xds_server.translate.names import ROOT_NAMESPACE, fqdn, host_matches, split_service
from xds_server.translate.report import Report
from xds_server.translate.route_match import is_catch_all
from xds_server.translate.virtual_service import applies_to_mesh

# Fields of a match that only name it.
_NAMES = frozenset({"name", "statPrefix"})


def check_hosts(configs: Sequence[Config], report: Report) -> None:
    """Report hosts that an older VirtualService has already, and VirtualServices for gateways only."""
    owners: dict[str, Config] = {}
    for config in configs:
        if not applies_to_mesh(config):
            message = (
                f"VirtualService {config.name} is for gateways only (no `mesh` among them) and changes nothing here"
            )
            report.info(NO_EFFECT, message, config.position("gateways"))
            continue
        for index, name in enumerate(config.spec["hosts"]):
            other = owners.setdefault(fqdn(name, config.namespace), config)
            if other is not config:
                place = config.position("hosts", index)
                message = f"host {name} is already in VirtualService {other.namespace}/{other.name}, which applies"
                report.warning(CONFLICTING_HOSTS, message, place)


def check_reachability(config: Config, report: Report) -> None:
    """Report rules and matches that earlier ones shadow."""
    earlier: list[tuple[int, Mapping[str, Any]]] = []
    for index, http in enumerate(config.spec["http"]):
        matches: list[Mapping[str, Any]] = http.get("match") or [{}]
        hidden = [(number, by) for number, match in enumerate(matches) if (by := _shadow(match, earlier)) is not None]
        if len(hidden) == len(matches):
            share = _lost(http)
            message = (
                f"http rule {index + 1} is never reached: rule {hidden[0][1] + 1} takes all of its requests"
                f"{share}; put the more specific rule first, or join them into one rule with weights"
            )
            report.warning(UNREACHABLE_RULE, message, config.position("http", index))
        else:
            for number, by in hidden:
                message = (
                    f"match {number + 1} of http rule {index + 1} is never reached: rule {by + 1} takes its requests"
                )
                report.warning(INEFFECTIVE_MATCH, message, config.position("http", index, "match", number))
            _check_duplicates(config, index, matches, {number for number, _ in hidden}, report)
        earlier += [(index, match) for match in matches]


def _lost(http: Mapping[str, Any]) -> str:
    """Return who gets nothing because a rule is never reached."""
    names = [
        item["destination"]["host"]
        + (f" subset {item['destination']['subset']}" if "subset" in item["destination"] else "")
        for item in http.get("route", ())
    ]
    return f", so {' and '.join(names)} get{'s' if len(names) == 1 else ''} 0 % of the traffic from it" if names else ""


def _check_duplicates(
    config: Config, index: int, matches: Sequence[Mapping[str, Any]], hidden: set[int], report: Report
) -> None:
    seen: list[tuple[int, Mapping[str, Any]]] = []
    for number, match in enumerate(matches):
        if number not in hidden and (by := _shadow(match, seen)) is not None:
            message = f"match {number + 1} of http rule {index + 1} adds nothing to match {by + 1}"
            report.warning(INEFFECTIVE_MATCH, message, config.position("http", index, "match", number))
        seen.append((number, match))


def _shadow(match: Mapping[str, Any], earlier: Sequence[tuple[int, Mapping[str, Any]]]) -> int | None:
    """Return the number of the first earlier match that takes all requests of this one."""
    return next((number for number, other in earlier if _covers(other, match)), None)


def _covers(wide: Mapping[str, Any], narrow: Mapping[str, Any]) -> bool:
    """Tell whether every request of the narrow match is one of the wide; when unsure, no."""
    if wide.get("gateways", []) != narrow.get("gateways", []):
        return False
    if is_catch_all(wide):
        return True
    one = {name: value for name, value in wide.items() if name not in _NAMES and value not in ({}, [], False)}
    two = {name: value for name, value in narrow.items() if name not in _NAMES and value not in ({}, [], False)}
    if one.get("ignoreUriCase") != two.get("ignoreUriCase"):
        return False
    uri, other = one.pop("uri", None), two.pop("uri", None)
    if uri is not None and not _covers_uri(uri, other):
        return False
    for name, value in one.items():
        if isinstance(value, Mapping) and name in ("headers", "withoutHeaders", "queryParams"):
            if any(two.get(name, {}).get(key) != item for key, item in value.items()):
                return False
        elif two.get(name) != value:
            return False
    return True


def _covers_uri(wide: Mapping[str, Any], narrow: Mapping[str, Any] | None) -> bool:
    if narrow is None:
        return bool(wide.get("prefix") == "/")
    if wide == narrow:
        return True
    if "prefix" in wide:
        text = narrow.get("prefix", narrow.get("exact"))
        return wide["prefix"] == "/" or (text is not None and str(text).startswith(wide["prefix"]))
    return False


def check_references(configs: Mapping[str, Sequence[Config]], instances: Sequence[Instance], report: Report) -> None:
    """Report destinations whose subset or host nothing defines."""
    rules: dict[str, set[str]] = {}
    for rule in configs["DestinationRule"]:
        host = fqdn(rule.spec["host"], rule.namespace)
        rules.setdefault(host, set()).update(_subset_names(rule))
    wildcards = [pattern for pattern in rules if pattern.startswith("*")]
    known = {fqdn(one.service, one.namespace) for one in instances} | rules.keys()
    known |= {host for entry in configs["ServiceEntry"] for host in entry.spec["hosts"]}
    for config in configs["VirtualService"]:
        own = {fqdn(name, config.namespace) for name in config.spec["hosts"]}
        for destination, path in _destinations(config):
            host = fqdn(destination["host"], config.namespace)
            subset = destination.get("subset", "")
            applying = [rules[pattern] for pattern in wildcards if host_matches(pattern, host)]
            applying += [rules[host]] if host in rules else []
            if subset and applying:
                names = set().union(*applying)
                if subset not in names:
                    hint = suggestion(subset, tuple(sorted(names)))
                    message = f"subset {subset} of {destination['host']} is in no DestinationRule{hint}"
                    report.error(REFERENCE_NOT_FOUND, message, config.position(*path, "subset"))
            elif subset:
                message = (
                    f"subset {subset} of {destination['host']}: no DestinationRule for that host defines it; requests fail "
                    "until one does"
                )
                report.warning(REFERENCE_NOT_FOUND, message, config.position(*path, "subset"))
            elif host not in known | own and (instances or not split_service(host)):
                message = f"host {destination['host']}: no instance is registered and no ServiceEntry defines it{_near(host, known)}"
                report.warning(REFERENCE_NOT_FOUND, message, config.position(*path, "host"))


def _subset_names(rule: Config) -> set[str]:
    """Return the names as written: one wrong subset is no reason to complain about routes to the others."""
    spec = rule.document.content.get("spec")
    subsets = spec.get("subsets") if isinstance(spec, dict) else None
    names = (item.get("name") for item in subsets if isinstance(item, dict)) if isinstance(subsets, list) else ()
    return {name for name in names if isinstance(name, str)}


def _near(host: str, known: set[str]) -> str:
    if (alias := f"{host}.svc.cluster.local") in known:
        return f"; write {alias}, since a host with a dot is not completed"
    return suggestion(host, tuple(sorted(known)))


def _destinations(config: Config) -> list[tuple[Mapping[str, Any], tuple[str | int, ...]]]:
    """Return each destination with its path within the spec."""
    result: list[tuple[Mapping[str, Any], tuple[str | int, ...]]] = []
    for index, http in enumerate(config.spec["http"]):
        for word in ("route", "mirrors"):
            for number, item in enumerate(http.get(word, ())):
                result.append((item["destination"], ("http", index, word, number, "destination")))
        if "mirror" in http:
            result.append((http["mirror"], ("http", index, "mirror")))
    return result


def check_rules(configs: Sequence[Config], report: Report) -> None:
    """Report DestinationRules in a namespace where they are for nobody."""
    for config in configs:
        parts = split_service(fqdn(config.spec["host"], config.namespace))
        if parts and "*" not in parts[0] and config.namespace not in (parts[1], ROOT_NAMESPACE):
            message = (
                f"DestinationRule {config.name} is in namespace {config.namespace} and its host's service in {parts[1]}; "
                f"it has no effect there. Move it to {parts[1]} or to {ROOT_NAMESPACE}"
            )
            report.warning(OTHER_NAMESPACE, message, config.position("host"))
