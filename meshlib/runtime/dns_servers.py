"""Asking name servers directly, for what the system's resolver cannot: times to live, servers of one's own, TCP.

Works as c-ares does in Envoy: the machine's hosts file comes first, then the servers. Needs dnspython (the extra
`meshlib-xds[dns]`); the decoders see to it that nobody comes here without it.
"""

from pathlib import Path
from typing import Final

import dns.exception
import dns.nameserver
import dns.rdatatype
import dns.resolver

from meshlib.model.dns import DnsQuestion, DnsRecords, DnsServers, LookupFamily
from meshlib.xds.dns import is_ipv6

__all__ = ["addresses_of_hosts_file", "ask"]

HOSTS: Final = Path("/etc/hosts")
MAX_HOSTS_BYTES: Final = 1 << 20
LONGEST_S: Final = 60.0
"""A thread waits so long at most for one kind of record, whatever the configuration says of time-outs and tries."""
DEFAULT_QUERY_TIMEOUT_S: Final = 5.0
DEFAULT_TRIES: Final = 4
"""Of Envoy's resolver, where the configuration has servers and says nothing."""

_A, _AAAA = dns.rdatatype.A, dns.rdatatype.AAAA
_ORDER: Final = {
    LookupFamily.V4_ONLY: (_A,),
    LookupFamily.V6_ONLY: (_AAAA,),
    LookupFamily.V4_PREFERRED: (_A, _AAAA),
    LookupFamily.AUTO: (_AAAA, _A),
    LookupFamily.ALL: (_A, _AAAA),
}
_BOTH: Final = frozenset({LookupFamily.ALL, LookupFamily.AUTO})
"""Of AUTO whoever uses the answer decides which family that is, as it depends on this machine's routes."""


def ask(question: DnsQuestion) -> DnsRecords:
    """Return the addresses of a name and how long they are good: the shortest time on the way, aliases included.

    Raises:
        OSError: No server gave an answer.
    """
    family = question.lookup.family
    local = addresses_of_hosts_file(question.host, HOSTS)
    if any(not _excludes(family, address) for address in local):
        return DnsRecords(local)
    resolver, servers = _resolver(question.lookup.servers), question.lookup.servers or DnsServers()
    addresses: list[str] = []
    ttls: list[int] = []
    failures: list[str] = []
    for kind in _ORDER[family]:
        try:
            answer = resolver.resolve(
                question.host, kind, tcp=servers.over_tcp, search=servers.searches, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN:
            continue
        except dns.exception.DNSException as error:
            failures.append(str(error))
            continue
        if answer.rrset is not None:
            addresses += [str(record) for record in answer.rrset]
            ttls.append(answer.chaining_result.minimum_ttl)
            if family not in _BOTH:
                break
    if failures and not addresses:
        raise OSError(failures[0])
    return DnsRecords(tuple(addresses), float(min(ttls)) if ttls else None)


def _excludes(family: LookupFamily, address: str) -> bool:
    return family is (LookupFamily.V4_ONLY if is_ipv6(address) else LookupFamily.V6_ONLY)


def _resolver(servers: DnsServers | None) -> dns.resolver.Resolver:
    """Make a resolver; the system's configuration is read each time, as it may have changed."""
    try:
        resolver = dns.resolver.Resolver()
    except dns.resolver.NoResolverConfiguration:
        resolver = dns.resolver.Resolver(configure=False)
    if servers is None:
        return resolver
    if servers.addresses and not (servers.are_spare and resolver.nameservers):
        resolver.nameservers = [_server(address) for address in servers.addresses]
    resolver.timeout = DEFAULT_QUERY_TIMEOUT_S if servers.query_timeout_s is None else servers.query_timeout_s
    tries = DEFAULT_TRIES if servers.tries is None else servers.tries
    resolver.lifetime = min(resolver.timeout * tries * max(1, len(resolver.nameservers)), LONGEST_S)
    resolver.rotate = servers.rotates
    if servers.payload_size is not None:
        resolver.use_edns(0, 0, servers.payload_size)
    return resolver


def _server(address: str) -> dns.nameserver.Nameserver:
    host, _, port = address.rpartition(":")
    return dns.nameserver.Do53Nameserver(host.strip("[]"), int(port))


def addresses_of_hosts_file(host: str, path: Path) -> tuple[str, ...]:
    """Return what the machine's own file says of a name; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_HOSTS_BYTES).decode("utf-8", "replace")
    except OSError:
        return ()
    wanted = host.lower().removesuffix(".")
    found: dict[str, None] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if any(name.lower().removesuffix(".") == wanted for name in names) and "%" not in address:
            found[address] = None
    return tuple(found)
