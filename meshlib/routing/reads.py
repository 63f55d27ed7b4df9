"""Which headers of a request had a say in where it goes."""

from meshlib.model.request import Headers, RequestHead
from meshlib.ports import Rng
from meshlib.routing.scopes import ScopeTable
from meshlib.routing.table import RouteMatch, RouteTable

__all__ = ["names_read"]


class _Watched(Headers):
    """Headers that note which of them are asked for."""

    __slots__ = ("_headers", "is_read_whole", "names")

    def __init__(self, headers: Headers) -> None:
        self._headers = headers
        self.names: set[str] = set()
        self.is_read_whole = False

    @property
    def items(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]  # what is an attribute there is noted here
        self.is_read_whole = True
        return self._headers.items

    def all(self, name: str) -> tuple[str, ...]:
        """As of any headers."""
        self.names.add(name)
        return self._headers.all(name)

    def find(self, name: str) -> str | None:
        """As of any headers."""
        self.names.add(name)
        return self._headers.find(name)


def names_read(table: RouteTable | ScopeTable, head: RequestHead, found: RouteMatch, rng: Rng) -> frozenset[str] | None:
    """Return the names of the headers that were looked at, there or not, to find the route of a request.

    A request that differs from it in other headers only finds the same route, as no step on the way sees a difference.

    Args:
        head: Of a request in whose route chance has no part.
        found: What the table answered.

    Returns:
        None: any header may have a say.
    """
    watched = _Watched(head.headers)
    if table.match(head.but(headers=watched), rng) is not found or watched.is_read_whole:
        return None
    return frozenset(watched.names)
