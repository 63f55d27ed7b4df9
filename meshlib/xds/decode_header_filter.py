"""Header mutation filters: their own configuration and that of each level."""

from collections.abc import Mapping
from typing import Any, Final

from meshlib.model.filters import HeaderFilter, HeaderFilters, ListedHeaderFilter
from meshlib.model.headers import AppendAction, HeaderChange, QueryChange
from meshlib.substitution import check_format
from meshlib.xds.decode_common import cover, join, override_configs, unpack
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
    for one in override_configs(configs, path):
        name, place, config, kind = one.name, one.path, one.config, one.kind
        if one.is_disabled:
            found[name] = None
            continue
        if kind == HEADER_FILTER_OVERRIDE:
            message = unpack(config, place, problems)
            if message is not None:
                cover(message, place, problems, used=frozenset({"mutations"}), harmless=frozenset())
                found[name] = _changes(message.mutations, join(place, "mutations"), problems)
    return tuple(found.items())


def _changes(message: Any, path: str, problems: Problems) -> HeaderFilter:
    used = frozenset({"request_mutations", "query_parameter_mutations", "response_mutations"})
    # Trailers: requests have none here, and those of a response are not shown to applications.
    cover(message, path, problems, used=used, harmless=frozenset())
    request = header_changes(message.request_mutations, join(path, "request_mutations"), problems)
    query = _query(message.query_parameter_mutations, join(path, "query_parameter_mutations"), problems)
    return HeaderFilter(
        (*request, HeaderChange(query=query)) if query else request,
        header_changes(message.response_mutations, join(path, "response_mutations"), problems),
    )


def _query(messages: Any, path: str, problems: Problems) -> tuple[QueryChange, ...]:
    found = []
    for number, message in enumerate(messages):
        place = f"{path}[{number}]"
        cover(message, place, problems, used=frozenset({"append", "remove"}), harmless=frozenset())
        if message.HasField("append") == bool(message.remove):
            problems.error(place, "exactly one of append, remove is required")
        elif message.remove:
            found.append(QueryChange(message.remove))
        else:
            found.append(_query_addition(message.append, join(place, "append"), problems))
    return tuple(found)


def _query_addition(message: Any, path: str, problems: Problems) -> QueryChange:
    cover(message, path, problems, used=frozenset({"record", "entry", "action"}), harmless=frozenset())
    key = value = ""
    if message.HasField("record"):
        key = message.record.key
        if message.record.value.WhichOneof("kind") == "string_value":
            value = message.record.value.string_value
        else:
            problems.error(join(path, "record.value"), "must be a string")
    elif message.HasField("entry"):
        key, value = message.entry.key, message.entry.value.decode("utf-8", "replace")
    else:
        problems.error(join(path, "record"), "is required")
    if fault := check_format(value):
        problems.error(join(path, "record.value"), fault)
    try:
        action = AppendAction(message.action)
    except ValueError:
        problems.error(join(path, "action"), f"unknown value {message.action}")
        action = AppendAction.APPEND_IF_EXISTS_OR_ADD
    return QueryChange(key, value, action)
