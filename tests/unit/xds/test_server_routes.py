"""What a server cannot do of routes is said by name when they come, not by the first request."""

import pytest

from meshlib.model.filters import ListedLimit, LocalRateLimit
from meshlib.model.listener import ServerListener
from meshlib.model.matcher import Fraction, PathKind, PathMatcher
from meshlib.model.route import HeaderAdd, NonForwarding, Route, RouteConfiguration, RouteMatcher, VirtualHost
from meshlib.model.snapshot import ConfigFault, InboundConfig
from meshlib.xds.resources import LDS, RDS
from meshlib.xds.server_routes import unusable_in_server
from tests.unit.xds.test_follow_targets import World

ADDING = LocalRateLimit(None, Fraction(100), Fraction(0), unenforced_headers=(HeaderAdd("x", "1"),))
LISTED = (ListedLimit("limit", None),)
ADDS = "request_headers_to_add_when_not_enforced is not supported in a server"


def routes(*, of_all=(), of_host=(), of_route=(), name="r"):
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/")), NonForwarding(), limits=of_route)
    return RouteConfiguration(name, (VirtualHost("v", ("*",), (route,), limits=of_host),), limits=of_all)


@pytest.mark.parametrize(
    ("level", "place"),
    [("of_all", ""), ("of_host", "virtual host 'v': "), ("of_route", "virtual host 'v': ")],
)
def test_headers_to_add(level, place):
    assert f"{place}filter limit: {ADDS}" == unusable_in_server(routes(**{level: (("limit", ADDING),)}), LISTED)


def test_only_what_the_listener_has_counts():
    assert "" == unusable_in_server(routes(of_route=(("limit", ADDING),)), ())
    assert "" == unusable_in_server(routes(of_route=(("limit", None),)), LISTED)
    assert f"filter limit: {ADDS}" == unusable_in_server(routes(), (ListedLimit("limit", ADDING),))


def test_routes_of_their_own_leave_the_server_without_a_configuration():
    world = World(inbound=("in",))
    world.put(LDS, "in", ServerListener("in", "127.0.0.1:1", None, (), "r", limits=LISTED))
    world.put(RDS, "r", routes())
    world.settle()
    assert isinstance(world.snapshot.inbound["in"], InboundConfig)
    world.put(RDS, "r", routes(of_route=(("limit", ADDING),)))
    world.settle()
    found = world.snapshot.inbound["in"]
    assert isinstance(found, ConfigFault)
    assert "RDS: r" == found.resource
    assert ADDS in found.message
