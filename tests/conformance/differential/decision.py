"""What was decided about a request, in words that both sides share."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

Pairs = tuple[tuple[str, str], ...]

# What only a proxy adds, what every connection writes anew, and our own marker.
IGNORED = frozenset(
    {
        "connection",
        "content-length",
        "date",
        "host",
        "server",
        "transfer-encoding",
        "x-case",
        "x-envoy-expected-rq-timeout-ms",
        "x-envoy-internal",
        "x-envoy-upstream-service-time",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
    }
)


def comparable(headers: Iterable[tuple[str, str]]) -> Pairs:
    """Return headers without those that may differ, sorted: the order of names is nobody's business.

    Blanks at the ends of a value do not survive a connection.
    """
    return tuple(sorted((name, value.strip(" \t")) for name, value in headers if name not in IGNORED))


@dataclass(frozen=True, slots=True)
class Decision:
    """
    Attributes:
        status: Given to the caller.
        details: Envoy's response code details of a local reply; empty: an upstream answered.
        flag: Response flags, or empty.
        route: Name of the route; empty: none.
        cluster: Where the request went; empty: nowhere.
        path: As the upstream got it, like the following two.
        started_us: When it began, in microseconds since the epoch; nothing to compare.
        headers: What the caller gets.
    """

    status: int
    details: str = ""
    flag: str = ""
    route: str = ""
    cluster: str = ""
    path: str = ""
    authority: str = ""
    request_headers: Pairs = ()
    headers: Pairs = ()
    body: str = ""
    started_us: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The configuration is not taken; reasons are for people, and differ."""

    reason: str

    @property
    def kind(self) -> str:
        """The reason without places and values, to tell one from another."""
        return re.sub(r"\[\d+\]|'[^']*'|\"[^\"]*\"", "", self.reason)[:100]


Outcome = list[Decision] | Refusal


def difference(envoy: Decision, meshlib: Decision) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two decisions differ: Envoy's value, then meshlib's."""
    one, other = asdict(envoy), asdict(replace(meshlib, started_us=envoy.started_us))
    return {name: (one[name], other[name]) for name in one if one[name] != other[name]}
