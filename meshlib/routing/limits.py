"""Which of a listener's limiting filters hold for a route, and with which configuration."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from meshlib.model.filters import LimitFilter, LimitOverrides, ListedLimit, LocalRateLimit
from meshlib.model.headers import HeaderMutation
from meshlib.routing.format import Facts
from meshlib.routing.headers import Mutator, request_mutator, response_mutator

__all__ = ["RouteLimit", "limits_of"]


@dataclass(frozen=True, slots=True)
class RouteLimit:
    """One filter as it holds for a route.

    Attributes:
        scope: Where the configuration stands: what is counted is counted for all requests of one scope together, and
            goes on when an update leaves the configuration as it was.
        refused: What a refusal's headers get; None: nothing.
        unenforced: What the headers of a request get that is only not refused; None: nothing.
    """

    scope: str
    config: LimitFilter
    is_after_fault: bool
    refused: Mutator | None = field(default=None, compare=False, repr=False)
    unenforced: Mutator | None = field(default=None, compare=False, repr=False)


def limits_of(
    listed: Iterable[ListedLimit], levels: Iterable[tuple[str, LimitOverrides]], facts: Facts
) -> tuple[RouteLimit, ...]:
    """Return the filters that hold, in their order. The most specific level that names a filter decides about it.

    Args:
        listed: The listener's.
        levels: Scope and overrides, the most specific first.

    Raises:
        ValueError: A header's format is not understood.
    """
    named = [(scope, dict(overrides)) for scope, overrides in levels if overrides]
    found = []
    for limit in listed:
        scope, config = "", limit.config
        for where, overrides in named:
            if limit.name in overrides:
                scope, config = where, overrides[limit.name]
                break
        if config is None or _is_idle(config):
            continue
        refused = unenforced = None
        if isinstance(config, LocalRateLimit):
            if config.response_headers:
                refused = response_mutator([HeaderMutation(response_add=config.response_headers)], facts)
            if config.unenforced_headers:
                unenforced = request_mutator([HeaderMutation(request_add=config.unenforced_headers)], facts)
        found.append(RouteLimit(f"{limit.name} {scope}", config, limit.is_after_fault, refused, unenforced))
    return tuple(found)


def _is_idle(config: LimitFilter) -> bool:
    return isinstance(config, LocalRateLimit) and (config.bucket is None or not config.enabled.numerator)
