"""How streams to management servers are opened where nobody says otherwise: on grpcio's sync stack."""

from meshlib.ports import WallClock
from meshlib.runtime.ads import AdsEvents, AdsStream, Stream, StreamEvents
from meshlib.runtime.credentials import TlsFiles
from meshlib.runtime.load_stream import LoadStream
from meshlib.runtime.separate_streams import SeparateStreams
from meshlib.xds.bootstrap import ServerConfig

__all__ = ["GrpcStreams"]


class GrpcStreams:
    """Opens them. Used on the control thread."""

    def __init__(self, wall_clock: WallClock) -> None:
        self._wall_clock = wall_clock
        self._files = TlsFiles()

    def resources(self, server: ServerConfig, events: AdsEvents) -> Stream:
        """Open the stream for resources, or the streams where each type has its own."""
        kind = SeparateStreams if server.is_separate else AdsStream
        return kind(server, events, self._wall_clock, self._files)

    def loads(self, server: ServerConfig, stream: Stream, events: StreamEvents) -> Stream | None:
        """Open the stream for load reports on the channel of the one for resources; None: there is no channel yet."""
        channel = stream.channel if isinstance(stream, AdsStream | SeparateStreams) else None
        return None if channel is None else LoadStream(server, channel, events, self._wall_clock)
