"""What a client may ask for on one stream: checks that end the stream, never those about a single resource (section 2)."""

from collections.abc import Collection, Mapping

from xds_server.stream import StreamRefused
from xds_server.subscription import Subscription
from xds_server.wire import Node

# What one stream may ask for; ten times what the largest meshes do.
MAX_TYPES = 64
MAX_NAMES = 200_000
MAX_NAME_CHARS = 2048

NODE_MISSING = "the first request must carry a node with an id"


def check_node(node: Node | None, known: Node | None) -> Node:
    """Return whose stream it is.

    Args:
        node: As a request says; None: it does not.
        known: As the first request said; None: this is the first.

    Raises:
        StreamRefused: Nobody has said it, or it is somebody else's now.
    """
    if known is None:
        if node is None or not node.id:
            raise StreamRefused("INVALID_ARGUMENT", NODE_MISSING)
        if len(node.id) > MAX_NAME_CHARS:
            raise StreamRefused("INVALID_ARGUMENT", f"a node's id has at most {MAX_NAME_CHARS} characters")
        return node
    if node is not None and node.id and node.id != known.id:
        raise StreamRefused(
            "INVALID_ARGUMENT",
            f"the stream belongs to node {known.id!r}, open another one for {node.id!r}",
        )
    return known


def check_type(type_url: str, service_type: str | None) -> str:
    """Return the type that a request is about.

    Args:
        type_url: As the request says; may be empty on a stream for one type.
        service_type: The type of a stream that is for one type only; None: aggregated.

    Raises:
        StreamRefused: It is of another type, or says none where it must.
    """
    if service_type is not None:
        if type_url not in ("", service_type):
            raise StreamRefused(
                "INVALID_ARGUMENT",
                f"this service is for {service_type}, not {type_url!r}: open a stream of that type's service, "
                "or an aggregated one",
            )
        return service_type
    if not type_url:
        raise StreamRefused("INVALID_ARGUMENT", "a request on an aggregated stream must name its type_url")
    return type_url


def check_limits(subscriptions: Mapping[str, Subscription], type_url: str, names: Collection[str], count: int) -> None:
    """Check that a client does not ask for ever more.

    Args:
        subscriptions: Those that the stream has, by type.
        names: All that a request names.
        count: How many of its type the stream would have.

    Raises:
        StreamRefused: It does.
    """
    if type_url not in subscriptions and len(subscriptions) >= MAX_TYPES:
        raise StreamRefused("RESOURCE_EXHAUSTED", f"a stream has at most {MAX_TYPES} types")
    others = sum(len(each.names) for each in subscriptions.values() if each.type_url != type_url)
    if others + count > MAX_NAMES:
        raise StreamRefused("RESOURCE_EXHAUSTED", f"a stream asks for at most {MAX_NAMES} names")
    if any(len(name) > MAX_NAME_CHARS for name in (type_url, *names)):
        raise StreamRefused("INVALID_ARGUMENT", f"names have at most {MAX_NAME_CHARS} characters")
