"""When an attempt's time is over, and how far it had come."""

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Final

from meshlib.ports import Clock

__all__ = ["AttemptTimeouts", "Hold", "Until"]

FAR_S: Final = 1e6
"""No limit, for what needs a moment. About what a socket takes for a time-out."""


class Hold:
    """How another thread ends a blocking attempt: its socket is shut down under it.

    A step that is not one on a socket of ours (waiting for a connection, making one) goes on to its own end.
    """

    __slots__ = ("_lock", "_socket", "is_cancelled")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_cancelled = False

    def enter(self, used: socket.socket) -> bool:
        """Begin a step on a socket; False: the attempt was cancelled."""
        with self._lock:
            self._socket = used
            return not self.is_cancelled

    def leave(self) -> None:
        """End the step."""
        with self._lock:
            self._socket = None

    def cancel(self) -> None:
        """End the attempt; any number of times."""
        with self._lock:  # so that the socket is not closed, and its number another's, meanwhile
            self.is_cancelled = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Past ssl.SSLSocket's own, which takes the session away from the thread that reads.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Until(float):
    """A time-out that ends at a moment, for operations that take several steps on a socket.

    As a float it is the time that was left when it was made.
    """

    __slots__ = ("_clock", "cap_s", "deadline", "hold")

    cap_s: float | None
    deadline: float
    hold: Hold | None
    _clock: Clock

    @classmethod
    def at(cls, deadline: float, clock: Clock, cap_s: float | None = None, hold: Hold | None = None) -> "Until":
        """Make a time-out.

        Args:
            deadline: Monotonic seconds.
            cap_s: The longest that one step may take; None: as long as there is time left.
            hold: By which another thread may end the step; None: nobody does.
        """
        left = deadline - clock()
        self = cls(max(0.0, left if cap_s is None else min(left, cap_s)))
        self.deadline = deadline
        self._clock = clock
        self.cap_s = cap_s
        self.hold = hold
        return self

    def left(self) -> float:
        """Return the seconds that the next step may take; 0.0 or less: the time is over."""
        left = self.deadline - self._clock()
        return left if self.cap_s is None else min(left, self.cap_s)


class AttemptTimeouts:
    """The `timeout` extension of one attempt, and a record of how far it came.

    httpcore asks for each time-out when it begins the step that the time-out is for, so no trace callback is needed to
    know whether a connection was made or any byte sent. The whole attempt ends at one moment, whatever httpx's own
    time-outs (which are per operation) allow.

    Attributes:
        has_connected: A new connection was asked for, or the server began to answer; else the attempt ran on a connection
            from before, which may have been dead.
        has_sent: Bytes of the request may have left.
        sent_at: When a body that the application was still making had been sent, in monotonic seconds; None: not yet, or
            no time runs from then.
        is_idle: The latest reading may last no longer than the idle timeout, and nothing else is shorter.
    """

    __slots__ = (
        "_base",
        "_clock",
        "_connect_s",
        "_deadline",
        "_hold",
        "_idle_s",
        "_pending_s",
        "_until",
        "has_connected",
        "has_sent",
        "is_idle",
        "sent_at",
    )

    def __init__(
        self,
        base: Mapping[str, float | None],
        *,
        timeout_s: float | None,
        connect_timeout_s: float,
        clock: Clock,
        after_body: bool = False,
        whole_at: float | None = None,
        hold: Hold | None = None,
        now: float | None = None,
    ) -> None:
        """Begin an attempt.

        Args:
            base: httpx's time-outs.
            timeout_s: For the whole attempt; None: no limit.
            connect_timeout_s: For the connection with its TLS handshake.
            after_body: The time runs from the end of the request body. For bodies that the application is still making:
                Envoy's time-outs too start when the request is complete.
            whole_at: With `after_body`: when all must be over, in monotonic seconds; None: no limit.
            hold: As for `Until.at`.
            now: When it begins; None: as the clock says.
        """
        self._base = base
        self._clock = clock
        self._connect_s = connect_timeout_s
        if timeout_s is None or after_body:
            self._deadline = whole_at
        else:
            self._deadline = (clock() if now is None else now) + timeout_s
        self._pending_s = timeout_s if after_body else None
        self.sent_at: float | None = None
        self._hold = hold
        self._idle_s: float | None = None  # between two pieces of a response body
        self._until: Until | None = None  # most steps have the same time-out
        self.is_idle = False
        self.has_connected = False
        self.has_sent = False

    @property
    def is_over(self) -> bool:
        """The attempt's time has run out."""
        if self._hold is not None and self._hold.is_cancelled:
            return True
        return self._deadline is not None and self._clock() >= self._deadline

    def left(self) -> float | None:
        """Return the seconds that the attempt has left; None: no limit, or none yet."""
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())

    def begin_body(self, deadline: float | None, idle_s: float | None = None) -> None:
        """Response headers are there: what follows is subject to httpx's own time-outs and the call's.

        Args:
            deadline: Of the call, in monotonic seconds; None: no limit. Envoy's time-outs include the response body.
            idle_s: Seconds in which something must come; None: no limit.
        """
        self._deadline = deadline
        self._pending_s = None
        self._idle_s = idle_s

    def begin_again(self) -> None:
        """The same attempt starts over on a fresh connection, in the time that it has left."""
        self.has_connected = False
        self.has_sent = False

    def rush(self, seconds: float) -> None:
        """Give what remains of the exchange `seconds`, whatever was said before."""
        self._deadline = self._clock() + seconds

    def step_s(self, name: str) -> float | None:
        """As `get`, for a `write` or `read` that begins now and asks the socket once: mostly a mere number."""
        deadline = self._deadline
        if deadline is None or self._hold is not None or self._idle_s is not None or self._pending_s is not None:
            return self.get(name)
        if name == "write":
            self.has_sent = True
        limit = self._base.get(name)
        left = deadline - self._clock()
        if left > 0.0:
            if limit is None or left < limit:
                return left
            if limit > 0.0:
                return limit
        return self.get(name)  # there is no time

    def get(self, name: str, default: float | None = None) -> float | None:
        """Return the seconds that the step `connect`, `write`, `read` or `pool` may take; None: no limit."""
        limit = self._base.get(name, default)
        if name == "connect":
            self.has_connected = True
            connect_s = self._connect_s if limit is None else min(limit, self._connect_s)
            end = self._clock() + connect_s
            return Until.at(end if self._deadline is None else min(end, self._deadline), self._clock)
        if name == "write":
            self.has_sent = True
        elif name == "read":
            if self._pending_s is not None:
                self.sent_at = self._clock()
                ends_at = self.sent_at + self._pending_s
                self._deadline = ends_at if self._deadline is None else min(ends_at, self._deadline)
                self._pending_s = None
            idle_s = self._idle_s
            if idle_s is not None:
                self.is_idle = limit is None or idle_s < limit
                limit = idle_s if limit is None else min(limit, idle_s)
        if self._deadline is None:
            if self._hold is not None:
                return Until.at(self._clock() + FAR_S, self._clock, limit, self._hold)
            return limit
        until = self._until
        if until is None or until.deadline != self._deadline or until.cap_s != limit:
            until = self._until = Until.at(self._deadline, self._clock, limit, self._hold)
        return until
