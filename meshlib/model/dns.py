"""Names of DNS clusters: how they are looked up, when again, and what they resolve to."""

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["DnsAnswer", "DnsLookup", "DnsPace", "DnsQuestion", "DnsRecords", "DnsServers", "LookupFamily"]


class LookupFamily(Enum):
    """Which addresses of a name count (Envoy's `dns_lookup_family`)."""

    AUTO = "AUTO"
    V4_ONLY = "V4_ONLY"
    V6_ONLY = "V6_ONLY"
    V4_PREFERRED = "V4_PREFERRED"
    ALL = "ALL"


@dataclass(frozen=True, slots=True)
class DnsServers:
    """Name servers that are asked, instead of the system's resolver (`CaresDnsResolverConfig`).

    Attributes:
        addresses: `ip:port`, IPv6 in brackets; empty: those of the system.
        are_spare: They are asked only where the system names none.
        over_tcp: Instead of UDP.
        searches: Short names are tried with the search domains of the system.
        query_timeout_s: What one server has for one answer; None: the system's.
        tries: Of each query; None: as many as there is time for.
        rotates: Queries go to the servers in turn, instead of to the first that answers.
        payload_size: Of answers by UDP, in bytes; None: 512.
    """

    addresses: tuple[str, ...] = ()
    are_spare: bool = False
    over_tcp: bool = False
    searches: bool = True
    query_timeout_s: float | None = None
    tries: int | None = None
    rotates: bool = False
    payload_size: int | None = None


@dataclass(frozen=True, slots=True)
class DnsLookup:
    """How the names of a cluster are looked up.

    Attributes:
        needs_ttl: The answer says how long it is good.
        is_routable: Addresses of a family that this machine has no route for do not count.
        servers: None: the system's resolver, whatever that asks.
    """

    family: LookupFamily = LookupFamily.AUTO
    needs_ttl: bool = False
    is_routable: bool = False
    servers: DnsServers | None = None


@dataclass(frozen=True, slots=True)
class DnsQuestion:
    """One name, looked up in one way. Clusters with equal questions share the answer."""

    host: str
    lookup: DnsLookup = field(default_factory=DnsLookup)

    @property
    def label(self) -> str:
        """Text that other questions do not have; with the usual options the name itself."""
        return self.host if self.lookup == _USUAL else f"{self.host} {self.lookup}"


_USUAL = DnsLookup()


@dataclass(frozen=True, slots=True)
class DnsPace:
    """When a name is looked up again.

    Attributes:
        refresh_s: Envoy's `dns_refresh_rate`, where the answer itself does not say how long it is good; default 5 s.
        jitter_s: Up to so much later, by chance.
        failure_base_s: First window of the wait after a failure; None: `refresh_s`.
        failure_max_s: Largest one; None: ten times the first.
        needs_addresses: An answer without addresses is a failure.
    """

    refresh_s: float = 5.0
    jitter_s: float = 0.0
    failure_base_s: float | None = None
    failure_max_s: float | None = None
    needs_addresses: bool = False


@dataclass(frozen=True, slots=True)
class DnsRecords:
    """What a resolver says.

    Attributes:
        addresses: IP addresses in the order of the answer; empty: there is no such name, or it has none.
        ttl_s: How long that is good; None: nobody knows.
    """

    addresses: tuple[str, ...]
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """What a name resolves to now.

    Attributes:
        addresses: IP addresses; of the last look-up that did not fail. Those that were there before come first.
        error: Why the last look-up brought none, or empty.
        last: The last addresses that there were, if there are none now.
    """

    addresses: tuple[str, ...]
    error: str = ""
    last: tuple[str, ...] = ()
