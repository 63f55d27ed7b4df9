"""A name server on loopback that answers what a test tells it to."""

import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from typing import Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

LOOPBACK = "127.0.0.1"
_KINDS = {"A", "AAAA"}


class NameServer:
    """Answers queries by UDP and TCP on one port. A name that it was not told of does not exist.

    Attributes:
        port: Of both.
        asked: Monotonic seconds, name, kind and transport of each query.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._records: dict[str, list[tuple[str, int]]] = {}
        self._failing: set[str] = set()
        self._silent: set[str] = set()
        self._aliases: dict[str, tuple[str, int]] = {}
        self.asked: list[tuple[float, str, str, str]] = []
        self._udp, self._tcp = _both_sockets()
        self.port = self._udp.getsockname()[1]
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve_udp, self._serve_tcp)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that waits in accept or recvfrom is woken by what it waits for: a last query, empty.
        self._closing = True
        with contextlib.suppress(OSError):
            self._udp.sendto(b"", (LOOPBACK, self.port))
            socket.create_connection((LOOPBACK, self.port), 1).close()
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()

    _closing = False

    # What it answers.

    def put(self, name: str, *addresses: str, ttl: int = 60) -> None:
        """Give a name these addresses; none: it exists and has no addresses."""
        with self._lock:
            self._forget(name)
            self._records[name] = [(address, ttl) for address in addresses]

    def alias(self, name: str, target: str, *, ttl: int = 60) -> None:
        """Have a name stand for another."""
        with self._lock:
            self._forget(name)
            self._aliases[name] = (target, ttl)

    def fail(self, *names: str) -> None:
        """Answer SERVFAIL for these names."""
        with self._lock:
            for name in names:
                self._forget(name)
                self._failing.add(name)

    def silence(self, name: str) -> None:
        """Answer nothing for a name."""
        with self._lock:
            self._forget(name)
            self._silent.add(name)

    def drop(self, name: str) -> None:
        """Have a name exist no more."""
        with self._lock:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._records.pop(name, None)
        self._aliases.pop(name, None)
        self._failing.discard(name)
        self._silent.discard(name)

    # What it was asked.

    def times_of(self, name: str, kind: str = "A") -> list[float]:
        """Return when a name was asked for."""
        with self._lock:
            return [when for when, host, kind_of, _ in self.asked if (host, kind_of) == (name, kind)]

    def transports_of(self, name: str) -> set[str]:
        with self._lock:
            return {transport for _, host, _, transport in self.asked if host == name}

    def wait_asked(self, name: str, times: int, kind: str = "A", timeout_s: float = 60.0) -> Sequence[float]:
        """Wait until a name has been asked for so often; returns when."""

        def count() -> bool:
            return sum((host, kind_of) == (name, kind) for _, host, kind_of, _ in self.asked) >= times

        with self._lock:
            assert self._lock.wait_for(count, timeout_s), f"{name} was not asked for {times} times: {self.asked}"
        return self.times_of(name, kind)

    def _answer(self, data: bytes, transport: str) -> bytes:
        """Return the answer; nothing: there is none."""
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        with self._lock:
            self.asked.append((time.monotonic(), name, kind, transport))
            self._lock.notify_all()
            if name in self._silent:
                return b""
            if name in self._failing:
                answer.set_rcode(dns.rcode.SERVFAIL)
                return answer.to_wire()
            owner = name
            if name in self._aliases:
                owner, ttl = self._aliases[name]
                answer.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", "CNAME", f"{owner}."))
            records = self._records.get(owner)
            if records is None:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            elif kind in _KINDS:
                # Each in a set of its own: the library shuffles the records of one.
                for text, ttl in records:
                    if (":" in text) == (kind == "AAAA"):
                        answer.answer.append(dns.rrset.from_text(f"{owner}.", ttl, "IN", kind, text))
        return answer.to_wire()

    def _serve_udp(self) -> None:
        while True:
            data, peer = self._udp.recvfrom(4096)
            if self._closing:
                return
            if found := self._answer(data, "udp"):
                with contextlib.suppress(OSError):
                    self._udp.sendto(found, peer)

    def _serve_tcp(self) -> None:
        while True:
            connection, _ = self._tcp.accept()
            with connection:
                if self._closing:
                    return
                connection.settimeout(5)
                with contextlib.suppress(OSError), connection.makefile("rb") as file:
                    size = int.from_bytes(file.read(2))
                    found = self._answer(file.read(size), "tcp")
                    if found:
                        connection.sendall(len(found).to_bytes(2) + found)


def _both_sockets() -> tuple[socket.socket, socket.socket]:
    """Bind a port for UDP and TCP; one that is free for the one may be taken for the other."""
    for _ in range(20):
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind((LOOPBACK, 0))
        try:
            return udp, socket.create_server(udp.getsockname())
        except OSError:
            udp.close()
    raise AssertionError("no port is free for both")
