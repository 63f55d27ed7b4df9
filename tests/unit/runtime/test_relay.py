"""The relay when the process has run out of file descriptors."""

import errno
import ssl
from typing import Any

import pytest

from meshlib.runtime.relay import ACCEPT_PAUSE_S, TlsRelay
from meshlib.runtime.relay_link import RelayRoute


class Listener:
    def __init__(self, code: int) -> None:
        self._code = code

    def accept(self) -> Any:
        raise OSError(self._code, "no")

    def fileno(self) -> int:
        return 7


class Loop:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def remove_reader(self, listener: Any) -> None:
        self.calls.append(("remove", listener))

    def add_reader(self, listener: Any, *_: Any) -> None:
        self.calls.append(("add", listener))

    def call_later(self, delay_s: float, act: Any, *arguments: Any) -> None:
        self.calls.append(("later", delay_s))
        act(*arguments)


def accept(code: int) -> tuple[RelayRoute, list[tuple[Any, ...]]]:
    loop: Any = Loop()
    listener: Any = Listener(code)
    route = RelayRoute("/x", listener, "127.0.0.1:1", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "", 1.0)
    TlsRelay()._accept(loop, route)
    return route, loop.calls


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_without_file_descriptors_the_relay_pauses_and_says_why(code: int) -> None:
    route, calls = accept(code)
    assert [("remove", route.listener), ("later", ACCEPT_PAUSE_S), ("add", route.listener)] == calls
    assert isinstance(route.last_error, OSError)


def test_connection_that_is_gone_again_is_nothing() -> None:
    route, calls = accept(errno.ECONNABORTED)
    assert ([], None) == (calls, route.last_error)
