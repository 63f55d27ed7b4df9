from typing import Any

import pytest

from meshlib.model.listener import ClientListener
from meshlib.model.route import RouteConfiguration, WeightedClusters
from meshlib.model.session import MadeCookie, SessionCookie, SessionEnvelope, SessionHeader, SessionPolicy
from meshlib.protos import from_dict
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import LDS, RDS

TYPE = "type.googleapis.com/"
FILTER = f"{TYPE}envoy.extensions.filters.http.stateful_session.v3.StatefulSession"
STATE = f"{TYPE}envoy.extensions.http.stateful_session"
NAME = "envoy.filters.http.stateful_session"


def state(kind: str, message: str, **fields: Any) -> dict[str, Any]:
    return {"name": kind, "typed_config": {"@type": f"{STATE}.{kind}.v3.{message}", **fields}}


def struct(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    """Return the state that Envoy knows by its name."""
    packed = {"@type": f"{TYPE}google.protobuf.Struct", "value": value}
    return {"name": f"envoy.http.stateful_session.{kind}", "typed_config": packed}


def typed_struct(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    packed = {
        "@type": f"{TYPE}xds.type.v3.TypedStruct",
        "type_url": f"{STATE}.{kind}.v3.HeaderBasedSessionState",
        "value": value,
    }
    return {"name": kind, "typed_config": packed}


COOKIE = state("cookie", "CookieBasedSessionState", cookie={"name": "s", "ttl": "60.9s", "path": "/x"})


def listener(*filters: dict[str, Any]) -> Decoded:
    manager = {
        "@type": f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "rds": {"config_source": {"ads": {}}, "route_config_name": "r"},
        "http_filters": [
            *filters,
            {"name": "router", "typed_config": {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}},
        ],
    }
    message = {"name": "l", "api_listener": {"api_listener": manager}}
    return decode_resource(LDS, from_dict("envoy.config.listener.v3.Listener", message).SerializeToString())


def session_filter(**fields: Any) -> dict[str, Any]:
    return {"name": NAME, "typed_config": {"@type": FILTER, **fields}}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (COOKIE, SessionCookie("s", MadeCookie(60, "/x"))),
        (state("header", "HeaderBasedSessionState", name="X-Session"), SessionHeader("x-session")),
        (state("envelope", "EnvelopeSessionState", header={"name": "X-Session"}), SessionEnvelope("x-session")),
        (
            struct("cookie", {"cookie": {"name": "s", "ttl": "60.9s", "path": "/x"}}),
            SessionCookie("s", MadeCookie(60, "/x")),
        ),
        (struct("header", {"name": "X-Session"}), SessionHeader("x-session")),
        (struct("envelope", {"header": {"name": "X-Session"}}), SessionEnvelope("x-session")),
        (typed_struct("header", {"name": "X-Session"}), SessionHeader("x-session")),
    ],
)
def test_states_of_the_filter(config: dict[str, Any], expected: object) -> None:
    decoded = listener(session_filter(session_state=config, strict=True))
    assert isinstance(decoded.value, ClientListener), decoded.errors
    assert decoded.value.has_session_filter
    assert SessionPolicy(expected, is_strict=True) == decoded.value.session  # type: ignore[arg-type]


def test_filter_without_a_state_is_there_for_what_routes_say() -> None:
    decoded = listener(session_filter())
    assert isinstance(decoded.value, ClientListener), decoded.errors
    assert decoded.value.has_session_filter
    assert SessionPolicy() == decoded.value.session


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ([session_filter(), {**session_filter(), "name": "other"}], "second filter"),
        ([session_filter(session_state=state("cookie", "CookieBasedSessionState", cookie={}))], "name"),
        ([session_filter(session_state={"name": "x"})], "typed_config: is required"),
        ([session_filter(session_state={**struct("header", {"name": "a"}), "name": "x"})], "x is not supported"),
        ([session_filter(session_state=struct("header", {}))], "name"),
        ([session_filter(session_state=struct("header", {"name": 1}))], "is not a envoy.extensions"),
        ([session_filter(session_state=state("header", "HeaderBasedSessionState"))], "name"),
    ],
)
def test_filters_that_are_refused(filters: list[dict[str, Any]], reason: str) -> None:
    decoded = listener(*filters)
    assert any(reason in error for error in decoded.errors), decoded.errors


def per_route(**fields: Any) -> dict[str, Any]:
    return {NAME: {"@type": f"{FILTER}PerRoute", **fields}}


def routes(**levels: dict[str, Any]) -> RouteConfiguration:
    entry = {"name": "c", "weight": 1, "typed_per_filter_config": levels.get("entry", {})}
    route = {
        "match": {"prefix": "/"},
        "route": {"weighted_clusters": {"clusters": [entry]}},
        "typed_per_filter_config": levels.get("route", {}),
    }
    host = {
        "name": "v",
        "domains": ["*"],
        "routes": [route],
        "typed_per_filter_config": levels.get("host", {}),
    }
    message = {"name": "r", "virtual_hosts": [host], "typed_per_filter_config": levels.get("top", {})}
    packed = from_dict("envoy.config.route.v3.RouteConfiguration", message).SerializeToString()
    decoded = decode_resource(RDS, packed)
    assert isinstance(decoded.value, RouteConfiguration), decoded.errors
    return decoded.value


def test_overrides_of_every_level() -> None:
    on = per_route(stateful_session={"session_state": COOKIE})
    wrapped = {NAME: {"@type": f"{TYPE}envoy.config.route.v3.FilterConfig", "config": on[NAME]}}
    off = {NAME: {"@type": f"{TYPE}envoy.config.route.v3.FilterConfig", "disabled": True}}
    found = routes(top=off, host=per_route(disabled=True), route=wrapped, entry=on)
    (host,) = found.virtual_hosts
    (route,) = host.routes
    assert SessionPolicy() == found.session
    assert SessionPolicy() == host.session
    policy = SessionPolicy(SessionCookie("s", MadeCookie(60, "/x")))
    assert policy == route.session
    action: Any = route.action
    assert isinstance(action.cluster, WeightedClusters)
    assert policy == action.cluster.clusters[0].session
    assert routes().session is None
