"""Listens to the endpoints of clusters whose weights come out of band (ORCA). Everything on the control thread.

One stream per endpoint and cluster, while the cluster's policy asks for it. One that ends is opened again after a
back-off that a report resets; an endpoint that does not have the service is not asked again, until something about it
changes.

Source: gRFC A51, A58; Envoy's out-of-band reports.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

from meshlib.errors import MeshError
from meshlib.model.secret import ClientTls
from meshlib.ports import Clock, Rng
from meshlib.runtime.orca_stream import OrcaStream
from meshlib.runtime.relay import TlsRelay
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.view import ClusterState, View
from meshlib.xds.backoff import ReconnectBackoff
from meshlib.xds.orca import decode_report, encode_stream_request

__all__ = ["MAX_STREAMS", "OpenOrcaStream", "OrcaListener"]

_LOG = logging.getLogger(__name__)

MAX_STREAMS: Final = 256
"""Each is a thread and a connection. Endpoints beyond have the mean weight of the others."""


class OrcaConnection(Protocol):
    """An open stream."""

    def is_outdated(self, view: View) -> bool: ...

    def close(self) -> None: ...

    def join(self) -> None: ...


class OpenOrcaStream(Protocol):
    """Opens a stream; as `OrcaStream`."""

    def __call__(
        self,
        view: View,
        cluster: ClusterState,
        address: str,
        tls: ClientTls | None,
        request: bytes,
        relay: TlsRelay,
        *,
        received: Callable[[bytes], None],
        ended: Callable[[bool], None],
    ) -> OrcaConnection: ...


class _Key(NamedTuple):
    """What a stream is about; another value is another stream."""

    cluster: ClusterState
    address: str
    dials: tuple[str, ...]
    tls: ClientTls | None
    period_s: float


@dataclass(slots=True)
class _Session:
    backoff: ReconnectBackoff
    stream: OrcaConnection | None = None
    retry: Timer | None = None
    is_unimplemented: bool = False
    opened_at: float = 0.0
    has_report: bool = False
    number: int = 0
    # Written by the stream's thread: the report that came last, and whether the control thread knows of one. However
    # fast an endpoint reports, one waits at most.
    newest: bytes = b""
    is_told: bool = False


class OrcaListener:
    """Keeps the streams up that are needed."""

    def __init__(
        self,
        view: Callable[[], View],
        *,
        scheduler: Scheduler,
        clock: Clock,
        rng: Rng,
        open_stream: OpenOrcaStream = OrcaStream,
    ) -> None:
        """Make a listener without streams.

        Args:
            view: Returns the view in use.
        """
        self._view = view
        self._scheduler = scheduler
        self._clock = clock
        self._rng = rng
        self._open_stream = open_stream
        self._relay: TlsRelay | None = None
        self._sessions: dict[_Key, _Session] = {}
        self._has_warned = False
        self._seen: View | None = None

    def step(self) -> None:
        """Look whom to listen to, after anything that may have changed that."""
        view = self._view()
        if not view.reporting and not self._sessions:
            return
        wanted = [
            _Key(cluster, address, state.endpoint.dials, cluster.tls_for(state.endpoint), period_s)
            for cluster, period_s in view.reporting
            for address, state in cluster.states.items()
        ]
        if len(wanted) > MAX_STREAMS:
            if not self._has_warned:
                self._has_warned = True
                _LOG.warning(
                    "%d endpoints are to report their load out of band; %d are asked", len(wanted), MAX_STREAMS
                )
            wanted = wanted[:MAX_STREAMS]
        for key in self._sessions.keys() - set(wanted):
            self._end(self._sessions.pop(key))
        if view is not self._seen:
            self._seen = view
            self._renew(view)
        for key in wanted:
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = _Session(ReconnectBackoff())
                self._open(key, session)

    def _renew(self, view: View) -> None:
        """End the streams whose certificate or trust has been replaced: they are opened with the new one."""
        for key, session in tuple(self._sessions.items()):
            if session.stream is not None and session.stream.is_outdated(view):
                self._end(self._sessions.pop(key))

    def close(self) -> None:
        """End all streams; `step` opens them again."""
        ended = [session.stream for session in self._sessions.values() if session.stream is not None]
        for session in self._sessions.values():
            self._end(session)
        self._sessions.clear()
        for stream in ended:
            stream.join()
        if self._relay is not None:
            self._relay.close()
            self._relay = None

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return sum(session.stream is not None for session in self._sessions.values())

    def _open(self, key: _Key, session: _Session) -> None:
        session.retry = None
        session.number += 1
        session.opened_at = self._clock()
        session.has_report = False
        if self._relay is None:
            self._relay = TlsRelay()
        post, number = self._scheduler.post, session.number
        try:
            session.stream = self._open_stream(
                self._view(),
                key.cluster,
                key.address,
                key.tls,
                encode_stream_request(key.period_s),
                self._relay,
                received=partial(self._arrived, key, session, number),
                ended=lambda is_unimplemented: post(partial(self._ended, key, number, is_unimplemented)),
            )
        except MeshError as error:
            _LOG.debug("no load reports of %s: %s", key.address, error)
            self._again(key, session)

    def _arrived(self, key: _Key, session: _Session, number: int, data: bytes) -> None:
        """Note a report, on the stream's thread."""
        session.newest = data
        if not session.is_told:
            session.is_told = True
            self._scheduler.post(partial(self._received, key, session, number))

    def _received(self, key: _Key, session: _Session, number: int) -> None:
        session.is_told = False  # before it is read: what comes from now on is told again
        if self._sessions.get(key) is not session or session.number != number:
            return
        session.has_report = True
        report = decode_report(session.newest)
        state, learner = key.cluster.states.get(key.address), key.cluster.learner
        if report is not None and state is not None and learner is not None:
            learner.out_of_band(state, report, self._clock())

    def _ended(self, key: _Key, number: int, is_unimplemented: bool) -> None:
        session = self._sessions.get(key)
        if session is None or session.number != number:
            return
        session.stream = None
        if is_unimplemented:
            session.is_unimplemented = True
            _LOG.info("%s of cluster %s does not report its load out of band", key.address, key.cluster.name)
        else:
            self._again(key, session)

    def _again(self, key: _Key, session: _Session) -> None:
        lifetime_s = self._clock() - session.opened_at
        delay_s = (
            session.backoff.after_success(lifetime_s)
            if session.has_report
            else session.backoff.after_failure(self._rng)
        )
        session.retry = self._scheduler.later(delay_s, partial(self._open, key, session))

    def _end(self, session: _Session) -> None:
        session.number += 1
        if session.retry is not None:
            session.retry.cancel()
            session.retry = None
        if session.stream is not None:
            session.stream.close()
            session.stream = None
