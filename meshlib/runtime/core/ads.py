"""A management server for core in this very process: state of the world, over a unix socket that only we can reach.

Nothing secret goes over it: certificates and keys are files in memory, of which it only names the place.
"""

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from meshlib.protos import message_class
from meshlib.runtime.core.resources import CoreCluster, Resources, resources
from meshlib.xds.resources import CDS, EDS, LDS, RDS

__all__ = ["LocalAds"]

MAX_STREAMS: Final = 16
"""Channels: a sync one and one for each event loop that calls over TLS. Each takes two threads."""

_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_ORDER: Final = (CDS, EDS, LDS, RDS)
"""What is added must be there before something names it."""


@dataclass(eq=False, slots=True)
class _Stream:
    """One channel's stream. Fields belong to its serving thread; others put `events` and read `taken`.

    Attributes:
        events: Requests; `None`: what is served has changed; an exception: the stream has ended.
        names: Asked for, by type.
        sent: Responses as last sent, by type.
        waiting: Nonces of those not answered yet.
        taken: Version of what is served, and the clusters of it that core has acknowledged to the end.
    """

    events: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sent: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    taken: tuple[int, frozenset[str]] = (0, frozenset())


class LocalAds:
    """The server. `close` must follow."""

    def __init__(self) -> None:
        self._folder = _private_folder()
        self.uri = f"unix:{self._folder}/xds"
        self._pool = futures.ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix="meshlib-core")
        self._server = grpc.server(
            self._pool, options=(("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0))
        )
        request = message_class("envoy.service.discovery.v3.DiscoveryRequest")
        response = message_class("envoy.service.discovery.v3.DiscoveryResponse")
        self._response = response
        handler = grpc.stream_stream_rpc_method_handler(self._serve, request.FromString, response.SerializeToString)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, {"StreamAggregatedResources": handler}),)
        )
        # Guarded by the lock:
        self._lock = threading.Lock()
        self._resources: Resources = {}
        self._version = 0
        self._streams: dict[str, _Stream] = {}
        self.problem = ""
        try:
            self._server.add_insecure_port(self.uri)
            self._server.start()
        except BaseException:
            self.close()
            raise

    def publish(self, clusters: Iterable[CoreCluster]) -> None:
        """Serve these clusters from now on; at least one."""
        made = resources(clusters)
        with self._lock:
            self._resources = made
            self._version += 1
            streams = tuple(self._streams.values())
        for stream in streams:
            stream.events.put(None)

    def has_taken(self, node_id: str, cluster: CoreCluster) -> bool:
        """Whether a channel has acknowledged a cluster as it is now."""
        with self._lock:
            stream, version = self._streams.get(node_id), self._version
        if stream is None:
            return False
        taken_version, names = stream.taken
        return taken_version == version and cluster.name in names

    def close(self) -> None:
        """End all streams and the server's threads."""
        self._server.stop(0).wait(5)
        with self._lock:
            streams = tuple(self._streams.values())
        for stream in streams:
            stream.events.put(ConnectionError("closed"))
        self._pool.shutdown(wait=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        stream = _Stream()
        node_id = ""
        reader = threading.Thread(target=_read, args=(requests, stream.events), name="meshlib-core-read", daemon=True)
        reader.start()
        nonce = seen = 0
        try:
            while True:
                event = stream.events.get()
                if isinstance(event, Exception):
                    return
                if event is not None and not node_id and event.node.id:
                    node_id = event.node.id
                    with self._lock:
                        self._streams[node_id] = stream
                asked = _ORDER if event is None else self._asked(stream, event)
                with self._lock:
                    everything, version = self._resources, self._version
                if event is None or not seen:
                    seen = version  # what was changed since is looked at with its own event
                for type_url in asked:
                    served = everything.get(type_url, {})
                    names = stream.names.get(type_url)
                    if names is None:
                        continue
                    found = tuple(served[name] for name in names if name in served)
                    if stream.sent.get(type_url) == found:
                        continue
                    nonce += 1
                    stream.sent[type_url] = found
                    stream.waiting[type_url] = str(nonce)
                    yield self._response(
                        version_info=str(version), type_url=type_url, nonce=str(nonce), resources=found
                    )
                names = () if EDS in stream.waiting or CDS in stream.waiting else stream.names.get(EDS, ())
                stream.taken = (seen, frozenset(names))
        finally:
            with self._lock:
                if self._streams.get(node_id) is stream:
                    del self._streams[node_id]

    def _asked(self, stream: _Stream, request: Any) -> tuple[str, ...]:
        """Take a request: a subscription, or the answer to a response."""
        type_url: str = request.type_url
        if request.error_detail.message:
            self.problem = f"core refuses {type_url.rpartition('.')[2]}: {request.error_detail.message}"
        elif request.response_nonce and stream.waiting.get(type_url) == request.response_nonce:
            del stream.waiting[type_url]
        stream.names[type_url] = tuple(request.resource_names)
        return (type_url,)


def _read(requests: Iterator[Any], events: "queue.SimpleQueue[Any]") -> None:
    try:
        for request in requests:
            events.put(request)
    except Exception as error:  # the stream was cut
        events.put(error)
    else:
        events.put(ConnectionError("closed"))


def _private_folder() -> str:
    folder = tempfile.mkdtemp(prefix="meshlib-core-")  # mode 0700
    if len(os.fsencode(folder)) <= 90:
        return folder
    # A long TMPDIR: a unix socket's path has to fit into 108 bytes.
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix="meshlib-core-", dir="/tmp")
