"""Whether a call makes another attempt, and what that takes: number, permit, budget."""

from meshlib.call.endings import CallEndings
from meshlib.call.repeat import backoff_s, grpc_pushback_s, is_safe_to_repeat, was_not_processed
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.resilience.backoff import rate_limited_s

__all__ = ["RetryDecisions"]


class RetryDecisions(CallEndings):
    """The decision after an attempt that has ended, or takes too long."""

    __slots__ = ()

    def _retry_wait_s(self, outcome: Outcome, now: float) -> float | None:
        """Decide about a retry, and take its permit.

        Returns:
            Seconds to wait before; None: no retry.
        """
        rules, by_code, sent_before = self._rules, self.head.profile.grpc_retries, self._was_sent
        if isinstance(outcome, Failure):
            self._was_sent = sent_before or outcome.request_sent
            if outcome.kind is FailureKind.TIMEOUT and self._is_deadline_next:
                return None
            if not rules.wants_failure(outcome, is_grpc=by_code, sent_before=sent_before):
                return None
        else:
            if not rules.wants_response(outcome):
                return None
            self._was_sent = True
        if not self._replayable and self._was_sent:
            return None
        if self._is_repeated and self._one_layer and not was_not_processed(outcome):
            return None
        assert self.match is not None
        if self._guard_unsafe and not is_safe_to_repeat(outcome, self.head, self.match, rules):
            return None
        pushback_s = grpc_pushback_s(outcome) if by_code else None
        if pushback_s is not None and pushback_s < 0:
            return None
        is_timeout = isinstance(outcome, Failure) and outcome.kind is FailureKind.TIMEOUT
        self._is_timeout_retry = is_timeout and not self._is_stream_next
        wait_s = self._permit_s(pushback_s, now)
        retry = self._plan.retry
        if wait_s is not None and retry is not None and retry.reset_headers and isinstance(outcome, Response):
            wall_now = now + self.target.wall_offset_s
            limited_s = rate_limited_s(outcome.headers, retry.reset_headers, retry.max_reset_s, wall_now, self._rng)
            return wait_s if limited_s is None else limited_s
        return wait_s

    def _permit_s(self, pushback_s: float | None, now: float) -> float | None:
        """Take the permit of a retry.

        Args:
            pushback_s: How long the server asks to wait; None: it does not say.

        Returns:
            Seconds to wait before it; None: there is none to be had.
        """
        if self._retries_left <= 0:
            self._add_flag("URX")
            return None
        self._retries_left -= 1  # A retry that the breaker then refuses has used up its count too.
        if not self._retry_breaker.try_acquire_retry():
            self._add_flag("UO")
            return None
        self._has_retry = True
        percent = self.target.config.listener.retry_percent
        if percent < 100 and self._rng.getrandbits(64) % 100 >= percent:
            self._drop_permit()
            return None
        if not self._take_budget(now):
            self._drop_permit()
            self._add_flag("UO")
            return None
        if pushback_s is not None:
            self._backoffs = 0
            return pushback_s
        self._backoffs += 1
        return backoff_s(self._backoffs, self._plan.retry, self._rng, is_grpc=self.head.profile.grpc_retries)

    def _take_budget(self, now: float) -> bool:
        """Take what another attempt costs of the process's own budget."""
        cluster = self.cluster
        assert cluster is not None
        return cluster.account is None or cluster.account.try_take(cluster.attempts, now)
