"""Tells management servers the load of the clusters that came from them (LRS). Everything on the control thread.

A stream exists while a cluster of its server wants to be reported, on the channel of the server's aggregated stream and
only while that is up. What is counted while there is none is told later.
"""

from collections.abc import Callable, Iterable
from functools import partial

from meshlib.ports import Clock, Rng
from meshlib.runtime.ads import Stream, StreamEvents
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.runtime.server_links import ServerLinks
from meshlib.xds.backoff import ReconnectBackoff
from meshlib.xds.bootstrap import NodeConfig, ServerConfig
from meshlib.xds.load_report import ClusterLoad, LoadReporting
from meshlib.xds.load_wire import decode_load_response, encode_load_hello, encode_load_reports

__all__ = ["LoadReporter", "OpenLoadStream"]

OpenLoadStream = Callable[[ServerConfig, Stream, StreamEvents], Stream | None]
"""Opens a stream on the channel of another; None: that has none yet."""


class _Session:
    """Reports to one server; its own stream's events, as those of streams given up are dropped."""

    def __init__(self, server: ServerConfig) -> None:
        self.server = server
        self.machine = LoadReporting()
        self.backoff = ReconnectBackoff()
        self.stream: Stream | None = None
        self.events: _Events | None = None
        self.opened_at = 0.0
        self.retry: Timer | None = None
        self.tick: Timer | None = None
        self.is_sending = False


class _Events:
    """One stream's voice."""

    def __init__(self, reporter: "LoadReporter", session: _Session, scheduler: Scheduler) -> None:
        self._reporter, self._session, self._scheduler = reporter, session, scheduler

    def sent(self) -> None:
        self._scheduler.post(partial(self._reporter.on_sent, self._session, self))

    def received(self, data: bytes, done: Callable[[], None]) -> None:
        done()
        self._scheduler.post(partial(self._reporter.on_received, self._session, self, data))

    def ended(self, reason: str, *, is_unimplemented: bool = False) -> None:
        self._scheduler.post(partial(self._reporter.on_ended, self._session, self))


class LoadReporter:
    """Keeps the streams of load reports up that are needed."""

    def __init__(
        self,
        node: NodeConfig,
        links: ServerLinks,
        *,
        scheduler: Scheduler,
        clock: Clock,
        rng: Rng,
        loads: Callable[[], Iterable[ClusterLoad]],
        open_stream: OpenLoadStream,
    ) -> None:
        """Make a reporter without streams.

        Args:
            loads: Returns what is counted now, in the view in use.
        """
        self._node = node
        self._links = links
        self._scheduler = scheduler
        self._clock = clock
        self._rng = rng
        self._current = loads
        self._open_stream = open_stream
        self._loads: dict[ClusterLoad, ServerConfig] = {}
        self._sessions: dict[ServerConfig, _Session] = {}

    def step(self) -> None:
        """Look what is to be reported to whom, after anything that may have changed that."""
        current = frozenset(self._current())
        if not current and not self._loads:
            return
        for load in current:
            server = self._links.server_of(load.cluster)
            if server is not None:
                self._loads[load] = server
        for load in [load for load in self._loads if load not in current and load.is_idle]:
            del self._loads[load]
        wanted = frozenset(self._loads.values())
        for server in self._sessions.keys() - wanted:
            self._end(self._sessions.pop(server))
        for server in wanted:
            self._open(self._sessions.setdefault(server, _Session(server)))

    def close(self) -> None:
        """End all streams. What is counted is kept."""
        for session in self._sessions.values():
            self._end(session)
        self._sessions.clear()

    # What streams say.

    def on_sent(self, session: _Session, events: _Events) -> None:
        if events is session.events and session.is_sending:
            session.is_sending = False
            self._start_timer(session, session.machine.interval_s)

    def on_received(self, session: _Session, events: _Events, data: bytes) -> None:
        if events is not session.events:
            return
        demand = decode_load_response(data)
        if demand is not None:
            self._start_timer(session, session.machine.received(demand))

    def on_ended(self, session: _Session, events: _Events) -> None:
        if events is not session.events:
            return
        had_response = session.machine.has_response
        lifetime_s = self._clock() - session.opened_at
        self._end(session)
        delay_s = (
            session.backoff.after_success(lifetime_s) if had_response else session.backoff.after_failure(self._rng)
        )
        session.retry = self._scheduler.later(delay_s, partial(self._retry, session))

    # Parts of the above.

    def _retry(self, session: _Session) -> None:
        session.retry = None
        self.step()

    def _open(self, session: _Session) -> None:
        if session.stream is not None or session.retry is not None:
            return
        link = self._links.links.get(session.server)
        if link is None or link.stream is None or not link.status.is_up:
            return
        events = _Events(self, session, self._scheduler)
        stream = self._open_stream(session.server, link.stream, events)
        if stream is None:
            return
        session.stream, session.events, session.opened_at = stream, events, self._clock()
        session.machine.opened()
        stream.send(encode_load_hello(self._node))

    def _end(self, session: _Session) -> None:
        stream, session.stream, session.events = session.stream, None, None
        session.is_sending = False
        if stream is not None:
            stream.close()
        for timer in (session.retry, session.tick):
            if timer is not None:
                timer.cancel()
        session.retry = session.tick = None

    def _start_timer(self, session: _Session, delay_s: float | None) -> None:
        if delay_s is None:
            return
        if session.tick is not None:
            session.tick.cancel()
        session.tick = self._scheduler.later(delay_s, partial(self._report, session))

    def _report(self, session: _Session) -> None:
        session.tick = None
        if session.stream is None or session.is_sending:
            return
        now = self._clock()
        # All are read, also those that nobody asked for: their counts are not to pile up.
        told = session.machine.due([load.take(now) for load, server in self._loads.items() if server == session.server])
        if told is None:
            self._start_timer(session, session.machine.interval_s)
        else:
            session.is_sending = True
            session.stream.send(encode_load_reports(told))
        self.step()  # What was only kept to be told may be done with.
