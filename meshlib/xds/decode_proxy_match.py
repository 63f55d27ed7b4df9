"""Conditions of routes on what only a proxy has: its peer's certificate, dynamic metadata, filter state.

In a client there is no peer that connected to it, and no filter which sets metadata or state. So each of them comes to
the same for every request: to what it comes to in an Envoy that has none of that either, as Envoy 1.40 was asked.
"""

from typing import Any

from meshlib.model.matcher import ProxyCondition
from meshlib.xds.decode_common import cover, join
from meshlib.xds.decode_matcher import string_matcher
from meshlib.xds.problems import Problems

__all__ = ["proxy_conditions"]


def proxy_conditions(message: Any, path: str, problems: Problems) -> tuple[ProxyCondition, ...]:
    """Decode `tls_context`, `dynamic_metadata` and `filter_state` of a RouteMatch."""
    found = []
    if message.HasField("tls_context"):
        found += _certificate(message.tls_context)
    for index, item in enumerate(message.dynamic_metadata):
        found.append(_metadata(item, f"{join(path, 'dynamic_metadata')}[{index}]", problems))
    for index, item in enumerate(message.filter_state):
        found.append(_filter_state(item, f"{join(path, 'filter_state')}[{index}]", problems))
    return tuple(found)


def _certificate(message: Any) -> list[ProxyCondition]:
    """No certificate has been presented, and so none has been validated."""
    return [
        ProxyCondition(f"a peer whose certificate is {'' if wanted else 'not '}{name}", not wanted)
        for name in ("presented", "validated")
        if message.HasField(name)
        for wanted in (getattr(message, name).value,)
    ]


def _metadata(message: Any, path: str, problems: Problems) -> ProxyCondition:
    """What is absent fits no value, not even a null, and is not `present` whatever is asked of it."""
    cover(
        message,
        path,
        problems,
        used=frozenset({"filter", "path", "value", "invert"}),
        harmless=frozenset(),
        strict=True,
    )
    _check_value(message.value, join(path, "value"), problems)
    keys = ".".join([message.filter, *(part.key for part in message.path)])
    return ProxyCondition(f"dynamic metadata {keys}{' other than given' if message.invert else ''}", message.invert)


def _check_value(message: Any, path: str, problems: Problems) -> None:
    """Check a ValueMatcher, which nothing will ever be compared with."""
    kind = message.WhichOneof("match_pattern")
    place = join(path, str(kind))
    if kind == "string_match":
        string_matcher(message.string_match, place, problems)
    elif kind == "list_match" and message.list_match.HasField("one_of"):
        _check_value(message.list_match.one_of, join(place, "one_of"), problems)
    elif kind == "or_match":
        for index, item in enumerate(message.or_match.value_matchers):
            _check_value(item, f"{place}.value_matchers[{index}]", problems)


def _filter_state(message: Any, path: str, problems: Problems) -> ProxyCondition:
    used = frozenset({"key", "string_match", "address_match"})
    cover(message, path, problems, used=used, harmless=frozenset(), strict=True)
    if message.HasField("string_match"):
        string_matcher(message.string_match, join(path, "string_match"), problems)
    return ProxyCondition(f"filter state {message.key}", False)
