"""Stateful sessions: the filter's own configuration, and its overrides at routes, virtual hosts and weighted clusters."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from meshlib.model.session import (
    MadeCookie,
    SessionCookie,
    SessionEnvelope,
    SessionHeader,
    SessionPolicy,
    SessionState,
)
from meshlib.protos import from_any
from meshlib.xds.constraints import check_constraints
from meshlib.xds.decode_cluster_type import STRUCT, message_of_struct
from meshlib.xds.decode_common import any_type, cover, duration, join, override_configs, plain, unpack
from meshlib.xds.problems import Problems

__all__ = ["SESSION_OVERRIDE_TYPE", "SESSION_TYPE", "session_override", "session_policy"]

SESSION_TYPE: Final = "envoy.extensions.filters.http.stateful_session.v3.StatefulSession"
SESSION_OVERRIDE_TYPE: Final = "envoy.extensions.filters.http.stateful_session.v3.StatefulSessionPerRoute"

_STATES: Final = "envoy.extensions.http.stateful_session."
_COOKIE: Final = f"{_STATES}cookie.v3.CookieBasedSessionState"
_HEADER: Final = f"{_STATES}header.v3.HeaderBasedSessionState"
_ENVELOPE: Final = f"{_STATES}envelope.v3.EnvelopeSessionState"
_BY_NAME: Final[Mapping[str, str]] = MappingProxyType(
    {
        "envoy.http.stateful_session.cookie": _COOKIE,
        "envoy.http.stateful_session.header": _HEADER,
        "envoy.http.stateful_session.envelope": _ENVELOPE,
    }
)
_HARMLESS: Final = frozenset({"stat_prefix"})


def session_policy(message: Any, path: str, problems: Problems) -> SessionPolicy:
    """Decode a StatefulSession. Without a state there are no sessions."""
    cover(message, path, problems, used=frozenset({"session_state", "strict"}), harmless=_HARMLESS)
    state = None
    if message.HasField("session_state"):
        state = _state(message.session_state, join(path, "session_state"), problems)
    return SessionPolicy(state, is_strict=message.strict)


def session_override(configs: Mapping[str, Any], path: str, problems: Problems) -> SessionPolicy | None:
    """Return what `typed_per_filter_config` says about sessions, or None when it says nothing.

    What concerns other filters, and what is unknown, is not looked at: `fault_override` tells of those.
    """
    result: SessionPolicy | None = None
    for one in override_configs(configs, path):
        place = one.path
        if one.is_disabled and (one.kind == SESSION_OVERRIDE_TYPE or (not one.kind and "session" in one.name)):
            result = SessionPolicy()
            continue
        if one.kind != SESSION_OVERRIDE_TYPE:
            continue
        message = unpack(one.config, place, problems)
        if message is None:
            continue
        if result is not None:
            problems.error(place, "is a second filter for stateful sessions, only one is supported")
        if message.WhichOneof("override") == "stateful_session":
            result = session_policy(message.stateful_session, join(place, "stateful_session"), problems)
        else:
            result = SessionPolicy()
    return result


def _state(extension: Any, path: str, problems: Problems) -> SessionState | None:
    place = join(path, "typed_config")
    kind = any_type(extension.typed_config)
    is_struct = kind == STRUCT
    if is_struct:
        # As in Envoy, which goes by the name alone.
        kind = _BY_NAME.get(extension.name, "")
    if kind not in (_COOKIE, _HEADER, _ENVELOPE):
        problems.error(place, f"{kind or extension.name or '(none)'} is not supported")
        return None
    if is_struct:
        message = message_of_struct(kind, plain(from_any(extension.typed_config)), place, problems)
        if message is not None:
            check_constraints(message, place, problems)
    else:
        message = unpack(extension.typed_config, place, problems)
    if message is None:
        return None
    if kind == _COOKIE:
        return _cookie(message.cookie, join(place, "cookie"), problems)
    if kind == _HEADER:
        return SessionHeader(message.name.lower())
    # Another mode is a field that these protos do not know.
    cover(message, place, problems, used=frozenset({"header"}), harmless=frozenset(), strict=True)
    return SessionEnvelope(message.header.name.lower())


def _cookie(message: Any, path: str, problems: Problems) -> SessionCookie:
    cover(message, path, problems, used=frozenset({"name", "ttl", "path", "attributes"}), harmless=frozenset())
    if not message.name:
        problems.error(join(path, "name"), "must not be empty")
    ttl_s = duration(message, "ttl", path, problems) or 0.0
    attributes = tuple((attribute.name, attribute.value) for attribute in message.attributes)
    return SessionCookie(message.name, MadeCookie(int(ttl_s), message.path, attributes))
