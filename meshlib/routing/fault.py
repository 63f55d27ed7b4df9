"""Fault injection: whether a call is delayed, answered with an error, or both.

Runs once per call, before the first attempt, so that no retry policy of the same route repeats what it injects.

Source: Envoy `envoy.filters.http.fault`; gRFC A33. Headers that ask for faults (`header_delay`, `header_abort`) belong
to other options and have no effect here.
"""

from dataclasses import dataclass
from functools import lru_cache

from meshlib.matching import HeadTest, compile_header
from meshlib.model.matcher import HeaderMatcher
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.route import FaultAbort, FaultPolicy
from meshlib.ports import Rng
from meshlib.routing.matchers import in_fraction
from meshlib.routing.replies import text_headers

__all__ = ["NO_FAULT", "FaultDecision", "abort_reply", "decide_fault"]

BODY = b"fault filter abort"


@dataclass(frozen=True, slots=True)
class FaultDecision:
    """What to inject.

    Attributes:
        delay_s: To wait before anything else; 0: no delay. A delay sets the response flag `DI`.
        abort: Given to the caller after the delay; None: the call goes on.
    """

    delay_s: float = 0.0
    abort: LocalReply | None = None

    @property
    def flags(self) -> tuple[str, ...]:
        """Response flags in the order in which Envoy sets them."""
        return (("DI",) if self.delay_s else ()) + (("FI",) if self.abort else ())


NO_FAULT = FaultDecision()


@lru_cache(256)
def _tests(matchers: tuple[HeaderMatcher, ...]) -> tuple[HeadTest, ...]:
    return tuple(compile_header(matcher) for matcher in matchers)


def abort_reply(abort: FaultAbort) -> LocalReply:
    """Return the answer of an abort: the HTTP status, or 200 with a gRPC status, and Envoy's text and flag `FI`."""
    return LocalReply(
        abort.http_status or 200,
        "FI",
        "fault_filter_abort",
        BODY,
        text_headers(BODY),
        grpc_status=abort.grpc_status,
    )


def decide_fault(policy: FaultPolicy | None, head: RequestHead, rng: Rng, *, active: int = 0) -> FaultDecision:
    """Decide what to inject into one call; delay and abort are drawn independently of each other.

    Header conditions count for gRPC calls too (gRPC itself ignores them): they only ever narrow a fault.

    Args:
        policy: None: none.
        active: Faults in progress; at `max_active_faults` nothing more is injected.
    """
    if policy is None:
        return NO_FAULT
    if policy.max_active is not None and active >= policy.max_active:
        return NO_FAULT
    if policy.headers and not all(test(head) for test in _tests(policy.headers)):
        return NO_FAULT
    delay, abort = policy.delay, policy.abort
    delay_s = 0.0
    if delay is not None and in_fraction(delay.share, rng.getrandbits(64)):
        delay_s = delay.fixed_s
    if abort is not None and in_fraction(abort.share, rng.getrandbits(64)):
        return FaultDecision(delay_s, abort_reply(abort))
    return FaultDecision(delay_s) if delay_s else NO_FAULT
