"""What limiting filters hold of a call, or of a request that came in: they are passed first, and hear how it ended.

Each sees what Envoy's filter would: an answer of the mesh itself counts like one of the service, and a request that
one filter refuses has been let in by those before it.
"""

from collections.abc import Callable
from dataclasses import replace

from meshlib.model.filters import LocalRateLimit
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.ports import Rng
from meshlib.resilience.adaptive_concurrency import ConcurrencyLimiter
from meshlib.resilience.admission_control import AdmissionController
from meshlib.resilience.classify import grpc_status_of
from meshlib.resilience.limiters import Limiter
from meshlib.resilience.rate_limit import RateLimiters
from meshlib.routing.headers import with_headers
from meshlib.routing.limits import RouteLimit

__all__ = ["Passage"]

_TEXT = (("content-type", "text/plain"),)
_UNAVAILABLE, _RESOURCE_EXHAUSTED = 14, 8


class Passage:
    """One call's way through the filters.

    Attributes:
        head: The request as it goes on; a filter may have added to it.
        response_headers: What responses get.
    """

    __slots__ = ("_entered", "_find", "_remote", "head", "response_headers")

    def __init__(self, find: Callable[[RouteLimit, float], Limiter], head: RequestHead, remote: str = "") -> None:
        """Begin.

        Args:
            find: Returns what counts for a filter.
            head: The request.
            remote: Address that it comes from; empty: it has none.
        """
        self._find = find
        self._remote = remote
        self._entered: list[tuple[AdmissionController | ConcurrencyLimiter, float]] = []
        self.head = head
        self.response_headers: tuple[tuple[str, str], ...] = ()

    def enter(self, limits: tuple[RouteLimit, ...], now: float, rng: Rng, *, after_fault: bool) -> LocalReply | None:
        """Pass the filters on one side of the fault filter.

        Returns:
            The answer of one that refuses; None: all let the request in. Either way `leave` must follow, once.
        """
        for limit in limits:
            if limit.is_after_fault is not after_fault:
                continue
            limiter = self._find(limit, now)
            match limiter:
                case RateLimiters():
                    reply = self._rate_limited(limit, limiter, now, rng)
                    if reply is not None:
                        return reply
                case AdmissionController():
                    if not limiter.admits(now, rng):
                        return LocalReply(503, "", "denied_by_admission_control", grpc_status=_UNAVAILABLE)
                    self._entered.append((limiter, now))
                case ConcurrencyLimiter(config=config):
                    if not limiter.try_acquire(now, rng):
                        details, text = "reached_concurrency_limit", b"reached concurrency limit"
                        return LocalReply(config.status, "", details, text, _TEXT, grpc_status_of(config.status))
                    self._entered.append((limiter, now))
        return None

    def leave(
        self, now: float, rng: Rng, *, status: int, grpc_status: int | None, is_grpc: bool, is_answered: bool
    ) -> None:
        """Tell the filters how the call ended; only the first time counts.

        Args:
            status: HTTP status; 0: none.
            is_answered: The caller has its answer, be it an error; else it left before.
        """
        entered, self._entered = self._entered, []
        for limiter, began_at in entered:
            if isinstance(limiter, AdmissionController):
                limiter.record(now, is_success=limiter.is_success(status, grpc_status, is_grpc=is_grpc))
            else:
                limiter.release(began_at, now, rng, is_sample=is_answered)

    def _rate_limited(self, limit: RouteLimit, limiter: RateLimiters, now: float, rng: Rng) -> LocalReply | None:
        config = limit.config
        assert isinstance(config, LocalRateLimit)
        if not _by_chance(config.enabled, rng):
            return None
        descriptors = () if limit.describe is None else limit.describe(self.head, self._remote)
        grant = limiter.take(descriptors, now)
        if config.tells_limits and grant.limit is not None:
            self.response_headers = (
                ("x-ratelimit-limit", str(grant.limit)),
                ("x-ratelimit-remaining", str(grant.remaining)),
                ("x-ratelimit-reset", str(int(grant.reset_s))),
            )
        if grant.is_granted:
            return None
        if not _by_chance(config.enforced, rng):
            if limit.unenforced is not None:
                self.head = with_headers(self.head, limit.unenforced.apply(self.head.headers, self.head))
            return None
        code = _RESOURCE_EXHAUSTED if config.is_exhaustion else _UNAVAILABLE
        reply = LocalReply(config.status, "RL", "local_rate_limited", b"local_rate_limited", _TEXT, code)
        if limit.refused is not None:
            reply = replace(reply, headers=limit.refused.apply(Headers(reply.headers), self.head).items)
        return reply


def _by_chance(share: Fraction, rng: Rng) -> bool:
    if share.numerator >= share.denominator:
        return True
    return share.numerator > 0 and rng.random() * share.denominator < share.numerator
