"""What a decision may know of a request."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from meshlib.model.profile import GRPC, HTTP, Profile
from meshlib.ports import Rng

__all__ = ["HeadMemo", "Headers", "Moment", "RequestHead", "is_grpc_type"]


class Headers:
    """Header fields in order, looked up by lower-case name. Immutable; repeated names keep their entries apart.

    The index is built on first use: most routes never look at a header.
    """

    __slots__ = ("_index", "items")

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self.items: tuple[tuple[str, str], ...] = tuple(items)
        self._index: dict[str, tuple[str, ...]] | None = None

    def _build(self) -> dict[str, tuple[str, ...]]:
        index: dict[str, tuple[str, ...]] = {}
        for name, value in self.items:
            index[name] = (*index.get(name, ()), value)
        self._index = index
        return index

    def all(self, name: str) -> tuple[str, ...]:
        """Return every entry of a header, in order; `name` in lower case."""
        index = self._index
        if index is None:
            index = self._build()
        return index.get(name, ())

    def get(self, name: str) -> str | None:
        """Return the first entry of a header; `name` in lower case."""
        values = self.all(name)
        return values[0] if values else None

    def find(self, name: str) -> str | None:
        """As `get`, for a single look at headers that nobody else may look at: no index is built for it."""
        for key, value in self.items:
            if key == name:
                return value
        return None

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def __repr__(self) -> str:
        return f"Headers({len(self.items)})"

    @classmethod
    def of(cls, values: Mapping[str, str] | Iterable[tuple[str, str]] | None) -> "Headers":
        """Make headers of a mapping or of pairs; names are lowered here, once."""
        if values is None:
            return cls()
        pairs = values.items() if isinstance(values, Mapping) else values
        return cls((name.lower(), value) for name, value in pairs)


def is_grpc_type(content_type: str) -> bool:
    """Whether a content type is gRPC's, as Envoy tells; what begins like it (`application/grpc-web`) is another."""
    return content_type[:16] == "application/grpc" and content_type[16:17] in ("", "+")


class HeadMemo:
    """What calls with the same head, the object, leave for each other. Whatever is in it is replaced as a whole.

    Attributes:
        counted: The head as a first attempt with its number has it; None: not made yet.
        way: A `meshlib.call.way.Way`, or None.
        reads: A target, and which headers have been seen to have a say in where its calls go; those of None: any.
    """

    __slots__ = ("counted", "reads", "way")

    def __init__(self) -> None:
        self.counted: RequestHead | None = None
        self.way: Any = None
        self.reads: tuple[object, frozenset[str] | None] = (None, frozenset())


def _no_metadata(cluster: str) -> Mapping[str, Mapping[str, object]]:
    return {}


class Moment:
    """What a call knows of the clock, of chance, of this machine and of clusters, for formats and conditions that speak
    of them.

    Its call writes `now_us`.

    Attributes:
        hostname: Of this machine; empty: not known.
        started_us: When the call began, in microseconds since the epoch.
        now_us: When it last went on.
        stream_id: 64 random bits, for shares of requests.
        metadata_of: Returns the filter_metadata of a cluster; empty: there is none, or no such cluster.
    """

    __slots__ = ("_call_id", "_rng", "hostname", "metadata_of", "now_us", "started_us", "stream_id")

    def __init__(
        self,
        hostname: str,
        wall_now: float,
        rng: Rng | None = None,
        metadata_of: Callable[[str], Mapping[str, Mapping[str, object]]] = _no_metadata,
    ) -> None:
        """Begin.

        Args:
            wall_now: Seconds since the epoch.
            rng: None: all random bits are 0.
            metadata_of: As the attribute.
        """
        self.metadata_of = metadata_of
        self._call_id = ""
        self.hostname = hostname
        self.started_us = self.now_us = round(wall_now * 1e6)
        self._rng = rng
        self.stream_id = self.draw()

    def draw(self) -> int:
        """Return 64 random bits of their own."""
        return 0 if self._rng is None else self._rng.getrandbits(64)

    def new_id(self) -> str:
        """Return a random UUID (version 4) of its own."""
        bits = self.draw() << 64 | self.draw()
        bits = bits & ~(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    @property
    def call_id(self) -> str:
        """A random UUID that stays with the call, whoever asks first."""
        self._call_id = self._call_id or self.new_id()
        return self._call_id

    def goes_on(self, wall_now: float) -> None:
        """Take note of the time; `wall_now` as for a new one."""
        self.now_us = round(wall_now * 1e6)


class RequestHead:
    """The head of one request. Not changed after creation.

    Attributes:
        method: As sent, upper case by convention; `POST` for gRPC.
        authority: Host header, else the authority as written, port included.
        path: Path with query, as sent.
        headers: Without pseudo headers.
        is_grpc: Its content type is `application/grpc...`, whoever sends it.
        profile: Whose rules hold; of the client that makes the call.
        memo: Of a head that many calls share.
        kin: The memo of the shared head from which this one differs in its headers only.
        moment: Of the call, where formats speak of it; None: it is not known.
    """

    __slots__ = ("authority", "headers", "is_grpc", "kin", "memo", "method", "moment", "path", "profile", "scheme")

    def __init__(
        self,
        method: str,
        authority: str,
        path: str,
        headers: Headers,
        *,
        scheme: str = "http",
        is_grpc: bool = False,
        moment: Moment | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Make a head.

        Args:
            profile: None: gRPC's if the content type is gRPC's, else Envoy's.
        """
        self.method = method
        self.authority = authority
        self.path = path
        self.headers = headers
        self.scheme = scheme
        self.is_grpc = is_grpc
        self.profile = (GRPC if is_grpc else HTTP) if profile is None else profile
        self.memo: HeadMemo | None = None
        self.kin: HeadMemo | None = None
        self.moment = moment

    def but(
        self,
        *,
        headers: Headers | None = None,
        authority: str | None = None,
        path: str | None = None,
        scheme: str | None = None,
        moment: Moment | None = None,
    ) -> "RequestHead":
        """Return the head with something else in it; None: that stays."""
        return RequestHead(
            self.method,
            self.authority if authority is None else authority,
            self.path if path is None else path,
            self.headers if headers is None else headers,
            scheme=self.scheme if scheme is None else scheme,
            is_grpc=self.is_grpc,
            profile=self.profile,
            moment=self.moment if moment is None else moment,
        )

    def values(self, name: str) -> tuple[str, ...]:
        """Return the entries of a header or pseudo header (`:method`, `:path`, `:authority`, `:scheme`, `host`)."""
        if name[0] == ":":
            match name:
                case ":method":
                    return (self.method,)
                case ":path":
                    return (self.path,)
                case ":authority":
                    return (self.authority,)
                case ":scheme":
                    return (self.scheme,)
                case _:
                    return ()
        if name == "host":
            return (self.authority,)
        return self.headers.all(name)

    def __repr__(self) -> str:
        return f"RequestHead({self.method} {self.scheme}://{self.authority}{self.path})"
