"""What a configuration is made of, and how a part of it is asked for.

What is met on the way is noted in a `Scope`, whether it is there or not: so it is known what to subscribe to, and which
changes make it worth the while to look again.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from meshlib.model.discovery import RuntimeLayer
from meshlib.model.dns import DnsAnswer
from meshlib.model.secret import ClientTls, Secret, SecretRef, ServerTls
from meshlib.model.snapshot import ConfigFault, Demand, HomePlace
from meshlib.xds.cache import Entry, Key, ResourceCache, ResourceState
from meshlib.xds.dns import DnsWish
from meshlib.xds.names import is_collection, normal
from meshlib.xds.resources import LEDS, SDS, SRDS, short_name

__all__ = ["DNS", "PROVIDER_PREFIX", "SECRET", "Facts", "ResourceFollower", "Scope", "provider_secret_names"]

DNS: Final = "dns"
SECRET: Final = "secret"
"""Stand in the place of a type URL: a host name to resolve, and a secret to have in the snapshot."""
PROVIDER_PREFIX: Final = "provider:"


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a configuration is made of.

    Attributes:
        targets: Names of client listeners wanted.
        inbound: Names of server listeners wanted.
        dns: By label of the question; absent: not resolved yet.
        provider_secrets: Of certificate providers, by `provider:<instance>:certificate` or `...:ca`.
        pending_providers: Certificate providers that have not answered at all yet, and may still.
        node_id: Ends every error text, so that a user can name the client to whoever runs the server.
        demands: What requests asked for, by target.
        runtime: Layers of runtime values, each over the ones before it: static ones, or names of RTDS resources.
        home: Its cluster is in the snapshot too, when there are targets; None: there is none.
    """

    cache: ResourceCache
    targets: frozenset[str]
    inbound: frozenset[str] = frozenset()
    dns: Mapping[str, DnsAnswer] = field(default_factory=dict)
    provider_secrets: Mapping[str, Secret] = field(default_factory=dict)
    node_id: str = ""
    demands: Mapping[str, frozenset[Demand]] = field(default_factory=dict)
    runtime: tuple[RuntimeLayer | str, ...] = ()
    pending_providers: frozenset[str] = frozenset()
    home: HomePlace | None = None


def provider_secret_names(instance: str) -> tuple[str, str]:
    """Return the names under which a certificate provider's certificate and roots stand in a snapshot."""
    return f"{PROVIDER_PREFIX}{instance}:certificate", f"{PROVIDER_PREFIX}{instance}:ca"


class Scope:
    """What was met on the way from one starting point.

    Attributes:
        needs: Resources by type URL and name, labels of questions as `DNS`, names of secrets as `SECRET`.
        dns: Names to keep resolved, by label of the question.
        is_volatile: Something is missing, so what comes out depends on what was there before.
    """

    __slots__ = ("dns", "is_volatile", "needs")

    def __init__(self) -> None:
        self.needs: set[Key] = set()
        self.dns: dict[str, DnsWish] = {}
        self.is_volatile = False

    def add(self, other: "Scope") -> None:
        """Note what was met on a part of the way."""
        self.needs |= other.needs
        for label, wish in other.dns.items():
            self.wish(label, wish)
        self.is_volatile = self.is_volatile or other.is_volatile

    def wish(self, label: str, wish: DnsWish) -> None:
        """Have a name kept resolved."""
        before = self.dns.get(label)
        self.dns[label] = wish if before is None else before.joined(wish)


class ResourceFollower:
    """Looks resources and secrets up, and notes in `scope` that they are needed."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.scope = Scope()
        """Of what is being followed; set by the caller."""

    # Secrets.

    def _secrets(self, *contexts: ClientTls | ServerTls | None) -> tuple[str, ...]:
        """Ask for the secrets of TLS contexts; return those which nothing is known of yet.

        A secret that cannot be had does not hold anything up: handshakes that need it fail and say so.
        """
        missing: list[str] = []
        for context in contexts:
            if context is None:
                continue
            for reference in (context.certificate, context.trust):
                missing += self._secret(reference)
        return tuple(missing)

    def _secret(self, reference: SecretRef | None) -> Iterable[str]:
        if reference is None:
            return
        if reference.provider:
            self.scope.needs.update((SECRET, name) for name in provider_secret_names(reference.provider))
            if reference.provider in self._facts.pending_providers:
                yield f"certificate provider {reference.provider}"
        if reference.sds_name:
            self.scope.needs.add((SECRET, reference.sds_name))
            if self._need(SDS, reference.sds_name) is None:
                yield f"SDS resource {reference.sds_name}"

    # Resources.

    def _need(self, type_url: str, name: str) -> object | ConfigFault | None:
        """Subscribe to a resource; return its value, its fault, or None while nothing is known."""
        name = normal(name)
        if type_url not in (SRDS, LEDS) and is_collection(name):
            # It came from a request or a configuration that means one resource, not all that there are.
            return self._fault(type_url, name, "is not the name of a resource", is_absent=True)
        self.scope.needs.add((type_url, name))
        entry = self._facts.cache.peek(type_url, name)
        if entry is None:
            return None
        if entry.value is not None:
            return entry.value
        if entry.state is ResourceState.REQUESTED:
            return None
        return self._fault(type_url, name, _reason(entry), is_absent=entry.is_absent)

    def _fault(self, type_url: str, name: str, reason: str, *, is_absent: bool = False) -> ConfigFault:
        return ConfigFault(f"{short_name(type_url)}: {name}", self._text(type_url, name, reason), is_absent)

    def _text(self, type_url: str, name: str, reason: str) -> str:
        return f"{short_name(type_url)} resource {name}: {reason}{self._node()}"

    def _node(self) -> str:
        return f" (xDS node ID:{self._facts.node_id})" if self._facts.node_id else ""


def _reason(entry: Entry) -> str:
    return f"invalid resource: {entry.error}" if entry.state is ResourceState.NACKED else entry.error
