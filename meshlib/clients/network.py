"""Sockets for the blocking clients, with time-outs that end at a moment.

httpcore's time-outs are per operation: a peer that sends one byte a second keeps a request alive for ever, and connect
and TLS handshake get the time twice. A time-out of the kind `Until` is shortened before every step by what has passed.
Others are passed on as they are.

`meshlib.clients.network_async` is the same for event loops.
"""

import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import httpcore
import httpx

from meshlib.clients.pools import PoolKey
from meshlib.clients.timeouts import Hold, Until
from meshlib.runtime.eyeballs import Address, addresses_of, in_turns, race

__all__ = [
    "Listener",
    "SocketOption",
    "SocketStream",
    "backend_for",
    "idle_limit_s",
    "keepalive_s",
    "left_of",
]

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
WRITE_BYTES: Final = 65536
"""Written over TLS in one go to a peer that is listened to meanwhile."""
_TOLERANCE_S: Final = 0.001
"""A socket's time-out is not worth a system call when it is off by less than that."""


def left_of(timeout: float | None, expired: type[httpcore.TimeoutException]) -> float | None:
    """Return the seconds that the next step may take; None: no limit.

    Raises:
        httpcore.TimeoutException: Of the kind `expired`: none.
    """
    if not isinstance(timeout, Until):
        return timeout
    left = timeout.left()
    if left <= 0.0:  # 0 would mean "do not block" to a socket
        raise expired("the time for this attempt is over")
    return left


@contextmanager
def _mapped(expired: type[Exception], failed: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise expired(error) from error
    except OSError as error:
        raise failed(error) from error


class Listener(Protocol):
    """Who wants to hear what a peer says while it is written to."""

    @property
    def listens(self) -> bool:
        """There is a point in reading more."""

    def take(self, data: bytes) -> None:
        """Take what came; empty: the peer says nothing any more."""


class SocketStream(httpcore.NetworkStream):
    """A connected socket, with TLS or without.

    Attributes:
        wrote: The latest `write` got something off.
    """

    __slots__ = ("_limit", "_poll", "_socket", "wrote")

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._limit: float | None = -1.0  # the socket's time-out, once it was set here
        self._poll: select.poll | None = None
        self.wrote = False

    def _set_limit(self, left: float | None) -> None:
        # A system call, and mostly the same time-out as for the step before.
        limit = self._limit
        if left is None or limit is None:
            if left is limit:
                return
        elif -_TOLERANCE_S < left - limit < _TOLERANCE_S and limit > 0.0:
            return
        self._socket.settimeout(left)
        self._limit = left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            if timeout is not self._limit:
                self._set_limit(left_of(timeout, httpcore.ReadTimeout))
                if isinstance(timeout, Until) and timeout.hold is not None:
                    return self._held_read(max_bytes, timeout.hold)
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(error) from error
        except OSError as error:
            raise httpcore.ReadError(error) from error

    def _held_read(self, max_bytes: int, hold: Hold) -> bytes:
        """Read in a way that another thread can end."""
        try:
            if not hold.enter(self._socket):
                raise httpcore.ReadTimeout("the attempt was cancelled")
            return self._socket.recv(max_bytes)
        finally:
            hold.leave()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        sent = self.write_once(buffer, timeout)
        if sent < len(buffer):
            self.write_rest(memoryview(buffer)[sent:], timeout)

    def write_once(self, buffer: bytes, timeout: float | None) -> int:
        """Write as much as goes in one go, and return how much it was."""
        self.wrote = False
        try:
            if timeout is not self._limit:
                self._set_limit(left_of(timeout, httpcore.WriteTimeout))
            return self._socket.send(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def write_rest(self, rest: "memoryview[int]", timeout: float | None) -> None:
        """Write what `write_once` has left."""
        self.wrote = True
        try:
            while rest:
                self._set_limit(left_of(timeout, httpcore.WriteTimeout))
                rest = rest[self._socket.send(rest) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def write_hearing(self, data: bytes, timeout: float | None, listener: Listener) -> None:
        """Write what may be much, to a peer that may have something to say about it.

        Args:
            listener: Takes what comes while there is no room; it raises if the rest is not wanted.
        """
        rest, listens = memoryview(data), listener.listens
        # TLS takes what it is given as a whole, and again the same when there was no room for all of it.
        size = WRITE_BYTES if isinstance(self._socket, ssl.SSLSocket) else len(rest)
        try:
            while rest:
                self._set_limit(0.0)
                try:
                    rest = rest[self._socket.send(rest[:size]) :]
                except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    pass
                else:
                    self.wrote, listens = True, listener.listens
                    continue
                if not self._has_room(left_of(timeout, httpcore.WriteTimeout), listens):
                    found = self.read_at_once()
                    if found is None:
                        listens = False  # it was TLS's own, or is not all there, and would be met again
                    else:
                        listener.take(found)
                        listens = listener.listens
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def _has_room(self, left: float | None, listens: bool) -> bool:
        """Wait until something can be written or, if that is asked for, read; returns whether it is the former.

        Raises:
            TimeoutError: Neither.
        """
        used, reading = [self._socket], [self._socket] if listens else []
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT | (select.POLLIN if listens else 0))
            found = poll.poll(None if left is None else left * 1000)
            is_any, has_room = bool(found), bool(found and found[0][1] & ~select.POLLIN)
        else:  # pragma: no cover - not on POSIX
            readable, writable, _ = select.select(reading, used, [], left)
            is_any, has_room = bool(readable or writable), bool(writable)
        if not is_any:
            raise TimeoutError("timed out")
        return has_room

    def read_at_once(self, max_bytes: int = 65536) -> bytes | None:
        """Read without waiting; None: nothing has come, or a part of a TLS record."""
        try:
            self._set_limit(0.0)
            return self._socket.recv(max_bytes)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as error:
            raise httpcore.ReadError(error) from error

    def close(self) -> None:
        self._socket.close()

    @property
    def is_readable(self) -> bool:
        """Something has come, be it the end: of an idle connection nothing good."""
        if self._poll is None:
            if not hasattr(select, "poll"):  # pragma: no cover - not on POSIX
                return bool(select.select([self._socket], [], [], 0)[0])
            if self._socket.fileno() < 0:
                return True
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
        return bool(self._poll.poll(0)) or self._socket.fileno() < 0

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "SocketStream":
        try:
            with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
                self._socket.settimeout(left_of(timeout, httpcore.ConnectTimeout))
                return SocketStream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))
        except BaseException:
            self._socket.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                found = self._socket
                return found._sslobj if isinstance(found, ssl.SSLSocket) else None  # type: ignore[attr-defined]
            case "client_addr":
                return self._socket.getsockname()
            case "server_addr":
                return self._socket.getpeername()
            case "socket":
                return self._socket
            case "is_readable":
                return self.is_readable
            case _:
                return None


class DeadlineBackend(httpcore.NetworkBackend):
    """For the blocking transport.

    Args:
        dials: Addresses that stand for every host, the first that answers is connected to; empty: the host itself.
    """

    def __init__(self, dials: tuple[str, ...] = ()) -> None:
        self._dials = dials

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> SocketStream:
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            found = self._connected(host, port, timeout, local_address)
            try:
                found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for option in socket_options or ():
                    found.setsockopt(*option)
            except BaseException:
                found.close()
                raise
        return SocketStream(found)

    def _connected(self, host: str, port: int, timeout: float | None, local_address: str | None) -> socket.socket:
        """Connect to the first address of a name that answers, or to the one address."""
        addresses: Sequence[Address] = addresses_of(self._dials)
        if not addresses:
            addresses = in_turns(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        if len(addresses) > 1:
            return race(addresses, left_of(timeout, httpcore.ConnectTimeout), local_address)
        family, kind, protocol, _, address = addresses[0]
        found = socket.socket(family, kind, protocol)
        try:
            if local_address is not None:
                found.bind((local_address, 0))
            found.settimeout(left_of(timeout, httpcore.ConnectTimeout))
            found.connect(address)
        except BaseException:
            found.close()
            raise
        return found

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> SocketStream:
        with _mapped(httpcore.ConnectTimeout, httpcore.ConnectError):
            found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                for option in socket_options or ():
                    found.setsockopt(*option)
                found.settimeout(left_of(timeout, httpcore.ConnectTimeout))
                found.connect(path)
            except BaseException:
                found.close()
                raise
        return SocketStream(found)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


_BACKEND: Final = DeadlineBackend()


def backend_for(key: PoolKey) -> DeadlineBackend:
    """Return what makes the connections of a pool."""
    return DeadlineBackend(key.dials) if key.dials else _BACKEND


def keepalive_s(key: PoolKey, limits: httpx.Limits) -> float | None:
    """Return how long a connection may idle: as long as both the cluster and the application let it."""
    # A cluster that says 0 sets no limit; an application that says so keeps no connection.
    known = [seconds for seconds in (key.idle_s or None, limits.keepalive_expiry) if seconds is not None]
    return min(known, default=None)


def idle_limit_s(keepalive_s: float | None, announced_s: float | None) -> float | None:
    """Return how long a connection may idle now.

    Args:
        keepalive_s: As allowed here; None: without limit.
        announced_s: After that time the server closes it, as it said (`Keep-Alive: timeout=`). We are ahead of it by a
            second, or by half of the time if that is less: the server began to count when it sent the response.
    """
    if announced_s is None:
        return keepalive_s
    safe_s = max(announced_s - 1.0, announced_s / 2)
    return safe_s if keepalive_s is None else min(keepalive_s, safe_s)
