"""What substitution formats may speak of: what is known when a route is compiled, and what a call adds to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from meshlib.model.endpoint import NO_METADATA, Endpoint
from meshlib.model.outcome import Connected
from meshlib.model.request import Headers, RequestHead
from meshlib.substitution import OF_THE_MOMENT

__all__ = ["VIA_UPSTREAM", "Facts", "Scene"]

VIA_UPSTREAM: Final = "via_upstream"
"""Details of a response that a service gave."""


@dataclass(slots=True)
class Scene:
    """What a value may speak of: a request, and what is known of its answer so far. Treat it as frozen.

    Attributes:
        head: None: its headers render as nothing.
        response: None: there is none yet.
        status: As `%RESPONSE_CODE%` has it: 0 for answers of the mesh itself.
        flag: Response flags, or empty.
        endpoint: Of the attempt that was answered; of an answer of the mesh itself, the one it would have gone to.
        attempts: 0 before the first.
        line: Status that the response has, where `status` does not say it; 0: `status` does.
        body: Of an answer of the mesh itself, while it is being formatted.
        connected: The connection that the response came over; None: it did not come over one.
    """

    head: RequestHead | None
    response: Headers | None = None
    status: int = 0
    flag: str = ""
    details: str = ""
    endpoint: Endpoint | None = None
    attempts: int = 0
    line: int = 0
    body: bytes = b""
    connected: Connected | None = None

    @property
    def is_answered(self) -> bool:
        """A service has answered: there was a connection."""
        return self.details == VIA_UPSTREAM

    def with_response(self, head: RequestHead | None, response: Headers) -> "Scene":
        """Return the same with another head and other response headers."""
        return replace(self, head=head, response=response)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a route is compiled.

    Attributes:
        cluster: None: the request names it (`cluster_header`).
        cluster_header: That header.
        metadata: filter_metadata of the route.
        host_metadata: Of the virtual host.
        met: Takes the commands that formats speak of, so that whoever compiled them knows what calls need.
        listener: Its name.
        listener_metadata: filter_metadata of the listener.
    """

    route_name: str = ""
    cluster: str | None = ""
    cluster_header: str = ""
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, hash=False)
    host_metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, hash=False)
    met: set[str] = field(default_factory=set, compare=False, repr=False)
    listener: str = ""
    listener_metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, hash=False)

    @property
    def needs_moment(self) -> bool:
        """A format speaks of what only a call's `Moment` knows."""
        return not OF_THE_MOMENT.isdisjoint(self.met)
