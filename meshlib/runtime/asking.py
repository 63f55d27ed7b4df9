"""Answering who asks for a target: at once where it is known, and with a bounded wait where it is not."""

from abc import ABC, abstractmethod
from typing import Final

from meshlib.errors import DeadlineExceeded, MeshError, RoutingError, UnavailableError
from meshlib.model.request import RequestHead
from meshlib.model.snapshot import ConfigFault, Snapshot
from meshlib.options import check_number, check_type
from meshlib.ports import Clock
from meshlib.runtime.context import remaining_s
from meshlib.runtime.control import ControlPlane
from meshlib.runtime.wait import Waiters
from meshlib.view import TargetView, View
from meshlib.xds.bootstrap import Bootstrap
from meshlib.xds.names import listener_name

__all__ = ["FIRST_USE_TIMEOUT_S", "TargetDesk"]

FIRST_USE_TIMEOUT_S: Final = 15.0
"""Envoy's and gRPC's time for a first resource."""
ON_DEMAND_S: Final = 5.0
"""How long a request waits for what is subscribed to because of it: Envoy's time for clusters on demand."""
MAX_PARKED: Final = 1000
"""Requests that wait for such; further ones are answered with what is there."""
MAX_NAMES: Final = 10_000
"""Authorities whose listener name is remembered: a client that makes up host names must not grow without end."""


class TargetDesk(ABC):
    """The part of a mesh that its clients ask for targets. Whoever fills the view has the waiting look again."""

    def __init__(self, clock: Clock, first_use_timeout_s: float) -> None:
        # Fixed at creation.
        self.clock = clock
        self._first_use_timeout_s = first_use_timeout_s
        # One assignment each, read by everyone.
        self._control: ControlPlane | None = None
        self._is_closed = False
        self._is_dormant = True
        self._view = View(Snapshot(), {}, {})
        self._names: dict[str, str] = {}
        self._waiters = Waiters()
        self._parked: list[None] = []

    @property
    @abstractmethod
    def bootstrap(self) -> Bootstrap:
        """The bootstrap."""

    @abstractmethod
    def start(self) -> None:
        """Start what has not been started yet."""

    def target(self, authority: str) -> TargetView | None:
        """Return the target of an authority if it is known and usable right now; never blocks.

        Raises:
            RoutingError: The management server says that it does not exist.
            UnavailableError: Its configuration cannot be used, or the mesh is closed.
        """
        if self._is_dormant:
            self._wake()
        name = self._names.get(authority)
        if name is None:
            name = self._name(authority)
        found = self._view.targets.get(name)
        return found if type(found) is TargetView and not found.warming else self._usable(name)

    def wait_target(self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False) -> TargetView:
        """Subscribe to a target if need be, and wait until it is usable; None: the mesh's default time.

        Args:
            fails_fast: Not any longer when no management server can be reached.

        Raises:
            RoutingError: The management server says that it does not exist.
            DeadlineExceeded: The request that is being served meanwhile has no time left.
            UnavailableError: It was not there in time; the text says what is missing and how the server is.
        """
        name, timeout_s = self._subscribe(authority, timeout_s)
        found = self._waiters.wait(lambda: self._awaited(name, fails_fast), timeout_s, self.clock)
        if found is None:
            raise self.not_ready(f"service {authority!r}", name, timeout_s)
        return found

    async def wait_target_async(
        self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False
    ) -> TargetView:
        """As `wait_target`, without blocking the event loop."""
        name, timeout_s = self._subscribe(authority, timeout_s)
        found = await self._waiters.wait_async(lambda: self._awaited(name, fails_fast), timeout_s, self.clock)
        if found is None:
            raise self.not_ready(f"service {authority!r}", name, timeout_s)
        return found

    def meet(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """Have what a request needs subscribed to, and wait until there is an answer, for a bounded time.

        Args:
            target: As `target` returned it.
            head: The request.
            timeout_s: What the caller has left; None: no limit of its own.

        Returns:
            The target with it; or the target as it is then, whose routes answer the request with what they have.
        """
        wait_s = self._begin_to_meet(target, head, timeout_s)
        if wait_s is None:
            return target
        try:
            return self._waiters.wait(lambda: self._met(target.name, head), wait_s, self.clock) or self._now(target)
        finally:
            self._parked.pop()

    async def meet_async(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """As `meet`, without blocking the event loop."""
        wait_s = self._begin_to_meet(target, head, timeout_s)
        if wait_s is None:
            return target
        try:
            found = await self._waiters.wait_async(lambda: self._met(target.name, head), wait_s, self.clock)
            return found or self._now(target)
        finally:
            self._parked.pop()

    def wait_ready(self, *services: str, timeout_s: float | None = None) -> None:
        """Subscribe to services and wait until all of them are usable, so that no first call has to.

        Services that do not exist yet are waited for too: processes of a mesh start in any order.

        Args:
            *services: As written in URLs and targets, e.g. `checkout` or `checkout:8080`. None given: all that were
                used so far.
            timeout_s: For all of them together; None: the mesh's default.

        Raises:
            RoutingError: The time is over, and one does not exist.
            UnavailableError: One was not there in time, or cannot be used.
        """
        for service in services:
            check_type("wait_ready: a service", service, str)
        check_number("wait_ready: timeout_s", timeout_s, least=0, none=True)
        limit_s = self._first_use_timeout_s if timeout_s is None else timeout_s
        deadline = self.clock() + limit_s
        for service in services:
            self._subscribe(service, None, keep=True)
        names = [self._name(service) for service in services] or sorted(self._running().targets)
        for name in names:
            remaining_s = max(0.0, deadline - self.clock())
            found = self._waiters.wait(lambda name=name: self._ready(name), remaining_s, self.clock)  # type: ignore[misc]
            if found is None and self._usable(name) is None:
                raise self.not_ready(f"target {name!r}", name, limit_s)

    # Parts of the above.

    def _wake(self) -> None:
        if self._is_closed:
            raise UnavailableError("the mesh is closed")
        self.start()

    def _running(self) -> ControlPlane:
        if self._is_dormant:
            self._wake()
        if self._control is None:
            raise UnavailableError("the mesh is disabled (MESHLIB_DISABLE=1): it knows no services")
        return self._control

    def _name(self, authority: str) -> str:
        # gRPC targets with an authority of their own (`xds://authority/name`) come as they are.
        xds_authority, _, path = authority.removeprefix("xds://").partition("/")
        if path and authority.startswith("xds://"):
            name = listener_name(self.bootstrap, path, xds_authority=xds_authority)
        else:
            name = listener_name(self.bootstrap, authority)
        self._names[authority] = name
        if len(self._names) > MAX_NAMES:
            self._names = {authority: name}
        return name

    def _begin_to_meet(self, target: TargetView, head: RequestHead, timeout_s: float | None) -> float | None:
        """Ask for what a request needs; returns how long it may wait, or None if it need not or must not."""
        unmet, wished = target.unmet(head), target.wished(head)
        if unmet or wished:
            self._running().demand(target.name, unmet | wished)
        if not unmet:
            return None
        # Adding and taking away are one step each; a few more than the limit would do no harm.
        if len(self._parked) >= MAX_PARKED:
            return None
        self._parked.append(None)
        asked_s = target.config.listener.on_demand_timeout_s
        limits = (
            self._first_use_timeout_s,
            ON_DEMAND_S if asked_s is None else asked_s,
            timeout_s,
            remaining_s(self.clock()),
        )
        return min(limit for limit in limits if limit is not None)

    def _met(self, name: str, head: RequestHead) -> TargetView | None:
        """Return the target if it has an answer to everything that a request needs; else ask for the rest."""
        found = self._usable(name)
        if found is None:
            return None
        unmet = found.unmet(head)
        if unmet:
            # What came leads to more: a scope to routes that have the cluster named by a header.
            self._running().demand(name, unmet)
            return None
        return found

    def _now(self, target: TargetView) -> TargetView:
        return self._usable(target.name) or target

    def _ready(self, name: str) -> TargetView | None:
        found = self._view.targets.get(name)
        return None if isinstance(found, ConfigFault) or found is None or found.is_warming else found

    def _usable(self, name: str) -> TargetView | None:
        found = self._view.targets.get(name)
        if isinstance(found, ConfigFault):
            if found.is_absent:
                raise RoutingError(found.message, flag="NR", resource=name)
            raise UnavailableError(found.message, resource=name)
        return None if found is not None and found.warming and found.is_warming else found

    def _awaited(self, name: str, fails_fast: bool) -> TargetView | None:
        found = self._usable(name)
        if found is None and fails_fast and self._control is not None:
            text = self._control.unreachable.get(name)
            if text:
                raise UnavailableError(text, resource=name)
        return found

    def _subscribe(self, authority: str, timeout_s: float | None, *, keep: bool = False) -> tuple[str, float]:
        control = self._running()
        name = self._name(authority)
        control.watch(targets=frozenset((name,)), keep=keep)
        limit_s = self._first_use_timeout_s if timeout_s is None else timeout_s
        inbound_s = remaining_s(self.clock())
        return name, limit_s if inbound_s is None else min(limit_s, inbound_s)

    def not_ready(self, what: str, name: str, timeout_s: float) -> MeshError:
        """Return the error for something that was waited for in vain: what is missing, and how the server is."""
        control = self._control
        if self._is_closed or control is None:
            return UnavailableError("the mesh is closed", resource=name)
        missing = ", ".join(control.waiting.get(name, (f"LDS resource {name}",)))
        is_late = remaining_s(self.clock()) == 0.0  # of the request that is being served meanwhile
        kind = DeadlineExceeded if is_late else UnavailableError
        return kind(
            f"{what} is not ready after {timeout_s:g} s: waiting for {missing}; {control.describe(self.clock())}",
            resource=name,
        )
