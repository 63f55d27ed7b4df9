"""The host names of DNS clusters, kept resolved."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from meshlib.model.dns import DnsAnswer, DnsRecords
from meshlib.ports import Rng
from meshlib.runtime.dns import DnsLookups
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.xds.dns import DnsWish, answer_after, wait_s

__all__ = ["MIN_BETWEEN_S", "HostNames"]

MIN_BETWEEN_S: Final = 30.0
"""Between two look-ups of which the second is not due yet; gRPC's `grpc.dns_min_time_between_resolutions_ms`."""


@dataclass(slots=True)
class _Name:
    """A name that is wanted.

    Attributes:
        failures: In a row.
        answered_at: When the last look-up ended, in monotonic seconds.
        timer: None: it is being looked up.
    """

    wish: DnsWish
    failures: int = 0
    answered_at: float = 0.0
    timer: Timer | None = None


class HostNames:
    """Looks names up when they are wanted first, and again at their pace. Used by the control thread alone.

    Attributes:
        answers: By label of the question.
    """

    def __init__(
        self,
        lookups: DnsLookups,
        scheduler: Scheduler,
        rng: Rng,
        changed: Callable[[], None],
        answers: Mapping[str, DnsAnswer],
    ) -> None:
        """Make it.

        Args:
            changed: An answer is another than before.
            answers: That are known already, from before a fork.
        """
        self._lookups = lookups
        self._scheduler = scheduler
        self._rng = rng
        self._changed = changed
        self.answers = dict(answers)
        self._names: dict[str, _Name] = {}

    def want(self, wishes: Mapping[str, DnsWish]) -> None:
        """Keep these names resolved and no others. A name whose pace changes is looked up at once."""
        for label in self._names.keys() - wishes.keys():
            timer = self._names.pop(label).timer
            if timer is not None:
                timer.cancel()
        for label in self.answers.keys() - wishes.keys():
            del self.answers[label]
        for label, wish in wishes.items():
            name = self._names.get(label)
            if name is None:
                name = self._names[label] = _Name(wish)
                self._look_up(label, name)
            elif name.wish != wish:
                name.wish, name.failures = wish, 0
                if name.timer is not None:
                    name.timer.cancel()
                    self._look_up(label, name)

    def look_up_again(self, labels: Iterable[str], now: float) -> None:
        """Look names up before their time, but `MIN_BETWEEN_S` after they were looked up last.

        A name whose last look-up has failed is tried again with the pace of failures anyway.
        """
        for label in labels:
            name = self._names.get(label)
            if name is None or name.timer is None or name.failures:
                continue
            at = max(now, name.answered_at + MIN_BETWEEN_S)
            if at < name.timer.when:
                name.timer.cancel()
                name.timer = self._scheduler.later(at - now, partial(self._look_up, label, name))

    def _look_up(self, label: str, name: _Name) -> None:
        name.timer = None
        self._lookups.start(name.wish.question, partial(self._answered, label, name))

    def _answered(self, label: str, name: _Name, records: DnsRecords | None, error: str) -> None:
        if self._names.get(label) is not name:
            return  # Given up meanwhile; if it is wanted again, another look-up is under way.
        pace = name.wish.pace
        is_failure = records is None or (pace.needs_addresses and not records.addresses)
        name.failures = name.failures + 1 if is_failure else 0
        before = self.answers.get(label)
        answer = answer_after(before, records, error)
        delay_s = wait_s(pace, name.failures, None if records is None else records.ttl_s, self._rng)
        name.timer = self._scheduler.later(delay_s, partial(self._look_up, label, name))
        name.answered_at = name.timer.when - delay_s
        if answer != before:
            self.answers[label] = answer
            self._changed()
