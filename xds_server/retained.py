"""Make before break: what has left the state but stays on a stream until its routes have changed over."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from xds_server.snapshot import Resource
from xds_server.subscription import Subscription

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

    def keep(self, type_url: str, name: str, resource: Resource) -> None:
        """Hold on to a resource as it was."""
        self._resources.setdefault(type_url, {})[name] = resource

    def drop(self, type_url: str, name: str) -> None:
        """Let one go: it is back, or nobody wants it."""
        held = self._resources.get(type_url)
        if held is not None and held.pop(name, None) is not None and not held:
            del self._resources[type_url]

    def drop_unwanted(self, subscription: Subscription) -> None:
        """Let go what a client no longer subscribes to."""
        for name in [name for name in self.of(subscription.type_url) if not subscription.wants(name)]:
            self.drop(subscription.type_url, name)

    def release(self) -> Iterable[str]:
        """Let all go, and return of which types there were some."""
        types = tuple(self._resources)
        self._resources.clear()
        return types
