"""What requests with the same headers have in common: most of a client's are such."""

from typing import Final, NamedTuple

from meshlib.call.limits import has_control_headers
from meshlib.clients.http1_request import REMEMBERED_CHARACTERS, host_line, plain_lines
from meshlib.clients.httpx_common import lower_name
from meshlib.model.request import Headers, is_grpc_type

__all__ = ["Shape", "known_shapes", "make_shape"]

MAX_SHAPES: Final = 512
Raw = tuple[tuple[bytes, bytes], ...]


class Shape(NamedTuple):
    """What requests with the same headers have in common.

    Attributes:
        authority: Their host.
        headers: The others.
        lines: All of them as they are written.
        length: Of the body.
    """

    authority: str
    headers: Headers
    lines: bytes
    length: int


known_shapes: Final[dict[Raw, Shape]] = {}


def make_shape(raw: Raw) -> Shape | None:
    """Work out what requests with some headers have in common; None: they need a closer look each time."""
    authority = ""
    items = []
    for raw_name, raw_value in raw:
        name, value = lower_name(raw_name), raw_value.decode("latin-1")
        if name == "host" and not authority:
            authority = value
        elif name == "host" or (name == "content-type" and is_grpc_type(value)):
            return None
        else:
            items.append((name, value))
    headers = Headers(items)
    if not authority or has_control_headers(headers):
        return None
    host, found = host_line(authority), plain_lines(items)
    if host is None or found is None:
        return None
    lines, length, is_common = found
    shape = Shape(authority, headers, host + lines, length)
    if is_common and len(authority) <= REMEMBERED_CHARACTERS:
        if len(known_shapes) >= MAX_SHAPES:
            known_shapes.clear()
        known_shapes[raw] = shape
    return shape
