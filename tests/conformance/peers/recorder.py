"""A TLS server that says who called and keeps every application byte that it was sent."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self

from cryptography import x509

LOOPBACK = "127.0.0.1"


def certificate_names(connection: ssl.SSLSocket) -> str:
    der = connection.getpeercert(binary_form=True)
    if der is None:
        return "nobody"
    names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ",".join(str(name.value) for name in names)


class Recorder:
    """Answers each request over HTTP/1.1 with the caller's names. A server over plain TCP when it has no context.

    Attributes:
        received: The application's bytes, of all connections.
        handshakes: That were completed.
    """

    def __init__(self, context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None, host: str = LOOPBACK) -> None:
        self._context = context
        self.received = b""
        self.handshakes = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(30)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with self._lock:
            self._open.add(plain)
        connection: socket.socket = plain
        name = "plaintext"
        try:
            context = self._context() if callable(self._context) else self._context
            if context is not None:
                connection = context.wrap_socket(plain, server_side=True)
                with self._lock:
                    self._open.discard(plain)
                    self._open.add(connection)
                    self.handshakes += 1
                assert isinstance(connection, ssl.SSLSocket)
                name = certificate_names(connection)
            data = b""
            while chunk := connection.recv(65536):
                with self._lock:
                    self.received += chunk
                data += chunk
                while b"\r\n\r\n" in data:
                    data = data.partition(b"\r\n\r\n")[2]
                    body = name.encode()
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        except (OSError, ssl.SSLError):
            pass
        finally:
            with self._lock:
                self._open.discard(connection)
            with contextlib.suppress(OSError):
                connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(30)  # before its number is given to another socket, on which it would accept
        self._listener.close()
        with self._lock:
            left = tuple(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
