"""Make before break: what has left the state but stays on a stream until its routes have changed over.

A client may still use such a resource, or may only be about to ask for it: it was sent routes to a cluster, and asks for
the cluster when it has acknowledged them. So what counts is what the resources name that it was sent, whether it has
asked for that or not.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from xds_server.ordering import CDS, ECDS, EDS, RDS
from xds_server.references import Reference
from xds_server.snapshot import Resource
from xds_server.subscription import Subscription

RETAINED_TYPES = (CDS, EDS, RDS, ECDS)
"""What listeners, routes and clusters name. Secrets are not here: they come and go with identities, not with states."""

Named = Callable[[Reference], Iterable[Reference]]

_NOTHING: Mapping[str, Resource] = MappingProxyType({})


class Retained:
    """Resources by type and name; false when there are none.

    Attributes:
        deadline: When they go, whatever the routes do; monotonic seconds.
    """

    def __init__(self) -> None:
        self.deadline = 0.0
        self._resources: dict[str, dict[str, Resource]] = {}

    def __bool__(self) -> bool:
        return bool(self._resources)

    def of(self, type_url: str) -> Mapping[str, Resource]:
        """Return those of a type."""
        return self._resources.get(type_url, _NOTHING)

    def keep(self, gone: Mapping[Reference, Resource], used: Iterable[Reference], named: Named) -> None:
        """Hold on to what has left the state and is used, and to what that and those held before name themselves.

        Args:
            named: Tells what the version of a resource names that the client has.
        """
        left = dict(gone)
        waiting = [*used, *self._named_by_held()]
        while waiting and left:
            reference = waiting.pop()
            if (resource := left.pop(reference, None)) is not None:
                self._hold(reference, resource)
                waiting.extend(resource.references)
                waiting.extend(named(reference))

    def drop(self, type_url: str, name: str) -> None:
        """Let one go: it is back, or nobody wants it."""
        held = self._resources.get(type_url)
        if held is not None and held.pop(name, None) is not None and not held:
            del self._resources[type_url]

    def drop_unwanted(self, subscription: Subscription, named: Collection[Reference]) -> None:
        """Let go of what a client does not subscribe to, and neither these nor the others here name."""
        kind = subscription.type_url
        for name in [name for name in self.of(kind) if not subscription.wants(name)]:
            if (kind, name) not in named and (kind, name) not in self._named_by_held():
                self.drop(kind, name)

    def release(self, needed: Iterable[Reference], named: Named) -> set[str]:
        """Let all go but what is needed and what that names, and return the types of those that go."""
        held = {(kind, name): one for kind, ones in self._resources.items() for name, one in ones.items()}
        self._resources = {}
        self.keep(held, needed, named)
        return {kind for kind, name in held if name not in self.of(kind)}

    def _hold(self, reference: Reference, resource: Resource) -> None:
        type_url, name = reference
        self._resources.setdefault(type_url, {})[name] = resource

    def _named_by_held(self) -> list[Reference]:
        return [reference for held in self._resources.values() for one in held.values() for reference in one.references]
