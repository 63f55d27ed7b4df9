"""Header mutation filters: their own configuration and that of each level."""

from collections.abc import Mapping
from typing import Any, Final

from meshlib.model.filters import HeaderFilter, HeaderFilters, ListedHeaderFilter
from meshlib.xds.decode_common import any_type, cover, join, override_configs, unpack
from meshlib.xds.decode_headers import header_changes
from meshlib.xds.problems import Problems

__all__ = ["HEADER_FILTER_OVERRIDE", "HEADER_FILTER_TYPE", "header_filter", "header_filter_overrides"]

HEADER_FILTER_TYPE: Final = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
HEADER_FILTER_OVERRIDE: Final = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"


def header_filter(item: Any, path: str, problems: Problems, *, is_after_fault: bool) -> ListedHeaderFilter | None:
    """Decode a filter of the chain; None after an error."""
    message = unpack(item.typed_config, path, problems)
    if message is None:
        return None
    used = frozenset({"mutations", "most_specific_header_mutations_wins"})
    cover(message, path, problems, used=used, harmless=frozenset())
    own = _changes(message.mutations, join(path, "mutations"), problems)
    wins = message.most_specific_header_mutations_wins
    return ListedHeaderFilter(item.name, own, item.disabled, wins, is_after_fault)


def header_filter_overrides(configs: Mapping[str, Any], path: str, problems: Problems) -> HeaderFilters:
    """Return what `typed_per_filter_config` says about header mutation, by the filter's name; None: it is switched off.

    Any filter that is switched off is among them: of what kind one is, the listener knows.
    """
    found: dict[str, HeaderFilter | None] = {}
    for name, place, config in override_configs(configs, path):
        if config is None:
            found[name] = None
            continue
        kind = any_type(config)
        if kind == HEADER_FILTER_OVERRIDE:
            message = unpack(config, place, problems)
            if message is not None:
                cover(message, place, problems, used=frozenset({"mutations"}), harmless=frozenset())
                found[name] = _changes(message.mutations, join(place, "mutations"), problems)
    return tuple(found.items())


def _changes(message: Any, path: str, problems: Problems) -> HeaderFilter:
    cover(message, path, problems, used=frozenset({"request_mutations", "response_mutations"}), harmless=frozenset())
    return HeaderFilter(
        header_changes(message.request_mutations, join(path, "request_mutations"), problems),
        header_changes(message.response_mutations, join(path, "response_mutations"), problems),
    )
