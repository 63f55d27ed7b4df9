"""What there is to know of a call, while it runs and after."""

from collections.abc import Callable, Sequence

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call.limiting import Passage
from meshlib.call.report import call_error
from meshlib.errors import MeshError
from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Connected, Failure, LocalReply, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.secret import ClientTls
from meshlib.routing.format import VIA_UPSTREAM, Scene
from meshlib.routing.session import SessionMark
from meshlib.routing.table import RouteMatch
from meshlib.view import ClusterState, TargetView

__all__ = ["CallFacts", "counted", "least"]


def least(one: float | None, other: float | None) -> float | None:
    """Return the shorter of two limits, or the earlier of two moments; None: there is none."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


class CallFacts:
    """The readable side of a call; `Call` is the machine that writes it.

    Attributes:
        target: Where it goes.
        head: As the application made it.
        match: The route; None before `start`, and when there is none.
        cluster: None when there is none.
        result: Of the `Done` step; None before.
        flag: Envoy's response flags so far, comma separated; empty: none.
        body_rate: Bytes a second of the response's body, as an injected fault has it; 0: no limit.
        deadline: Monotonic seconds at which the call must be over, response body included; None: no limit.
    """

    # What every call writes has a slot; the rest has its usual value in the class, as making a call would else mean to
    # write it fifty times.
    __slots__ = ("__dict__", "_attempt_at", "_out", "_tls", "_tried", "cluster", "deadline", "head", "match", "target")

    match: RouteMatch | None
    cluster: ClusterState | None
    result: Response | Failure | LocalReply | None = None
    flag = ""
    body_rate = 0
    _tls: ClientTls | None
    # Whose attempt gave the result, where attempts ran beside each other; None: the last one's.
    _answered: EndpointState | None = None
    # How long an attempt may take, response body included; when it began is `_attempt_at`.
    _stream_try_s: float | None = None
    # Seconds, of the call.
    _timeout_s: float | None
    # When a request that is still being made must be over, whenever that may be.
    _whole_at: float | None = None
    # How long nothing may come, of the whole exchange and of an attempt.
    _idle_stream_s: float | None = None
    _idle_try_s: float | None
    # Limiting filters on the way; None: there are none.
    _passage: Passage | None = None
    # Values of `set-cookie` for the caller, made because its request had no cookie to hash.
    _cookies: Sequence[str] = ()
    # What the request brought of a stateful session that it takes part in.
    _answered_at = 0.0
    # The endpoint that a limit kept the call from.
    _refused: Endpoint | None = None
    _has_session = False
    _mark = SessionMark()

    def __init__(self, target: TargetView, head: RequestHead, deadline: float | None) -> None:
        self.target = target
        self.head = head
        # The head that goes out: the route may change it.
        self._out = head
        self.match = None
        self.cluster = None
        self.deadline = deadline
        self._tried: list[EndpointState] = []
        self._attempt_at = 0.0
        self._tls = None

    @property
    def attempts(self) -> int:
        """Number of attempts made."""
        return len(self._tried)

    @property
    def endpoint(self) -> Endpoint | None:
        """Endpoint of the attempt that gave the result, so far the last one; None: there was none."""
        if self._answered is not None:
            return self._answered.endpoint
        return self._tried[-1].endpoint if self._tried else None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses of the endpoints tried, in order."""
        tried = self._tried
        return (tried[0].address,) if len(tried) == 1 else tuple(state.address for state in tried)

    @property
    def cluster_name(self) -> str:
        """The cluster that the route names; empty when there is no route."""
        return "" if self.match is None else self.match.cluster

    @property
    def sent_head(self) -> RequestHead:
        """The head after the route's changes, without what concerns a single attempt."""
        return self._out

    @property
    def body_deadline(self) -> float | None:
        """When the response's body must be there, in monotonic seconds: the deadline, or the attempt's own before it."""
        if self._stream_try_s is None:
            return self.deadline
        return least(self.deadline, self._attempt_ends_at)

    @property
    def upload_deadline(self) -> float | None:
        """When a request that is still being made must be over, its response included, in monotonic seconds.

        Time-outs that run from the end of the request are not in it.
        """
        return least(self.deadline if self._timeout_s is None else self._whole_at, self._attempt_ends_at)

    def body_deadline_after(self, sent_at: float) -> float | None:
        """As `body_deadline`, of a request that was still being made.

        Args:
            sent_at: When it was whole.
        """
        return least(self.upload_deadline, None if self._timeout_s is None else sent_at + self._timeout_s)

    @property
    def _attempt_ends_at(self) -> float | None:
        return None if self._stream_try_s is None else self._attempt_at + self._stream_try_s

    @property
    def has_session(self) -> bool:
        """The call takes part in a stateful session."""
        return self._has_session

    @property
    def idle_s(self) -> float | None:
        """How long nothing may come of a response, in seconds; None: no limit.

        It is the idle timeout of the route, or of an attempt if that is shorter.
        """
        return least(self._idle_stream_s, self._idle_try_s)

    @property
    def is_secure(self) -> bool:
        """The last attempt was to be made over TLS."""
        return self._tls is not None

    def response_headers(self, headers: Headers, connected: Callable[[], Connected] | None = None) -> Headers:
        """Return a response's headers after the route's mutations; of a `LocalReply` they are applied already.

        Cookies that were made for the hash are among them: the caller sends them back to stay with its endpoint. As in
        Envoy they come before the mutations, which can take them away again, and not with a `LocalReply`. The mark of a
        stateful session comes after them.

        Args:
            connected: Returns the connection over which they came; asked only if there are mutations.
        """
        if self.match is None:
            return headers
        if self._cookies:
            headers = Headers((*headers.items, *(("set-cookie", cookie) for cookie in self._cookies)))
        if self.match.changes_responses:
            status = self.result.status if isinstance(self.result, Response) else 0
            about = Scene(
                self._out,
                None,
                status,
                self.flag,
                VIA_UPSTREAM,
                self.endpoint,
                self.attempts,
                connected=None if connected is None else connected(),
            )
            headers = self.match.response_headers(headers, self._out, about)
        if self.match.include_attempt_count_in_response:
            headers = counted(headers, len(self._tried))
        if self._passage is not None and self._passage.response_headers:
            headers = Headers((*headers.items, *self._passage.response_headers))
        return self.session_headers(headers) if self._has_session else headers

    def session_headers(self, headers: Headers) -> Headers:
        """Return a response's headers with the mark of its endpoint, if the route has sessions and it is news."""
        endpoint = self.endpoint
        if not self._has_session or self.match is None or self.match.session is None or endpoint is None:
            return headers
        wall_now = self._answered_at + self.target.wall_offset_s
        return self.match.session.marked(
            headers, self._mark, endpoint, self.match.cluster, wall_now, is_grpc=self.head.profile.grpc_sessions
        )

    def error(self, message: str = "", *, cause: BaseException | None = None) -> MeshError:
        """Make the exception for the caller, by what the call came to.

        Args:
            message: Instead of the one made here.
            cause: Becomes `__cause__`; None: what the transport raised, if it did.
        """
        return call_error(self, message, cause)


def counted(headers: Headers, attempts: int) -> Headers:
    """Return response headers with the number of attempts in place of any that a server wrote."""
    kept = (item for item in headers.items if item[0] != "x-envoy-attempt-count")
    return Headers((*kept, ("x-envoy-attempt-count", str(attempts))))
