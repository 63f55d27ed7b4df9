"""Where a client's requests go first: `localityLbSetting`, applied to endpoints for clients of one place.

Two ways, of which a DestinationRule has one:

- *Failover*: the endpoints nearest to the client come first, and the next ones get requests as those fall out. Near is
  the same zone and sub-zone, then the same zone, then the same region, then elsewhere (`failover` says where to); or
  what `failoverPriority` lists, label by label. Without outlier detection nobody would ever fall out, so then nothing is
  done; with it, this is the default.
- *Distribution*: for clients of a place, each place that is listed gets its share, the others nothing.

Source: Istio, pilot/pkg/networking/core/loadbalancer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from xds_server.model import LOCALITY_LABELS, NOWHERE, Place
from xds_server.translate.services import Endpoint, Locality

OTHER_REGION = 3


@dataclass(frozen=True, slots=True)
class LocalityGroup:
    """The endpoints of one locality that have one priority.

    Attributes:
        weight: Of the locality.
        priority: From 0, the highest, without gaps.
    """

    locality: Locality
    members: tuple[Endpoint, ...]
    weight: int
    priority: int = 0


def setting_of(policy: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the setting that is in force; None: places do not matter."""
    setting: Mapping[str, Any] = policy.get("loadBalancer", {}).get("localityLbSetting", {})
    if not setting.get("enabled", True):
        return None
    if "distribute" in setting or "outlierDetection" in policy:
        return setting
    return None


def depends_on_place(endpoints: Sequence[Endpoint], setting: Mapping[str, Any] | None) -> bool:
    """Whether clients of different places are told different things."""
    if setting is None or not endpoints:
        return False
    if "failoverPriority" in setting:
        return any("=" not in word for word in setting["failoverPriority"]) or "failover" in setting
    return "distribute" in setting or len({endpoint.locality for endpoint in endpoints}) > 1


def locality_groups(
    endpoints: Iterable[Endpoint], setting: Mapping[str, Any] | None, place: Place = NOWHERE
) -> list[LocalityGroup]:
    """Group endpoints by priority and locality, localities by name.

    Args:
        setting: In force; None: all have one priority.
        place: Of the clients.
    """
    found: dict[Locality, list[Endpoint]] = {}
    for endpoint in endpoints:
        found.setdefault(endpoint.locality, []).append(endpoint)
    groups = [_group(locality, members) for locality, members in sorted(found.items())]
    if setting is None:
        return groups
    if "distribute" in setting:
        return _distributed(groups, setting["distribute"], place)
    ranks: list[tuple[int, LocalityGroup]] = [(0, group) for group in groups]
    if "failoverPriority" in setting:
        ranks = [part for group in groups for part in _by_labels(group, setting["failoverPriority"], place)]
    if "failoverPriority" not in setting or "failover" in setting:
        # Five ranks of places within each rank of labels.
        ranks = [(rank * 5 + _distance(group.locality, setting, place), group) for rank, group in ranks]
    numbers = {rank: number for number, rank in enumerate(sorted({rank for rank, _ in ranks}))}
    placed = [replace(group, priority=numbers[rank]) for rank, group in ranks]
    return sorted(placed, key=lambda group: (group.priority, group.locality))


def _group(locality: Locality, members: Sequence[Endpoint]) -> LocalityGroup:
    return LocalityGroup(locality, tuple(members), sum(member.weight for member in members))


def _distance(locality: Locality, setting: Mapping[str, Any], place: Place) -> int:
    """Return 0 for the same place, up to 3 for another region, and 4 for one that `failover` does not name."""
    same = [ours == theirs for ours, theirs in zip(place.locality, locality, strict=True)]
    if same[0]:
        return 2 if not same[1] else 1 if not same[2] else 0
    for rule in setting.get("failover", ()):
        if rule["from"] == place.locality[0]:
            return OTHER_REGION if locality[0] == rule["to"] else OTHER_REGION + 1
    return OTHER_REGION


def _by_labels(group: LocalityGroup, words: Sequence[str], place: Place) -> list[tuple[int, LocalityGroup]]:
    """Split a locality by how many labels, from the first on, its endpoints have in common with the client."""
    ours = dict(zip(LOCALITY_LABELS, place.locality, strict=True)) | dict(place.labels)
    ranks: dict[int, list[Endpoint]] = {}
    for member in group.members:
        theirs = {**dict(zip(LOCALITY_LABELS, member.locality, strict=True)), **member.labels}
        rank = 0
        for number, word in enumerate(words):
            name, is_given, value = word.partition("=")
            if (value if is_given else ours.get(name, "")) != theirs.get(name, ""):
                rank = len(words) - number
                break
        ranks.setdefault(rank, []).append(member)
    return [(rank, _group(group.locality, members)) for rank, members in sorted(ranks.items())]


def _distributed(groups: list[LocalityGroup], rules: Sequence[Mapping[str, Any]], place: Place) -> list[LocalityGroup]:
    """Weigh the localities by the first rule for the client's place; those that it does not name are left out."""
    rule = next((rule for rule in rules if _is_in(place.locality, rule["from"])), None)
    if rule is None:
        return groups
    left, chosen = list(groups), []
    for pattern, share in rule["to"].items():
        matching = [group for group in left if _is_in(group.locality, pattern)]
        left = [group for group in left if group not in matching]
        total = sum(group.weight for group in matching)
        # "The weight is split among the matching localities by their own weight, rounded up."
        chosen += [replace(group, weight=ceil(group.weight * share / total)) for group in matching]
    return sorted(chosen, key=lambda group: group.locality)


def _is_in(locality: Locality, pattern: str) -> bool:
    """Whether a locality is `region/zone/sub_zone`, where `*` and what is left out stand for any."""
    parts = pattern.split("/")
    return all(part in ("*", "") or part == own for part, own in zip(parts, locality, strict=False))
