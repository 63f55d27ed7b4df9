"""HTTP/2 to one endpoint: httpcore's pools and connections, whose requests share connections (`http2_sync.py`, `http2_async.py`).

Added to httpcore's connections is what they leave out (1.0.9), by methods of theirs that are not public, which the tests of
faults would notice to be gone:

- what a server says is checked, and breaking the protocol is the server's fault: httpcore takes a response without a
  status for a 200, and blames the caller for the rest, or lets h2's own exceptions through;
- a time-out is its request's alone: the connection takes no new requests then, and the others go on. Each has its own time,
  also while another one reads for all;
- a server that does not say how many requests it takes at once sets no limit: httpcore makes one after the other;
- a response that is there in full is given, though acknowledgements of ours do not get through any more;
- what has come over an idle connection is read before it is used again: a server that has said goodbye meanwhile, or has
  gone, gets no request;
- a stream that is given up is reset, and what was not read of it acknowledged;
- an answer that comes before its request is whole ends the request;
- trailers.
"""

import logging
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httpcore
from h2.stream import StreamState
from httpcore._trace import Trace

from meshlib.clients.http2_headers import Field

__all__ = [
    "GONE",
    "H2_CONFIG",
    "LAST_WORDS",
    "OF_STREAMS",
    "WINDOW",
    "GivenUp",
    "Trailers",
    "acknowledging",
    "body_length",
    "check_length",
    "is_answered",
    "traced",
]

# Headers are `http2_headers`' business.
H2_CONFIG: Final = h2.config.H2Configuration(
    validate_inbound_headers=False, validate_outbound_headers=False, normalize_outbound_headers=False
)
WINDOW: Final = 2**24
"""Bytes that a server may send ahead on a stream, as httpcore has it."""
GONE: Final = (httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.TimeoutException)
"""What the last words of a connection may end in."""

OF_STREAMS: Final = (
    h2.events.ResponseReceived,
    h2.events.DataReceived,
    h2.events.StreamEnded,
    h2.events.StreamReset,
)

_LOG: Final = logging.getLogger("httpcore.http2")


class _Untraced:
    """Stands for a `Trace` that nobody wants to hear of."""

    __slots__ = ()
    return_value = property(fset=lambda self, value: None)

    def __enter__(self) -> "_Untraced":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    async def __aenter__(self) -> "_Untraced":
        return self

    async def __aexit__(self, *error: object) -> None:
        pass


_UNTRACED: Final = _Untraced()


def traced(name: str, request: httpcore.Request, about: dict[str, Any]) -> Trace | _Untraced:
    """Return the block in which a step is made: whoever traces the request, or reads httpcore's log, hears of it."""
    if "trace" in request.extensions or _LOG.isEnabledFor(logging.DEBUG):
        return Trace(name, _LOG, request, about)
    return _UNTRACED


def body_length(request: httpcore.Request, response: httpcore.Response) -> int | None:
    """Return how long a response says that its body is; None: it does not, or has none."""
    if request.method == b"HEAD" or response.status in (204, 304):
        return None
    for name, value in response.headers:
        if name.lower() == b"content-length":
            return int(value)  # h2 has checked it
    return None


def check_length(declared: int | None, received: int) -> None:
    """h2 does so where the body ends the stream, but not where trailers do."""
    if declared is not None and declared != received:
        raise httpcore.RemoteProtocolError(f"the body has {received} bytes, and should have {declared}")


def is_answered(events: Iterable[Any]) -> bool:
    """Whether a server is done with a stream, be its request whole or not. Servers reset what they do not want to read."""
    return any(isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) for event in events)


class Trailers(dict[int, list[Field]]):
    """Of the streams that are open, by their ids."""

    def learn(self, events: list[Any], streams: Container[int]) -> None:
        for event in events:
            if isinstance(event, h2.events.TrailersReceived) and event.stream_id in streams:
                found = self.setdefault(event.stream_id, [])
                found += [(bytes(name), bytes(value)) for name, value in event.headers or ()]


@contextmanager
def acknowledging() -> Iterator[None]:
    """For what a reader has to say: when it does not get through, what has come is there, or about to be read, all the same."""
    try:
        yield
    except (httpcore.WriteError, h2.exceptions.ProtocolError):
        pass
    except httpcore.WriteTimeout as error:
        raise httpcore.ReadTimeout(error) from error


class GivenUp(dict[int, float]):
    """Streams that nobody wants any more, by when they were given up; the peer has the whole request and may be about to answer.

    httpcore forgets such streams, and the two ends go on counting them: after a hundred requests that were cancelled the
    connection takes no more of them, and what came for them and was not read is missing in its window for good. Others are
    reset at once. These wait until the answer begins or a moment has passed: servers have been seen to fall over a request
    that ends and is reset in the same breath.
    """

    def leave(
        self, state: h2.connection.H2Connection, stream_id: int, unread: Iterable[Any], now: float, *, is_answered: bool
    ) -> bool:
        """Give up what is left of a stream; returns whether there is something to tell the peer.

        Args:
            unread: Events of the stream that nobody has looked at.
            is_answered: There was a response.
        """
        size = sum(event.flow_controlled_length or 0 for event in unread if isinstance(event, h2.events.DataReceived))
        stream = state.streams.get(stream_id)
        is_open = stream is not None and stream.open
        if stream is not None and is_open and not is_answered:
            is_said = stream.state_machine.state is StreamState.HALF_CLOSED_LOCAL
            if is_said:
                self[stream_id] = now
                is_open = False
        with suppress(h2.exceptions.ProtocolError):  # the connection is over
            if is_open:
                state.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
            if size:
                state.acknowledge_received_data(size, stream_id)
        return is_open or size > 0

    def sweep(self, state: h2.connection.H2Connection, now: float, most: int) -> None:
        """Reset what has waited for long enough, and what is more than `most`."""
        for stream_id, at in tuple(self.items()):
            if now - at < GIVE_UP_S and len(self) <= most:
                return
            self._reset(state, stream_id)

    def heard(self, state: h2.connection.H2Connection, event: Any) -> None:
        """Something came for a stream that may be one of these."""
        if event.stream_id in self and not isinstance(event, h2.events.StreamEnded):
            self._reset(state, event.stream_id)
        self.pop(event.stream_id, None)
        if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
            with suppress(h2.exceptions.ProtocolError):
                state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _reset(self, state: h2.connection.H2Connection, stream_id: int) -> None:
        del self[stream_id]
        with suppress(h2.exceptions.ProtocolError):  # it has ended
            state.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)


GIVE_UP_S: Final = 1.0
LAST_WORDS: Final = httpcore.Request("GET", "http://localhost/", extensions={"timeout": {"write": 5.0}})
"""In whose name the peer is told that a stream is given up. Whoever gave it up must not wait for a peer that reads nothing."""
