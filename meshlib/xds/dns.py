"""DNS clusters: when a name is looked up again, which of its addresses count, and what is kept of the answer before.

Source: Envoy 1.40, `DnsClusterImpl`; what an empty answer means is checked beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

from meshlib.model.cluster import DnsDiscovery
from meshlib.model.dns import DnsAnswer, DnsPace, DnsQuestion, DnsRecords, LookupFamily
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint
from meshlib.ports import Rng

__all__ = [
    "DnsWish",
    "answer_after",
    "dns_hosts",
    "in_order",
    "is_ipv6",
    "of_family",
    "spare_addresses",
    "wait_s",
    "with_addresses",
]

MIN_WAIT_S: Final = 0.05
"""Look-ups are threads of this process, and Envoy lets a management server ask for one every 2 ms."""
MAX_TTL_S: Final = 86400.0
"""As caching resolvers have it: a record that is good for years is most likely a slip."""
MAX_ADDRESSES: Final = 16
"""Of a logical host; one at a time is used."""
NO_ADDRESSES: Final = "the name has no addresses"


@dataclass(frozen=True, slots=True)
class DnsWish:
    """A name to keep resolved."""

    question: DnsQuestion
    pace: DnsPace

    def joined(self, other: "DnsWish") -> "DnsWish":
        """Return the wish that serves both, of equal questions: no wait is longer than either wants it.

        The order in which wishes are joined makes no difference.
        """
        one, two = self.pace, other.pace
        if one == two:
            return self
        (base, most), (other_base, other_most) = _windows_s(one), _windows_s(two)
        pace = DnsPace(
            min(one.refresh_s, two.refresh_s),
            min(one.jitter_s, two.jitter_s),
            min(base, other_base),
            min(most, other_most),
            one.needs_addresses or two.needs_addresses,
        )
        return DnsWish(self.question, pace)


def _windows_s(pace: DnsPace) -> tuple[float, float]:
    """Return the first and the largest window of the waits after failures."""
    base_s = pace.failure_base_s
    if base_s is None:
        return pace.refresh_s, pace.refresh_s
    return base_s, 10 * base_s if pace.failure_max_s is None else pace.failure_max_s


def wait_s(pace: DnsPace, failures: int, ttl_s: float | None, rng: Rng) -> float:
    """Return the seconds until the next look-up.

    After a success the time that the answer is good, else `refresh_s`, with jitter on top. After failures `refresh_s`
    too, or a random time below a window that doubles from `failure_base_s` up to `failure_max_s`.

    Args:
        failures: In a row until now; 0: the last look-up did not fail.
        ttl_s: Of the answer; 0 or None: it does not say.
    """
    if not failures:
        usual_s = min(ttl_s, MAX_TTL_S) if ttl_s else pace.refresh_s
        return max(MIN_WAIT_S, usual_s + rng.random() * pace.jitter_s)
    base_s, most_s = _windows_s(pace)
    # 2 ** 40 times a millisecond is over any window that a duration can say.
    window_s = min(base_s * (1 << min(failures - 1, 40)), most_s)
    return max(MIN_WAIT_S, window_s * (1.0 if pace.failure_base_s is None else rng.random()))


def is_ipv6(address: str) -> bool:
    return ":" in address


def of_family(addresses: Iterable[str], family: LookupFamily, *, has_ipv6: bool = True) -> tuple[str, ...]:
    """Return the addresses that count, in their order.

    Args:
        has_ipv6: This machine has a route for IPv6. Without one AUTO takes IPv4 first, which Envoy does not. It does so
            too where the IPv6 addresses are this machine's own: servers on laptops seldom listen there.
    """
    every = tuple(addresses)
    four = tuple(address for address in every if not is_ipv6(address))
    six = tuple(address for address in every if is_ipv6(address))
    match family:
        case LookupFamily.V4_ONLY:
            return four
        case LookupFamily.V6_ONLY:
            return six
        case LookupFamily.V4_PREFERRED:
            return four or six
        case LookupFamily.AUTO:
            is_usable = has_ipv6 and any(address != "::1" for address in six)
            return (six or four) if is_usable else (four or six)
        case LookupFamily.ALL:
            return every


def in_order(before: Iterable[str], found: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses found, those that were there before first: servers turn the order of their answers round."""
    known, now = tuple(before), tuple(dict.fromkeys(found))
    there = set(now)
    return tuple(address for address in known if address in there) + tuple(
        address for address in now if address not in known
    )


def answer_after(before: DnsAnswer | None, records: DnsRecords | None, error: str) -> DnsAnswer:
    """Return what is known after a look-up.

    Args:
        records: None: it failed, and what was known before stays in use.
        error: Why it failed.
    """
    addresses, last = ((), ()) if before is None else (before.addresses, before.last)
    if records is None:
        return DnsAnswer(addresses, error, last)
    if not records.addresses:
        return DnsAnswer((), NO_ADDRESSES, addresses or last)
    return DnsAnswer(in_order(addresses or last, records.addresses))


def dns_hosts(assignment: ClusterLoadAssignment) -> frozenset[str]:
    """Return the names among the hosts of endpoints."""
    return frozenset(
        endpoint.host for locality in assignment.localities for endpoint in locality.endpoints if _is_name(endpoint)
    )


def with_addresses(dns: DnsDiscovery, answers: Mapping[str, DnsAnswer]) -> ClusterLoadAssignment:
    """Return the endpoints of a cluster with what their names resolve to: each address is one, of the same locality,
    priority, weight and metadata; of LOGICAL_DNS the first alone.

    Args:
        answers: By host; absent: none yet.
    """
    localities = tuple(
        replace(
            locality,
            endpoints=tuple(
                found for endpoint in locality.endpoints for found in _resolved(endpoint, dns.logical, answers)
            ),
        )
        for locality in dns.assignment.localities
    )
    return replace(dns.assignment, localities=localities)


def _resolved(endpoint: Endpoint, logical: bool, answers: Mapping[str, DnsAnswer]) -> Iterable[Endpoint]:
    if not _is_name(endpoint):
        yield replace(endpoint, logical_host=endpoint.address) if logical else endpoint
        return
    answer = answers.get(endpoint.host)
    if answer is None:
        return
    # Sorted, so that all processes have their endpoints in one order; which is the first of a logical host is left to
    # the server, that tells different clients different ones.
    for address in (answer.addresses or answer.last)[:1] if logical else sorted(answer.addresses):
        yield _at(endpoint, address, logical=logical)


def spare_addresses(dns: DnsDiscovery, answers: Mapping[str, DnsAnswer]) -> tuple[Endpoint, ...]:
    """Return the addresses of a logical host after its first, as endpoints like that one."""
    if not dns.logical:
        return ()
    return tuple(
        _at(endpoint, address, logical=True)
        for locality in dns.assignment.localities
        for endpoint in locality.endpoints
        if (answer := answers.get(endpoint.host)) is not None
        for address in (answer.addresses or answer.last)[1:MAX_ADDRESSES]
    )


def _at(endpoint: Endpoint, address: str, *, logical: bool) -> Endpoint:
    text = f"[{address}]" if is_ipv6(address) else address
    return replace(
        endpoint,
        address=f"{text}:{endpoint.port}",
        hostname=endpoint.hostname or endpoint.host,
        logical_host=endpoint.address if logical else "",
    )


def _is_name(endpoint: Endpoint) -> bool:
    if endpoint.address.startswith("unix:"):
        return False
    try:
        ip_address(endpoint.host)
    except ValueError:
        return True
    return False
