"""Registered instances as leases: whoever registers renews, and what is not renewed leaves.

Two things protect clients from the server's own trouble. After a restart every lease starts anew, since nobody could
renew it meanwhile. And when more than half of a service would expire within one lifetime, the usual cause is that
renewals do not arrive, not that the instances are gone: those leases are held for one more lifetime (REP-7).
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from xds_server.model import Instance

PANIC_SHARE = 0.5
_PANIC_MINIMUM = 2


@dataclass(slots=True)
class Lease:
    """One registration.

    Attributes:
        ttl_s: Lifetime without renewal, in seconds.
        expires_at: Monotonic seconds.
        is_held: It has been given its one extra lifetime.
    """

    instance: Instance
    ttl_s: float
    expires_at: float
    is_held: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did."""

    expired: tuple[Instance, ...] = ()
    held: tuple[Instance, ...] = ()


@dataclass(slots=True)
class _Recent:
    """When instances of one service expired; older than a lifetime is forgotten."""

    times: deque[float] = field(default_factory=deque)

    def count_since(self, time: float) -> int:
        while self.times and self.times[0] < time:
            self.times.popleft()
        return len(self.times)


class Registry:
    """All leases. `now` is monotonic seconds throughout."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._at: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
        self._recent: defaultdict[tuple[str, str], _Recent] = defaultdict(_Recent)

    def __len__(self) -> int:
        return len(self._leases)

    def get(self, instance_id: str) -> Lease | None:
        return self._leases.get(instance_id)

    def at(self, address: str, port: int) -> tuple[Instance, ...]:
        """Return the instances that are registered at an address."""
        return tuple(self._leases[instance_id].instance for instance_id in sorted(self._at.get((address, port), ())))

    def leases(self) -> tuple[Lease, ...]:
        """Return all leases by id."""
        return tuple(self._leases[instance_id] for instance_id in sorted(self._leases))

    def instances(self) -> tuple[Instance, ...]:
        """Return all instances by id, so that equal content compiles to equal resources."""
        return tuple(lease.instance for lease in self.leases())

    def put(self, instance: Instance, ttl_s: float, now: float) -> bool:
        """Register or renew; returns whether clients have to be told.

        Raises:
            ValueError: The lifetime is not positive.
        """
        if ttl_s <= 0:
            raise ValueError("ttl_s must be positive")
        before = self._leases.get(instance.id)
        if before is None or before.instance != instance:
            self._drop(instance.id)
            self._at[instance.address, instance.port].add(instance.id)
        self._leases[instance.id] = Lease(instance, ttl_s, now + ttl_s)
        return before is None or before.instance != instance

    def remove(self, instance_id: str) -> bool:
        """Deregister; returns whether it was registered."""
        return self._drop(instance_id)

    def _drop(self, instance_id: str) -> bool:
        lease = self._leases.pop(instance_id, None)
        if lease is None:
            return False
        place = (lease.instance.address, lease.instance.port)
        self._at[place].discard(instance_id)
        if not self._at[place]:
            del self._at[place]
        return True

    def restore(self, leases: Iterable[tuple[Instance, float]], now: float) -> None:
        """Take over what was registered before a restart; each lease (instance, lifetime in s) starts anew."""
        for instance, ttl_s in leases:
            self.put(instance, ttl_s, now)

    def next_expiry(self) -> float | None:
        return min((lease.expires_at for lease in self._leases.values()), default=None)

    def sweep(self, now: float) -> Sweep:
        """Expire what was not renewed in time, unless too much of a service would go at once."""
        due: defaultdict[tuple[str, str], list[Lease]] = defaultdict(list)
        size: defaultdict[tuple[str, str], int] = defaultdict(int)
        for lease in self.leases():
            service = (lease.instance.namespace, lease.instance.service)
            size[service] += 1
            if lease.expires_at <= now:
                due[service].append(lease)
        expired: list[Instance] = []
        held: list[Instance] = []
        for service, leases in due.items():
            recent = self._recent[service]
            gone = recent.count_since(now - max(lease.ttl_s for lease in leases))
            total = size[service] + gone
            is_mass = total >= _PANIC_MINIMUM and (len(leases) + gone) / total > PANIC_SHARE
            for lease in leases:
                if is_mass and not lease.is_held:
                    lease.is_held = True
                    lease.expires_at = now + lease.ttl_s
                    held.append(lease.instance)
                else:
                    self._drop(lease.instance.id)
                    recent.times.append(now)
                    expired.append(lease.instance)
        for service in [service for service, recent in self._recent.items() if not recent.times]:
            del self._recent[service]
        return Sweep(tuple(expired), tuple(held))
