"""Whether repeating an attempt does no harm, and how long to wait before."""

from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.profile import Profile
from meshlib.model.request import RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.ports import Rng
from meshlib.resilience.backoff import full_jitter_s, grpc_jitter_s
from meshlib.resilience.deadline import parse_ms
from meshlib.resilience.retry import RetryRules
from meshlib.routing.table import RouteMatch

__all__ = [
    "backoff_s",
    "capped_retries",
    "grpc_pushback_s",
    "is_safe_to_hedge",
    "is_safe_to_repeat",
    "was_not_processed",
]

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""By RFC 9110, section 9.2.2."""

_NO_MORE = -1.0


def is_safe_to_repeat(outcome: Outcome, head: RequestHead, match: RouteMatch, rules: RetryRules) -> bool:
    """Whether the application can take the request twice, in case it got it the first time.

    Envoy repeats whatever the policy names, a POST after a 503 too, which may order twice. Here that takes a sign that
    it is meant: an idempotent method, an `Idempotency-Key`, or route metadata `meshlib: {retry_non_idempotent: true}`.
    A gRPC policy names status codes for a service whose methods are known to its author, so naming one is the sign.
    """
    if was_not_processed(outcome):
        return True
    if head.profile.grpc_retries:
        return rules.wants_grpc_code(outcome)
    return _is_idempotent(head, match)


def was_not_processed(outcome: Outcome) -> bool:
    """Whether the application surely never saw the attempt."""
    return isinstance(outcome, Failure) and (not outcome.request_sent or outcome.kind is FailureKind.REFUSED_STREAM)


def is_safe_to_hedge(head: RequestHead, match: RouteMatch) -> bool:
    """Whether the application can take the request twice at the same time.

    The methods of a gRPC service are known to the author of its hedge policy, so having one is the sign.
    """
    return head.profile.grpc_retries or _is_idempotent(head, match)


def _is_idempotent(head: RequestHead, match: RouteMatch) -> bool:
    if head.method in IDEMPOTENT or "idempotency-key" in head.headers:
        return True
    return match.metadata.get("meshlib", {}).get("retry_non_idempotent") is True


def grpc_pushback_s(outcome: Outcome) -> float | None:
    """Return how long a gRPC server asks to wait before a retry; None: it says nothing; negative: no retry at all.

    Source: gRFC A6, "Pushback": a negative or unparsable value means not to retry.
    """
    if not isinstance(outcome, Response) or "grpc-retry-pushback-ms" not in outcome.headers:
        return None
    wait_s = parse_ms(outcome.headers, "grpc-retry-pushback-ms")
    return _NO_MORE if wait_s is None else wait_s


def capped_retries(retries: int, profile: Profile) -> int:
    """Return how many retries there may be, whatever the policy says."""
    most = profile.max_attempts
    return retries if most is None or retries < most else most - 1


def backoff_s(retry: int, policy: RetryPolicy | None, rng: Rng, *, is_grpc: bool) -> float:
    """Return how long to wait before a retry.

    Args:
        retry: 1 for the first.
        policy: None: Envoy's defaults (the request asked for retries by header).
    """
    jitter_s = grpc_jitter_s if is_grpc else full_jitter_s
    if policy is None:
        return jitter_s(retry, 0.025, None, rng)
    return jitter_s(retry, policy.base_interval_s, policy.max_interval_s, rng)
