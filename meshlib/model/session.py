"""Stateful sessions: who brings a mark of an endpoint goes to that endpoint (Envoy's filter of that name; gRFC A55)."""

from dataclasses import dataclass

__all__ = ["MadeCookie", "SessionCookie", "SessionEnvelope", "SessionHeader", "SessionPolicy", "SessionState"]


@dataclass(frozen=True, slots=True)
class MadeCookie:
    """What a cookie says beside its name and value.

    Attributes:
        ttl_s: Its life; 0: as long as the caller's session.
        path: Empty: none is named.
        attributes: Name and value of others; an empty value is left out.
    """

    ttl_s: int = 0
    path: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class SessionCookie:
    """The mark is a cookie, which the response sets.

    Attributes:
        made: Life, path and attributes. It concerns requests below its path.
    """

    name: str
    made: MadeCookie


@dataclass(frozen=True, slots=True)
class SessionHeader:
    """The mark is a header of request and response.

    Attributes:
        name: In lower case.
    """

    name: str


@dataclass(frozen=True, slots=True)
class SessionEnvelope:
    """The mark is put before the value of a header that the service itself makes, and taken off again.

    Attributes:
        name: In lower case.
    """

    name: str


SessionState = SessionCookie | SessionHeader | SessionEnvelope


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """Attributes:
    state: None: no sessions, as where a route switches them off.
    is_strict: A request whose endpoint cannot be used fails instead of going to another one.
    """

    state: SessionState | None = None
    is_strict: bool = False
