"""Redirects that the mesh follows itself: what the blocking and the async transport share."""

import httpx
from httpx._content import ByteStream

from meshlib.call import Call, Done
from meshlib.model.outcome import Response
from meshlib.model.request import RequestHead
from meshlib.ports import Rng
from meshlib.routing.internal_redirect import InternalRedirects

__all__ = ["FollowedRedirects"]


class FollowedRedirects:
    """The redirects of one request so far."""

    __slots__ = ("_redirects", "request")

    def __init__(self, request: httpx.Request) -> None:
        self.request = request
        self._redirects = InternalRedirects()

    def next(self, call: Call, done: Done, rng: Rng, *, replayable: bool) -> RequestHead | None:
        """Return the head of the request to send instead, which is then `request`; None: the call's end is the end."""
        match, result = call.match, done.result
        if match is None or not isinstance(result, Response) or not replayable:
            return None
        policy = match.action.internal_redirect
        if policy is None or not call.head.profile.follows_redirects:
            return None
        head = self._redirects.follow(policy, match, call.sent_head, result, call.target.routes, rng)
        if head is not None and head.method != self.request.method:
            # A request without a body, to be routed by its head.
            self.request = httpx.Request(
                head.method, self.request.url, stream=ByteStream(b""), extensions=self.request.extensions
            )
        return head
