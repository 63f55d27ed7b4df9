"""Redirects that the mesh follows itself, so that its caller never sees them.

The new request starts over: it is routed anew in the same route configuration, with attempts counted from 1. Whatever is
not allowed leaves the caller with the redirect.

Source: Envoy, `Filter::convertRequestHeadersForInternalRedirect`.
"""

from urllib.parse import urlsplit

from meshlib.model.outcome import LocalReply, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import InternalRedirectPolicy
from meshlib.ports import Rng
from meshlib.routing.route_match import RouteMatch
from meshlib.routing.scopes import ScopeTable
from meshlib.routing.table import RouteTable

__all__ = ["InternalRedirects"]

_ORIGINAL = "x-envoy-original-url"


class InternalRedirects:
    """The redirects of one request so far."""

    __slots__ = ("_count", "_scheme", "_seen")

    def __init__(self) -> None:
        self._count = 0
        # Of the request as the caller made it: in Envoy the connection's, which redirects leave as it is.
        self._scheme = ""
        # By the route that redirects, those that it has led to.
        self._seen: dict[str, set[str]] = {}

    def follow(
        self,
        policy: InternalRedirectPolicy,
        match: RouteMatch,
        head: RequestHead,
        response: Response,
        routes: RouteTable | ScopeTable,
        rng: Rng,
    ) -> RequestHead | None:
        """Return the request to make instead; None: the caller gets the response.

        Args:
            match: The route that has the policy.
            head: As it went out.
            response: To the request, which has been sent as a whole and whose body can be sent again.
            routes: Where the new request is routed.
        """
        if response.status not in policy.codes or self._count >= policy.max_redirects:
            return None
        target = _target(response.headers.get("location") or "")
        if target is None:
            return None
        scheme, authority, path = target
        self._scheme = self._scheme or head.scheme
        is_plain = "http" in (head.scheme, self._scheme)
        if (scheme == "http") is not is_plain and not policy.allows_cross_scheme:
            return None
        if policy.is_safe_cross_scheme and is_plain and scheme == "https":
            return None
        method, items = head.method, _copied(head.headers, response.headers, policy.copied_headers)
        if response.status == 303 and method not in ("GET", "HEAD"):
            method = "GET"
            items = [item for item in items if item[0] != "content-length"]
        items = [item for item in items if item[0] != _ORIGINAL]
        items.append((_ORIGINAL, f"{self._scheme}://{head.authority}{head.path}"))
        found = RequestHead(
            method,
            authority,
            path,
            Headers(items),
            scheme=scheme,
            is_grpc=head.is_grpc,
            profile=head.profile,
            moment=head.moment,
        )
        if not self._is_accepted(policy, match.route_name, found, routes, rng):
            return None
        self._count += 1
        return found

    def _is_accepted(
        self,
        policy: InternalRedirectPolicy,
        source: str,
        found: RequestHead,
        routes: RouteTable | ScopeTable,
        rng: Rng,
    ) -> bool:
        """Whether there is a route for the new request, and the predicates accept it."""
        answer = routes.match(found, rng)
        if isinstance(answer, LocalReply) and answer.flag == "NR":
            return False
        if policy.avoids_previous_routes or policy.allowed_routes is not None:
            chosen = answer.route_name if isinstance(answer, RouteMatch) else _route_name(found, routes)
            if policy.allowed_routes is not None and chosen not in policy.allowed_routes:
                return False
            if policy.avoids_previous_routes:
                seen = self._seen.setdefault(source, set())
                if chosen in seen:
                    return False
                seen.add(chosen)
        return True


def _route_name(head: RequestHead, routes: RouteTable | ScopeTable) -> str:
    """Return the name of a route that answers by itself."""
    chosen = routes.trace(head).chosen
    return "" if chosen is None else chosen.name


def _target(location: str) -> tuple[str, str, str] | None:
    """Return scheme, authority and path of an absolute URL, without its fragment; None: it is none."""
    try:
        parts = urlsplit(location)
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        return None
    path = parts.path or "/"
    return scheme, parts.netloc, f"{path}?{parts.query}" if parts.query else path


def _copied(request: Headers, response: Headers, names: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return request headers in which some are as in the response: absent where they are absent there."""
    if not names:
        return list(request.items)
    kept = [item for item in request.items if item[0] not in names]
    return [*kept, *((name, value) for name in names for value in response.all(name))]
