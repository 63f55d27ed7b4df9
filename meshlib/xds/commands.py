"""What a stream's machine asks of its shell, beside sending requests."""

from dataclasses import dataclass
from typing import NamedTuple

from meshlib.events import ResourceAccepted, ResourceRejected
from meshlib.xds.cache import Key
from meshlib.xds.wire import SendDelta, SendRequest

__all__ = ["CancelTimer", "Command", "DeletionIgnored", "Report", "StartExpiry", "StartTimer", "StopExpiry"]


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Command: call `timer_fired` for this resource in `delay_s` seconds. Dies with the stream."""

    key: Key
    delay_s: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """Command: that timer is not needed any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class StartExpiry:
    """Command: call `expired` for this resource at `at`, instead of any time said before. Outlives the stream.

    Attributes:
        at: Monotonic seconds.
    """

    key: Key
    at: float


@dataclass(frozen=True, slots=True)
class StopExpiry:
    """Command: this resource does not expire any more."""

    key: Key


@dataclass(frozen=True, slots=True)
class DeletionIgnored:
    """Command: say in the log that a resource stays in use although the server deleted it (A53).

    Attributes:
        is_over: It does so no more: it came back, or nobody wants it.
    """

    key: Key
    is_over: bool = False


class Report(NamedTuple):
    """Command: tell the hooks. There is one for each resource that has come."""

    event: ResourceAccepted | ResourceRejected


Command = SendRequest | SendDelta | StartTimer | CancelTimer | StartExpiry | StopExpiry | DeletionIgnored | Report
