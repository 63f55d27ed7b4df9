"""The connection to one management server: its stream, its machine, and when to try again.

Everything runs on the control thread; the stream's own threads only post to it.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from meshlib.events import ControlPlaneConnected, ControlPlaneLost, Hook
from meshlib.ports import Clock, Pause, Rng, no_pause
from meshlib.runtime.ads import AdsEvents, Stream
from meshlib.runtime.pace import Pace
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.xds.backoff import ReconnectBackoff
from meshlib.xds.bootstrap import NodeConfig, ServerConfig
from meshlib.xds.cache import Key
from meshlib.xds.commands import CancelTimer, Command, DeletionIgnored, Report, StartExpiry, StartTimer, StopExpiry
from meshlib.xds.delta import DeltaMachine
from meshlib.xds.resources import short_name
from meshlib.xds.sotw import SotwMachine
from meshlib.xds.wire import RequestEncoder, SendDelta, SendRequest

__all__ = ["ConnectionStatus", "OpenStream", "ServerLink"]

_LOG = logging.getLogger(__name__)
OpenStream = Callable[[ServerConfig, AdsEvents], Stream]
FREE_REFUSALS: Final = 3
"""Refusals in a row that are followed by the next response at once."""
REFUSAL_WAIT_S: Final = 0.1
MAX_REFUSAL_WAIT_S: Final = 2.0
"""How long the next response is not read after refusals: at first, and at most, with doubling between. Some management
servers (go-control-plane's cache) answer a refusal with the same again, and two fast peers would do nothing else."""
SPARES_AFTER_S: Final = 2.0
"""How long a server that neither refuses nor answers may keep us from the copy on disk."""


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """How the connection to a management server is.

    Attributes:
        state: `idle`, `connecting`, `connected` (it has answered on this stream) or `lost` (waiting to try again).
        reason: Why the last stream ended, or empty.
        since: Monotonic seconds of the last change of `state`.
        failures: Streams in a row that ended without an answer.
    """

    server_uri: str
    state: str = "idle"
    reason: str = ""
    since: float = 0.0
    failures: int = 0

    @property
    def is_up(self) -> bool:
        """The server takes our requests."""
        return self.state == "connected"

    def describe(self, now: float) -> str:
        """Return a sentence for people."""
        age = f"{max(0.0, now - self.since):.1f} s"
        match self.state:
            case "connected":
                return f"connected to management server {self.server_uri} for {age}"
            case "idle":
                return f"not connected to management server {self.server_uri}"
            case _ if self.failures:
                return (
                    f"management server {self.server_uri} does not answer "
                    f"({self.failures} attempts failed, the last one: {self.reason})"
                )
            case _ if self.reason:
                return f"the stream to management server {self.server_uri} ended ({self.reason}), connecting again"
            case _:
                return f"connecting to management server {self.server_uri} for {age}, no answer yet"


class _Events:
    """One stream's voice; what comes from a stream that was given up is dropped."""

    def __init__(self, link: "ServerLink", scheduler: Scheduler) -> None:
        self._link = link
        self._scheduler = scheduler

    def sent(self) -> None:
        self._scheduler.post(partial(self._link.on_sent, self))

    def received(self, data: bytes, done: Callable[[], None]) -> None:
        self._scheduler.post(partial(self._link.on_received, self, data, done))

    def ended(self, reason: str, *, is_unimplemented: bool = False) -> None:
        self._scheduler.post(partial(self._link.on_ended, self, reason, is_unimplemented))

    def unserved(self, type_url: str, reason: str) -> None:
        self._scheduler.post(partial(self._link.on_unserved, self, type_url, reason))

    def part_ended(self, type_url: str, reason: str, *, had_response: bool) -> None:
        self._scheduler.post(partial(self._link.on_part_ended, self, type_url, reason, had_response))


class _Part:
    """The stream of one type, where each has one of its own, once it has ended while others went on."""

    def __init__(self, opened_at: float) -> None:
        self.opened_at = opened_at
        self.backoff = ReconnectBackoff()
        self.retry: Timer | None = None


class ServerLink:
    """Keeps one aggregated stream up."""

    def __init__(
        self,
        server: ServerConfig,
        node: NodeConfig,
        machine: SotwMachine | DeltaMachine,
        *,
        scheduler: Scheduler,
        clock: Clock,
        rng: Rng,
        emit: Hook,
        changed: Callable[[Callable[[], None] | None], None],
        open_stream: OpenStream,
        pace: Pace | None = None,
        pause: Pause = no_pause,
    ) -> None:
        """Make a link that is down.

        Args:
            server: Whom to talk to.
            node: Who we are.
            machine: Says what to send.
            scheduler: Of the control thread.
            clock: Monotonic seconds.
            rng: For the jitter of waits.
            emit: Takes events.
            changed: Called when something may have changed; what it is given is to be called once that is dealt with.
            open_stream: Opens a stream; returns at once.
            pace: Says when answers wait for more; None: never.
            pause: Called now and then where there is much to tell.
        """
        self.machine: SotwMachine | DeltaMachine = machine
        machine.server_uri = server.uri
        self.status = ConnectionStatus(server.uri)
        self._server = server
        self._encoder = RequestEncoder(node)
        self._scheduler = scheduler
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._changed = changed
        self._open_stream = open_stream
        self._pace = Pace() if pace is None else pace
        self._pause = pause
        self._backoff = ReconnectBackoff()
        self._stream: Stream | None = None
        self._events: _Events | None = None
        self._opened_at = 0.0
        self._retry: Timer | None = None
        self._silence: Timer | None = None
        self._is_silent = False
        self._has_told_loss = False
        self._refusals = 0
        self._timers: dict[Key, Timer] = {}
        self._expiries: dict[Key, Timer] = {}
        self._parts: dict[str, _Part] = {}

    @property
    def stream(self) -> Stream | None:
        """The stream that is open."""
        return self._stream

    @property
    def may_use_spares(self) -> bool:
        """The server does not answer, so what is on disk is the best there is."""
        return self.status.state != "connected" and (self.status.failures > 0 or self._is_silent)

    def connect(self, delay_s: float = 0.0) -> None:
        """Open the stream, now or later."""
        if self._stream is not None:
            return
        if delay_s > 0.0:
            self._cancel_retry()
            self._retry = self._scheduler.later(delay_s, self.connect)
            return
        self._retry = None
        now = self._opened_at = self._clock()
        self._set_status("connecting", self.status.reason)
        self._events = _Events(self, self._scheduler)
        server = self._server if isinstance(self.machine, DeltaMachine) else self._server.as_sotw()
        self._stream = self._open_stream(server, self._events)
        if self._silence is None:
            self._silence = self._scheduler.later(SPARES_AFTER_S, self._on_silence)
        self._do(self.machine.opened(), now)

    def disconnect(self) -> None:
        """Take the stream down. What is known stays."""
        self._cancel_retry()
        self._end_stream()
        self._refusals = 0
        self._set_status("idle", "")

    def want(self, wanted: Mapping[str, frozenset[str]]) -> None:
        """Subscribe to exactly these names."""
        self._do(self.machine.want(wanted), self._clock())

    def answer(self) -> None:
        """What came was taken into use: have the server hear so."""
        if self.machine.is_patient:
            self._do(self.machine.answer(), self._clock())

    # What the stream says.

    def on_sent(self, events: _Events) -> None:
        if events is self._events:
            self._do(self.machine.sent(), self._clock())
            if self._is_silent:
                self._judge_silence()

    def on_received(self, events: _Events, data: bytes, done: Callable[[], None]) -> None:
        if events is not self._events:
            done()
            return
        now = self._clock()
        self.machine.is_patient = self._pace.arrive(now)
        commands = self.machine.received_bytes(data, now)
        if commands is None:
            done()
            return
        self._be_connected(now)
        self._do(commands, now)
        self._pace.spend(self._clock() - now)
        self._changed(self._paced(commands, done))

    def on_ended(self, events: _Events, reason: str, is_unimplemented: bool = False) -> None:
        if events is not self._events:
            return
        had_response = self.machine.has_response or self.status.state == "connected"
        now = self._clock()
        self._end_stream()
        if is_unimplemented and not had_response and isinstance(self.machine, DeltaMachine):
            _LOG.info("management server %s does not know incremental xDS; using state of the world", self._server.uri)
            self.machine = self.machine.as_sotw()
            self.connect()
            return
        failures = 0 if had_response else self.status.failures + 1
        self.status = ConnectionStatus(self._server.uri, "lost", reason, now, failures)
        if had_response:
            delay_s = self._backoff.after_success(now - self._opened_at)
        else:
            delay_s = self._backoff.after_failure(self._rng)
        if not self._has_told_loss:
            self._has_told_loss = True
            self._emit(ControlPlaneLost(self._server.uri, reason))
        self._retry = self._scheduler.later(delay_s, self.connect)
        self._changed(None)

    def on_unserved(self, events: _Events, type_url: str, reason: str) -> None:
        if events is self._events:
            _LOG.warning("management server %s has no %s: %s", self._server.uri, short_name(type_url), reason)
            self._do(self.machine.unserved(type_url, reason), self._clock())
            self._changed(None)

    def on_part_ended(self, events: _Events, type_url: str, reason: str, had_response: bool) -> None:
        if events is not self._events:
            return
        now = self._clock()
        part = self._parts.setdefault(type_url, _Part(self._opened_at))
        if had_response:
            delay_s = part.backoff.after_success(now - part.opened_at)
        else:
            delay_s = part.backoff.after_failure(self._rng)
        _LOG.info("the stream of %s to %s ended: %s", short_name(type_url), self._server.uri, reason)
        self._do(self.machine.paused(type_url), now)
        part.retry = self._scheduler.later(delay_s, partial(self._resume, type_url, part))
        self._changed(None)

    # Parts of the above.

    def _resume(self, type_url: str, part: _Part) -> None:
        part.opened_at = self._clock()
        self._do(self.machine.resumed(type_url), part.opened_at)

    def _paced(self, commands: tuple[Command, ...], done: Callable[[], None]) -> Callable[[], None]:
        """Return what to call when a response was dealt with: it lets the next one be read, now or a little later."""
        answers = [command for command in commands if isinstance(command, SendRequest | SendDelta) and command.nonce]
        if answers:
            self._refusals = self._refusals + 1 if any(answer.error for answer in answers) else 0
        excess = self._refusals - FREE_REFUSALS
        if excess <= 0:
            return done
        wait_s = min(MAX_REFUSAL_WAIT_S, REFUSAL_WAIT_S * 2 ** min(excess - 1, 10))

        def later() -> None:
            self._scheduler.later(wait_s, done)

        return later

    def _be_connected(self, now: float) -> None:
        if self.status.state == "connected":
            return
        self._is_silent = self._has_told_loss = False
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self.status = ConnectionStatus(self._server.uri, "connected", "", now, 0)
        self._emit(ControlPlaneConnected(self._server.uri))

    def _on_silence(self) -> None:
        self._silence = None
        self._is_silent = self.status.state != "connected"
        self._judge_silence()
        self._changed(None)

    def _judge_silence(self) -> None:
        if self.machine.expects_nothing:
            # It took our requests and has nothing to add: after a reconnect, no answer is the answer.
            self._be_connected(self._clock())

    def _on_expiry(self, key: Key) -> None:
        self._expiries.pop(key, None)
        now = self._clock()
        self._do(self.machine.expired(key, now), now)
        self._changed(None)

    def _on_timer(self, key: Key) -> None:
        self._timers.pop(key, None)
        now = self._clock()
        self._do(self.machine.timer_fired(key, now), now)
        self._changed(None)

    def _end_stream(self) -> None:
        stream, self._stream, self._events = self._stream, None, None
        if stream is not None:
            stream.close()
            self._do(self.machine.closed(), self._clock())
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for part in self._parts.values():
            if part.retry is not None:
                part.retry.cancel()
        self._parts.clear()
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _set_status(self, state: str, reason: str) -> None:
        self.status = ConnectionStatus(self._server.uri, state, reason, self._clock(), self.status.failures)

    def _do(self, commands: tuple[Command, ...], now: float) -> None:
        for command in commands:
            match command:
                case Report(event=event):  # most of them are
                    self._emit(event)
                    self._pause()
                case SendRequest() | SendDelta():
                    if self._stream is not None:
                        self._stream.send(self._encoder.encode(command))
                case StartTimer(key=key, delay_s=delay_s):
                    self._timers[key] = self._scheduler.later(delay_s, partial(self._on_timer, key))
                case CancelTimer(key=key):
                    timer = self._timers.pop(key, None)
                    if timer is not None:
                        timer.cancel()
                case StartExpiry(key=key, at=at):
                    self._stop_expiry(key)
                    self._expiries[key] = self._scheduler.later(max(0.0, at - now), partial(self._on_expiry, key))
                case StopExpiry(key=key):
                    self._stop_expiry(key)
                case DeletionIgnored():
                    self._log_deletion(command)

    def _log_deletion(self, deletion: DeletionIgnored) -> None:
        what = (short_name(deletion.key[0]), deletion.key[1], self._server.uri)
        if deletion.is_over:
            _LOG.info("%s %r of %s was deleted, which was ignored; it is back, or not wanted any more", *what)
        else:
            _LOG.error("%s %r was deleted by %s, which is ignored (ignore_resource_deletion): it stays in use", *what)

    def _stop_expiry(self, key: Key) -> None:
        timer = self._expiries.pop(key, None)
        if timer is not None:
            timer.cancel()
