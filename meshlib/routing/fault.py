"""Fault injection: whether a call is delayed, answered with an error, or both.

Runs once per call, before the first attempt, so that no retry policy of the same route repeats what it injects.

With `header_delay` and the like the request itself asks for its faults, within the configured share. Runtime values may
say something else for requests of one downstream cluster, which these name in a header.

Source: Envoy `envoy.filters.http.fault`; gRFC A33.
"""

from dataclasses import dataclass
from functools import lru_cache

from meshlib.matching import HeadTest, compile_header
from meshlib.model.matcher import Fraction, HeaderMatcher
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.route import FaultAbort, FaultDelay, FaultPolicy, FaultRateLimit
from meshlib.ports import Rng
from meshlib.routing.matchers import in_fraction
from meshlib.routing.replies import text_headers

__all__ = ["NO_FAULT", "FaultDecision", "abort_reply", "decide_fault"]

BODY = b"fault filter abort"

_NODE = "x-envoy-downstream-service-node"
_CALLER = "x-envoy-downstream-service-cluster"
_DELAY = "x-envoy-fault-delay-request"
_ABORT = "x-envoy-fault-abort-request"
_ABORT_GRPC = "x-envoy-fault-abort-grpc-request"
_RATE = "x-envoy-fault-throughput-response"
_DELAY_SHARE, _ABORT_SHARE, _RATE_SHARE = (
    f"{name}-percentage" for name in ("x-envoy-fault-delay-request", "x-envoy-fault-abort-request", _RATE)
)


@dataclass(frozen=True, slots=True)
class FaultDecision:
    """What to inject.

    Attributes:
        delay_s: To wait before anything else; 0: no delay. A delay sets the response flag `DI`.
        abort: Given to the caller after the delay; None: the call goes on.
        rate_bytes_s: Of the response's body; 0: no limit.
    """

    delay_s: float = 0.0
    abort: LocalReply | None = None
    rate_bytes_s: int = 0

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


def decide_fault(
    policy: FaultPolicy | None, head: RequestHead, rng: Rng, *, active: int = 0, cluster: str = ""
) -> FaultDecision:
    """Decide what to inject into one call; rate limit, delay and abort are drawn independently of each other.

    Conditions count for gRPC calls too (gRPC itself ignores them): they only ever narrow a fault.

    Args:
        policy: None: none.
        active: Faults in progress; at `max_active_faults` nothing more is injected.
        cluster: Where the route leads; empty: nowhere.
    """
    if policy is None:
        return NO_FAULT
    if policy.max_active is not None and active >= policy.max_active:
        return NO_FAULT
    if policy.upstream_cluster and policy.upstream_cluster != cluster:
        return NO_FAULT
    if policy.downstream_nodes and head.headers.get(_NODE) not in policy.downstream_nodes:
        return NO_FAULT
    if policy.headers and not all(test(head) for test in _tests(policy.headers)):
        return NO_FAULT
    if policy.for_callers is not None or policy.by_caller:
        policy = _for_caller(policy, head)
    delay, abort = policy.delay, policy.abort
    rate = 0 if policy.rate_limit is None or head.profile.grpc_faults else _rate(policy.rate_limit, head, rng)
    delay_s = 0.0
    if delay is not None and in_fraction(_share(delay, head, _DELAY_SHARE), rng.getrandbits(64)):
        delay_s = _asked_delay_s(delay, head) if delay.by_header else delay.fixed_s
    reply = None
    if abort is not None and in_fraction(_share(abort, head, _ABORT_SHARE), rng.getrandbits(64)):
        asked = _asked_abort(abort, head) if abort.by_header else abort
        # gRPC's clients cannot end a call by the status OK: it goes on.
        if asked is not None and not (asked.grpc_status == 0 and head.profile.grpc_faults):
            reply = abort_reply(asked)
    return FaultDecision(delay_s, reply, rate) if delay_s or reply is not None or rate else NO_FAULT


def _number(head: RequestHead, name: str) -> int | None:
    text = (head.headers.get(name) or "").strip().removeprefix("+")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _for_caller(policy: FaultPolicy, head: RequestHead) -> FaultPolicy:
    """Return what holds for requests of the downstream cluster that a request names."""
    caller = ",".join(head.headers.all(_CALLER)) if _CALLER in head.headers else None
    return policy if caller is None else policy.by_caller.get(caller, policy.for_callers or policy)


def _share(fault: FaultDelay | FaultAbort | FaultRateLimit, head: RequestHead, name: str) -> Fraction:
    """Return how often there is a fault: as often as the request wants, but no more than the configuration allows."""
    share = fault.share
    if not fault.by_header or fault.is_share_fixed:
        return share
    asked = _number(head, name)
    return share if asked is None else Fraction(min(asked, share.numerator), share.denominator)


def _asked_delay_s(delay: FaultDelay, head: RequestHead) -> float:
    asked = _number(head, _DELAY)
    if asked is None:
        return 0.0
    return asked / 1000 if delay.instead_s is None else delay.instead_s


def _asked_abort(abort: FaultAbort, head: RequestHead) -> FaultAbort | None:
    """Return what the request wants to be answered; None: nothing, or nothing that is a status.

    In Envoy the HTTP status wins over the gRPC one, in gRPC the other way round (A33).
    """
    http, grpc = _number(head, _ABORT), _number(head, _ABORT_GRPC)
    if http is not None and not 200 <= http < 600:
        http = None
    if grpc is not None and (http is None or head.profile.grpc_faults):
        return FaultAbort(abort.share, grpc_status=grpc if abort.grpc_status is None else abort.grpc_status)
    return None if http is None else FaultAbort(abort.share, http_status=abort.http_status or http)


def _rate(limit: FaultRateLimit, head: RequestHead, rng: Rng) -> int:
    """Return the bytes a second that the body may have; 0: as many as there are."""
    kib = (_number(head, _RATE) or 0) if limit.by_header else limit.kib_per_s
    return kib * 1024 if kib and in_fraction(_share(limit, head, _RATE_SHARE), rng.getrandbits(64)) else 0
