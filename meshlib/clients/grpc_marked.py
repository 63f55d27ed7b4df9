"""A finished call whose initial metadata say how to come back to its endpoint (stateful sessions, A55)."""

from typing import Any

import grpc

from meshlib.clients.grpc_flow import Flow

__all__ = ["marked_call"]


class _MarkedCall:
    """A `grpc.Call` in all respects; its initial metadata may have a `set-cookie` more."""

    def __init__(self, native: grpc.Call, flow: Flow) -> None:
        self._native = native
        self._flow = flow

    def initial_metadata(self) -> Any:
        return self._flow.marked(self._native.initial_metadata())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)


grpc.Call.register(_MarkedCall)


def marked_call(native: Any, flow: Flow) -> Any:
    """Return a call with the mark of its session; itself when it has none."""
    return _MarkedCall(native, flow) if flow.call.has_session else native
