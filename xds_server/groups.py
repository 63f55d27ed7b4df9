"""Which state a client is sent: a pure function of its node."""

from dataclasses import dataclass, replace

from xds_server.model import NOWHERE, PLACE_LABELS, Place, Profile
from xds_server.wire import Node

DEFAULT_OUTBOUND_LISTEN = "127.0.0.1:15001"


@dataclass(frozen=True, slots=True)
class Group:
    """Key of a group: all its clients are sent the same.

    Attributes:
        outbound_listen: Where an Envoy is told to listen, `host:port`; other profiles have no use for it.
        place: Where its clients are.
    """

    profile: Profile
    outbound_listen: str = DEFAULT_OUTBOUND_LISTEN
    place: Place = NOWHERE

    @property
    def anywhere(self) -> "Group":
        """The same without a place."""
        return self if self.place == NOWHERE else replace(self, place=NOWHERE)


DEFAULT_GROUPS = tuple(Group(profile) for profile in Profile)


def group_of(node: Node) -> Group:
    """Return the group of a node.

    Raises:
        ValueError: Its metadata cannot be used; the text says what to send.
    """
    place = _place(node)
    match node.user_agent_name:
        case "envoy":
            return Group(Profile.ENVOY, _outbound_listen(node), place)
        case "meshlib":
            return Group(Profile.MESHLIB, place=place)
        case _:
            return Group(Profile.GRPC, place=place)


def _place(node: Node) -> Place:
    labels = node.metadata.get("LABELS")
    known = labels if isinstance(labels, dict) else {}
    return Place(
        node.locality, tuple((name, value) for name in PLACE_LABELS if isinstance(value := known.get(name), str))
    )


def _outbound_listen(node: Node) -> str:
    value = node.metadata.get("OUTBOUND_LISTEN", DEFAULT_OUTBOUND_LISTEN)
    if not isinstance(value, str):
        raise ValueError('node metadata OUTBOUND_LISTEN must be a string such as "127.0.0.1:15001"')
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f'node metadata OUTBOUND_LISTEN must be "host:port", not {value!r}')
    return value
