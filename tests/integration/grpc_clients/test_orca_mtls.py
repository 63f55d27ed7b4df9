"""Load reports out of band over mTLS: of the right peer, and of nobody else."""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.lb_policy import ClientSideWeightedRoundRobin
from meshlib.protos import from_dict
from meshlib.runtime.orca_reports import OrcaListener
from meshlib.runtime.relay import THREAD_NAME
from meshlib.runtime.scheduler import Scheduler

CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
ORDERS = "spiffe://cluster.local/ns/default/sa/orders"
OUT_OF_BAND = ClientSideWeightedRoundRobin(out_of_band=True, reporting_period_s=0.1, blackout_s=0.0)
TEMPLATE = Cluster("checkout", EdsDiscovery("checkout"), OUT_OF_BAND)


class Reporter:
    """A server that reports its load to whoever gets in, and counts them."""

    def __init__(self, credentials: grpc.ServerCredentials) -> None:
        self.asked = 0
        handlers = {"StreamCoreMetrics": grpc.unary_stream_rpc_method_handler(self._stream)}
        service = grpc.method_handlers_generic_handler("xds.service.orca.v3.OpenRcaService", handlers)
        self._server = grpc.server(ThreadPoolExecutor(4), handlers=(service,))
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self.asked += 1
        over = threading.Event()
        context.add_callback(over.set)
        while not over.wait(0.05):
            fields = {"cpu_utilization": 0.5, "rps_fractional": 10}
            yield from_dict("xds.data.orca.v3.OrcaLoadReport", fields).SerializeToString()

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def reporter(authority: Any) -> Iterator[Reporter]:
    made = Reporter(authority.server_credentials(CHECKOUT))
    yield made
    made.stop()


@pytest.fixture
def listener(mesh: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any) -> Iterator[tuple[OrcaListener, Scheduler]]:
    """A listener to what `mesh` serves; nothing of its relay may be left when it is closed."""
    with tempfile.TemporaryDirectory(prefix="relay-test-") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        scheduler = Scheduler(time.monotonic)
        made = OrcaListener(lambda: mesh.source.view, scheduler=scheduler, clock=time.monotonic, rng=mesh.source.rng)
        yield made, scheduler
        made.close()
        names = ("meshlib-orca", THREAD_NAME)
        eventually(lambda: not [one for one in threading.enumerate() if one.name in names])
        eventually(lambda: not os.listdir(folder))


def test_the_right_peer_is_listened_to(
    reporter: Reporter, listener: tuple[OrcaListener, Scheduler], mesh: Any, authority: Any, eventually: Any
) -> None:
    made, scheduler = listener
    mesh.serve_tls(reporter.address, authority, authority.issue(ORDERS), template=TEMPLATE)
    made.step()
    state = mesh.source.cluster("checkout").states[reporter.address]

    eventually(lambda: scheduler.run(block=False) >= 0 and state.reported is not None)

    assert state.reported.weight == 20.0
    assert (made.streams, reporter.asked) == (1, 1)
    mesh.serve_tls(reporter.address, authority, authority.issue(ORDERS), template=TEMPLATE)
    made.step()
    eventually(lambda: reporter.asked == 2)  # with the new certificate
    assert made.streams == 1


def test_another_peer_is_not(
    reporter: Reporter, listener: tuple[OrcaListener, Scheduler], mesh: Any, authority: Any, eventually: Any
) -> None:
    made, scheduler = listener
    mesh.serve_tls(reporter.address, authority, authority.issue(ORDERS), peer=ORDERS, template=TEMPLATE)
    made.step()

    eventually(lambda: scheduler.run(block=False) >= 0 and made.streams == 0)

    assert reporter.asked == 0
    assert mesh.source.cluster("checkout").states[reporter.address].reported is None
