"""How long to wait before an attempt is repeated.

HTTP as Envoy: full jitter, in whole milliseconds. gRPC as gRFC A6: exponential with 20 % jitter either way.
"""

from collections.abc import Sequence

from meshlib.model.request import Headers
from meshlib.ports import Rng

__all__ = ["full_jitter_s", "grpc_jitter_s", "rate_limited_s"]


def _window_s(retry: int, base_s: float, max_s: float | None) -> float:
    base_s = max(base_s, 0.001)  # "Values less than 1 ms are rounded up to 1 ms."
    ceiling_s = 10 * base_s if max_s is None else max(max_s, base_s)
    # 2 ** 40 times a millisecond is over any ceiling; without the limit a long run of retries overflows a float.
    return min(base_s * (1 << min(retry - 1, 40)), ceiling_s)


def full_jitter_s(retry: int, base_s: float, max_s: float | None, rng: Rng) -> float:
    """Return a whole number of milliseconds, uniform in [0, base * 2 ** (retry - 1)), the window capped.

    Args:
        retry: 1 for the first retry.
        base_s: First window; at least 1 ms is used.
        max_s: Largest window; None: ten times the base.

    Source: Envoy, `JitteredExponentialBackOffStrategy`: the default waits are 0-24, 0-49, 0-99, 0-199, 0-249 ms.
    """
    window_ms = round(_window_s(retry, base_s, max_s) * 1000)
    return int(rng.random() * window_ms) / 1000


def grpc_jitter_s(retry: int, base_s: float, max_s: float | None, rng: Rng) -> float:
    """Return `min(base * 2 ** (retry - 1), max)` times a random factor in [0.8, 1.2).

    Source: gRFC A6 with its 2023 change of the jitter; fields as in A44.
    """
    return _window_s(retry, base_s, max_s) * (0.8 + 0.4 * rng.random())


def rate_limited_s(
    headers: Headers, reset_headers: Sequence[tuple[str, bool]], max_s: float, wall_now: float, rng: Rng
) -> float | None:
    """Return how long a server asks to wait in its response, with up to half as much on top; None: it does not say.

    Args:
        reset_headers: Name, and whether it holds a time of day instead of seconds; the first that can be used counts.
        max_s: Longer waits are not believed.
        wall_now: Seconds since the epoch.

    Source: Envoy, `RetryStateImpl::parseRateLimitedResetInterval`, `JitteredLowerBoundBackOffStrategy`.
    """
    for name, is_time in reset_headers:
        text = (headers.get(name) or "").strip()
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            continue
        interval_ms = int(text) * 1000
        if is_time:
            interval_ms -= int(wall_now * 1000)
        if 1 < interval_ms <= max_s * 1000:
            return (interval_ms + int(rng.random() * (interval_ms // 2))) / 1000
    return None
