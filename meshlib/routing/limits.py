"""Which of a listener's limiting filters hold for a route, and with which configuration."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from meshlib.model.descriptors import HostLimits, LimitRule
from meshlib.model.filters import LimitFilter, LimitOverrides, ListedLimit, LocalRateLimit
from meshlib.model.headers import HeaderMutation
from meshlib.routing.descriptors import Describe, compile_rules
from meshlib.routing.format import Facts
from meshlib.routing.headers import Mutator, request_mutator, response_mutator

__all__ = ["RouteLimit", "RouteRules", "limits_of"]


@dataclass(frozen=True, slots=True)
class RouteLimit:
    """One filter as it holds for a route.

    Attributes:
        scope: Where the configuration stands: what is counted is counted for all requests of one scope together, and
            goes on when an update leaves the configuration as it was.
        refused: What a refusal's headers get; None: nothing.
        unenforced: What the headers of a request get that is only not refused; None: nothing.
        describe: Makes the descriptors of a request; None: it has none.
        position: Of the filter, as in `ListedLimit`.
    """

    scope: str
    config: LimitFilter
    is_after_fault: bool
    refused: Mutator | None = field(default=None, compare=False, repr=False)
    unenforced: Mutator | None = field(default=None, compare=False, repr=False)
    describe: Describe | None = field(default=None, compare=False, repr=False)
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class RouteRules:
    """What a route and its virtual host say of descriptors.

    Attributes:
        includes_host: The virtual host's rules count in any case.
    """

    route: tuple[LimitRule, ...] = ()
    host: tuple[LimitRule, ...] = ()
    includes_host: bool = False

    def of(self, config: LocalRateLimit) -> tuple[LimitRule, ...]:
        """Return the rules that count for a filter."""
        if config.rules or not config.descriptors:
            return config.rules if config.descriptors else ()
        rules = self.route
        if (
            self.includes_host
            or config.host_limits is HostLimits.INCLUDED
            or (config.host_limits is HostLimits.OVERRIDDEN and not self.route)
        ):
            rules += self.host
        return tuple(rule for rule in rules if rule.stage == config.stage and not rule.is_off)


NO_RULES = RouteRules()


def limits_of(
    listed: Iterable[ListedLimit],
    levels: Iterable[tuple[str, LimitOverrides]],
    facts: Facts,
    rules: RouteRules = NO_RULES,
) -> tuple[RouteLimit, ...]:
    """Return the filters that hold, in their order. The most specific level that names a filter decides about it.

    Args:
        listed: The listener's.
        levels: Scope and overrides, the most specific first.
        rules: Make the descriptors of a request.

    Raises:
        ValueError: A header's format is not understood, or a regex of a rule.
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
        refused = unenforced = describe = None
        if isinstance(config, LocalRateLimit):
            if config.response_headers:
                refused = response_mutator([HeaderMutation(response_add=config.response_headers)], facts)
            if config.unenforced_headers:
                unenforced = request_mutator([HeaderMutation(request_add=config.unenforced_headers)], facts)
            describe = compile_rules(rules.of(config), facts)
        name = f"{limit.name} {scope}"
        found.append(RouteLimit(name, config, limit.is_after_fault, refused, unenforced, describe, limit.position))
    return tuple(found)


def _is_idle(config: LimitFilter) -> bool:
    if not isinstance(config, LocalRateLimit):
        return False
    return (config.bucket is None and not config.descriptors) or not config.enabled.numerator
