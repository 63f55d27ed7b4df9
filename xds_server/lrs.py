"""The Load Reporting Service: asks clients for reports at an interval, and keeps what they say (LRS-1 to LRS-3)."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from meshlib.protos import message_class
from xds_server.admission import Admission, client_of
from xds_server.authentication import Authentication
from xds_server.grpc_shell import admitted, guarded, read
from xds_server.load_reports import ClusterLoad, LoadReports, Locality, LocalityLoad
from xds_server.requests import MAX_NAME_CHARS, NODE_MISSING
from xds_server.statistics import Statistics
from xds_server.stream import StreamRefused
from xds_server.wire import Node, decode_node

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
_MESSAGES = "envoy.service.load_stats.v3."

SENDS_ALL = "envoy.lrs.supports_send_all_clusters"
"""Client feature: it can be told to report on all of its clusters; others are told the names."""

DEFAULT_INTERVAL_S = 10.0
MIN_INTERVAL_S = 1.0

_WRITE_TIMEOUT_S = 30.0


class LoadReportService:
    """Takes in reports on all listeners; on the secure one from whoever has a token.

    Args:
        clusters: Returns the names of the clusters that a client knows.
        interval_s: Between two reports of a client, at least 1 s.
        admission: Counts the streams of each client, beside those for discovery.
    """

    def __init__(
        self,
        reports: LoadReports,
        clusters: Callable[[Node], Iterable[str]],
        authentication: Authentication | None = None,
        *,
        interval_s: float = DEFAULT_INTERVAL_S,
        admission: Admission | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        self._reports = reports
        self._clusters = clusters
        self._authentication = authentication
        self._interval_s = max(interval_s, MIN_INTERVAL_S)
        self._admission = admission or Admission()
        self._statistics = statistics or Statistics()
        self._streams: set[asyncio.Event] = set()
        self._is_finished = False

    @property
    def interval_s(self) -> float:
        return self._interval_s

    def set_interval(self, seconds: float) -> None:
        """Ask all clients for reports at another interval, from now on; at least 1 s."""
        self._interval_s = max(seconds, MIN_INTERVAL_S)
        for wake in self._streams:
            wake.set()

    def finish(self) -> None:
        """End the streams: the server is going away."""
        self._is_finished = True
        for wake in self._streams:
            wake.set()

    def handler(self, *, is_secure: bool) -> grpc.GenericRpcHandler:
        async def stream(_requests: object, context: Any) -> None:
            await guarded(context, self._run(context, is_secure))

        return grpc.method_handlers_generic_handler(
            SERVICE, {"StreamLoadStats": grpc.stream_stream_rpc_method_handler(stream)}
        )

    async def _run(self, context: Any, is_secure: bool) -> None:
        identity = None
        if is_secure and self._authentication is not None:
            identity = self._authentication.require(context)
        async with admitted(self._admission, client_of(context.peer(), identity), self._statistics):
            await self._run_admitted(context)

    async def _run_admitted(self, context: Any) -> None:
        if (data := await read(context)) is None:
            return
        node, loads = decode_report(data)
        if node is None or not node.id:
            raise StreamRefused("INVALID_ARGUMENT", NODE_MISSING)
        wake = asyncio.Event()
        self._streams.add(wake)
        now = asyncio.get_running_loop().time()
        try:
            self._reports.record(node.id, wake, loads, now)
            await self._serve(node, wake, context)
        finally:
            self._streams.discard(wake)
            self._reports.closed(wake)

    async def _serve(self, node: Node, wake: asyncio.Event, context: Any) -> None:
        """Say what is wanted, again whenever that changes, until the client closes its side."""
        reader = asyncio.create_task(self._read_all(node, wake, context))
        told = b""
        try:
            while True:
                wake.clear()
                if reader.done():
                    return await reader
                if self._is_finished:
                    raise StreamRefused("UNAVAILABLE", "the management server is shutting down")
                if (answer := self._answer(node)) != told:
                    told = answer
                    await asyncio.wait_for(context.write(answer), _WRITE_TIMEOUT_S)
                await wake.wait()
        except TimeoutError as error:
            raise StreamRefused("DEADLINE_EXCEEDED", "the client does not read its stream") from error
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read_all(self, node: Node, wake: asyncio.Event, context: Any) -> None:
        try:
            while (data := await read(context)) is not None:
                _, loads = decode_report(data)
                self._reports.record(node.id, wake, loads, asyncio.get_running_loop().time())
                wake.set()
        finally:
            wake.set()

    def _answer(self, node: Node) -> bytes:
        response = message_class(_MESSAGES + "LoadStatsResponse")()
        response.load_reporting_interval.FromMilliseconds(int(self._interval_s * 1000))
        if SENDS_ALL in node.client_features:
            response.send_all_clusters = True
        else:
            try:
                response.clusters.extend(sorted(self._clusters(node)))
            except ValueError as error:
                raise StreamRefused("INVALID_ARGUMENT", str(error)) from error
        serialised: bytes = response.SerializeToString(deterministic=True)
        return serialised


def decode_report(data: bytes) -> tuple[Node | None, tuple[ClusterLoad, ...]]:
    """Decode one `LoadStatsRequest`.

    Raises:
        StreamRefused: It is none.
    """
    try:
        message = message_class(_MESSAGES + "LoadStatsRequest").FromString(data)
    except DecodeError as error:
        raise StreamRefused("INVALID_ARGUMENT", f"not a LoadStatsRequest: {error}") from error
    node = decode_node(message.node) if message.HasField("node") else None
    return node, tuple(_cluster_load(stats) for stats in message.cluster_stats)


def _cluster_load(stats: Any) -> ClusterLoad:
    dropped = {one.category: one.dropped_count for one in stats.dropped_requests}
    if (others := stats.total_dropped_requests - sum(dropped.values())) > 0:
        dropped[""] = dropped.get("", 0) + others
    for name in (stats.cluster_name, stats.cluster_service_name, *dropped):
        if len(name) > MAX_NAME_CHARS:
            raise StreamRefused("INVALID_ARGUMENT", f"names have at most {MAX_NAME_CHARS} characters")
    return ClusterLoad(
        cluster=stats.cluster_name,
        service=stats.cluster_service_name,
        interval_s=stats.load_report_interval.ToMilliseconds() / 1000,
        dropped=dropped,
        localities=tuple(_locality_load(one) for one in stats.upstream_locality_stats),
    )


def _locality_load(stats: Any) -> LocalityLoad:
    where = stats.locality
    metrics = {
        one.metric_name: (one.num_requests_finished_with_metric, one.total_metric_value)
        for one in stats.load_metric_stats
    }
    names = (where.region, where.zone, where.sub_zone, *metrics)
    if any(len(name) > MAX_NAME_CHARS for name in names):
        raise StreamRefused("INVALID_ARGUMENT", f"names have at most {MAX_NAME_CHARS} characters")
    return LocalityLoad(
        locality=Locality(where.region, where.zone, where.sub_zone),
        priority=stats.priority,
        succeeded=stats.total_successful_requests,
        failed=stats.total_error_requests,
        issued=stats.total_issued_requests,
        in_progress=stats.total_requests_in_progress,
        metrics=metrics,
    )
