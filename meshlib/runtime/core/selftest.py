"""Whether this version of grpcio does what the core path needs of it, found out with peers of our own.

One server with two identities on two ports. Accepted must be: either identity where it is expected. Refused must be,
without the server seeing a call: an identity where the other is expected, and a call whose cookie names nobody. The
whole takes about 0.1 s of CPU, once in a process.
"""

import re
from collections.abc import Callable
from concurrent import futures
from typing import Any, Final

import grpc

from meshlib.runtime.clock import wall
from meshlib.runtime.core.ads import LocalAds
from meshlib.runtime.core.channel import is_unsent, new_node_id, open_sync
from meshlib.runtime.core.resources import CoreCluster, cookie
from meshlib.runtime.core.slots import Slots
from meshlib.runtime.core.throwaway import ThrowawayCa

__all__ = ["is_too_old", "self_test"]

TIMEOUT_S: Final = 20.0
"""For each of its few calls. A process that has failed the test once stays with the slower way, so a busy machine gets time."""
_METHOD: Final = "/meshlib.SelfTest/Call"
_RIGHT: Final = "spiffe://meshlib.invalid/right"
_WRONG: Final = "spiffe://meshlib.invalid/wrong"


SINCE: Final = (1, 80)
"""First minor version of grpcio whose core is used. With 1.66 to 1.68 the self-test ended the process with a segmentation fault,
and calls hung with 1.71; with 1.73 and 1.76 forks and many calls at a time did not go well."""


def is_too_old(version: str) -> bool:
    """Whether a version of grpcio has a core that is better left alone."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is None or (int(found[1]), int(found[2])) < SINCE


def self_test(is_stopping: Callable[[], bool]) -> str:
    """Run the test.

    Args:
        is_stopping: Asked between steps; True ends it with a text.

    Returns:
        Why the core path cannot be used; empty: it can.
    """
    if is_too_old(grpc.__version__):
        return f"grpcio {grpc.__version__} is older than {SINCE[0]}.{SINCE[1]}"
    try:
        peers = _Peers()
        try:
            return _with_channel(peers, is_stopping)
        finally:
            peers.close()
    except (grpc.RpcError, OSError, RuntimeError, ValueError, AttributeError) as error:
        return f"the self-test failed: {type(error).__name__}: {error}"


class _Peers:
    def __init__(self) -> None:
        self.calls = 0
        self._ca = ThrowawayCa(wall())
        self._pool = futures.ThreadPoolExecutor(2, thread_name_prefix="meshlib-core-test")
        self._server = grpc.server(self._pool, options=(("grpc.so_reuseport", 0),))
        handlers: dict[str, Any] = {"Call": grpc.unary_unary_rpc_method_handler(self._answer)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("meshlib.SelfTest", handlers),))
        self.client = self._ca.issue("spiffe://meshlib.invalid/client")
        self.right = self._listen(_RIGHT)
        self.wrong = self._listen(_WRONG)
        self._server.start()

    @property
    def ca_pem(self) -> bytes:
        return self._ca.pem

    def close(self) -> None:
        self._server.stop(0).wait(TIMEOUT_S)
        self._pool.shutdown(wait=True)

    def _listen(self, uri: str) -> str:
        pair = self._ca.issue(uri)
        credentials = grpc.ssl_server_credentials([(pair.key_pem, pair.chain_pem)], self._ca.pem, True)
        return f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.calls += 1
        return request


def _with_channel(peers: _Peers, is_stopping: Callable[[], bool]) -> str:
    slots = Slots()
    try:
        ads = LocalAds()
        try:
            certificate = slots.certificate(peers.client.chain_pem, peers.client.key_pem, 0.0)
            trust = slots.bundle(peers.ca_pem, 0.0)
            assert certificate is not None and trust is not None
            both = (peers.right, peers.wrong)

            def expecting(name: str, uri: str) -> CoreCluster:
                pattern = uri.replace(".", r"\.")
                return CoreCluster(name, (pattern,), "", certificate[0], trust[0], "self.test", both)

            ads.publish((expecting("r", _RIGHT), expecting("w", _WRONG)))
            node_id = new_node_id()
            channel = open_sync(ads.uri, node_id, slots.providers)
            try:
                return _verdict(peers, channel, node_id, is_stopping)
            finally:
                channel.close()
        finally:
            ads.close()
    finally:
        slots.close()


def _verdict(peers: _Peers, channel: grpc.Channel, node_id: str, is_stopping: Callable[[], bool]) -> str:
    call: Any = channel.unary_unary(_METHOD)
    expected = 0
    for address, cluster, is_accepted in (
        (peers.right, "r", True),
        (peers.wrong, "r", False),
        (peers.wrong, "w", True),
        (peers.right, "w", False),
        (peers.right, "", False),
    ):
        if is_stopping():
            return STOPPED
        metadata = (("cookie", cookie(address, cluster)),) if cluster else None
        try:
            call(b"test", timeout=TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as error:
            if is_accepted:
                return f"a peer with the right identity was refused: {error.details()}"
            if not is_unsent(error, node_id):
                return f"a call that must not be sent ended with {error.code().name}: {error.details()}"
        else:
            expected += 1
            if not is_accepted:
                return "a peer with a wrong identity was accepted"
        if peers.calls != expected:
            return "a peer with a wrong identity got a call"
    return ""


STOPPED: Final = "stopped"
