"""Runtime values: how they are read, which layer counts, and what they change."""

import pytest

from meshlib.errors import BootstrapError
from meshlib.model.discovery import RuntimeLayer, RuntimeValue
from meshlib.model.matcher import Fraction, PathKind, PathMatcher
from meshlib.model.route import (
    ClusterWeight,
    FaultAbort,
    FaultDelay,
    FaultPolicy,
    MirrorPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.protos import from_dict
from meshlib.xds.bootstrap import parse_bootstrap
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import RTDS
from meshlib.xds.runtime import merge_layers, with_runtime


def layer(**values: object) -> Decoded:
    message = from_dict("envoy.service.runtime.v3.Runtime", {"name": "r", "layer": values})
    return decode_resource(RTDS, message.SerializeToString())


def test_values_are_read_as_envoy_reads_them() -> None:
    found = layer(
        number=5,
        text="7.5",
        switch=True,
        switched="false",
        share={"numerator": 3, "denominator": "TEN_THOUSAND"},
        whole={"numerator": 50},
        a={"b": {"c": 1}, "d": 2},
    )
    assert isinstance(found.value, RuntimeLayer)
    assert found.value.name == "r"
    assert dict(found.value.values) == {
        "number": 5.0,
        "text": 7.5,
        "switch": True,
        "switched": False,
        "share": Fraction(3, 10_000),
        "whole": Fraction(50),
        "a.b.c": 1.0,
        "a.d": 2.0,
    }


def test_texts_have_no_effect_and_say_so() -> None:
    found = layer(note="hello")
    assert (found.errors, found.unused) == ((), ("layer.note: texts have no effect",))


@pytest.mark.parametrize(
    "value",
    [
        {"numerator": -1},
        {"numerator": 1.5},
        {"numerator": "x"},
        {"numerator": 1, "denominator": "DOZEN"},
        {"numerator": 1, "other": 2},
        [1],
        None,
    ],
)
def test_values_that_make_no_sense_are_refused(value: object) -> None:
    (error,) = layer(key=value).errors
    assert error.startswith("layer.key: ")


def test_later_layers_count() -> None:
    assert merge_layers([{"a": 1.0, "b": 2.0}, {"b": 3.0}]) == {"a": 1.0, "b": 3.0}


def routes(
    share: Fraction | None = None, mirror: Fraction | None = None, fault: FaultPolicy | None = None
) -> RouteConfiguration:
    mirrors = () if mirror is None else (MirrorPolicy("m", mirror),)
    match = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), fraction=share)
    route = Route(match, RouteAction(SingleCluster("c"), mirrors=mirrors), fault=fault)
    return RouteConfiguration("r", (VirtualHost("h", ("*",), (route,)),))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (20.0, Fraction(20, 100, "k")),
        (250.0, Fraction(100, 100, "k")),
        (2.9, Fraction(2, 100, "k")),
        (-1.0, Fraction(50, 100, "k")),
        (True, Fraction(50, 100, "k")),
        (Fraction(1, 1_000_000), Fraction(1, 1_000_000, "k")),
    ],
)
def test_share_of_a_route_is_the_value_of_its_key(value: RuntimeValue, expected: Fraction) -> None:
    found = with_runtime(routes(Fraction(50, 100, "k")), {"k": value})
    assert found.virtual_hosts[0].routes[0].match.fraction == expected


def test_what_names_no_key_stays_the_same_object() -> None:
    plain = routes(Fraction(50), Fraction(10))
    assert with_runtime(plain, {"k": 1.0}) is plain
    keyed = routes(Fraction(50, 100, "k"))
    assert with_runtime(keyed, {}) is keyed
    assert with_runtime(keyed, {"k": 50.0}) is keyed


def test_mirrors_have_keys_too() -> None:
    found = with_runtime(routes(mirror=Fraction(10, 100, "m")), {"m": 100.0})
    assert isinstance(found.virtual_hosts[0].routes[0].action, RouteAction)
    assert found.virtual_hosts[0].routes[0].action.mirrors == (MirrorPolicy("m", Fraction(100, 100, "m")),)


def test_faults_have_envoys_keys_unless_they_name_their_own() -> None:
    fault = FaultPolicy(FaultDelay(1.0, Fraction(0)), FaultAbort(Fraction(0, 100, "mine"), 503))
    runtime = {"fault.http.delay.fixed_delay_percent": 30.0, "fault.http.abort.abort_percent": 40.0, "mine": 50.0}
    found = with_runtime(routes(fault=fault), runtime).virtual_hosts[0].routes[0].fault
    assert found == FaultPolicy(FaultDelay(1.0, Fraction(30)), FaultAbort(Fraction(50, 100, "mine"), 503))


def test_weights_of_clusters_have_a_prefix() -> None:
    weights = WeightedClusters((ClusterWeight("a", 90), ClusterWeight("b", 10)), runtime_key_prefix="split")
    changed = with_runtime(weights, {"split.a": 40.0, "split.b": 60.0})
    assert [entry.weight for entry in changed.clusters] == [40, 60]
    assert with_runtime(weights, {"split.a": 0.0, "split.b": 0.0}) is weights
    assert with_runtime(weights, {"split.c": 7.0}) is weights


# The bootstrap.


def layers(*found: object) -> tuple[RuntimeLayer | str, ...]:
    server = {"server_uri": "s:1", "channel_creds": [{"type": "insecure"}]}
    data = {"xds_servers": [server], "meshlib": {"layered_runtime": {"layers": list(found)}}}
    return parse_bootstrap(data, origin="test").runtime


def test_layers_of_the_bootstrap() -> None:
    static = {"name": "a", "static_layer": {"x": {"y": 5}}}
    live = {"name": "b", "rtds_layer": {"name": "rollout", "rtds_config": {"ads": {}}}}
    assert layers(static, live) == (RuntimeLayer("a", {"x.y": 5.0}), "rollout")


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({"static_layer": {}}, "/meshlib/layered_runtime/layers/0/name: is required"),
        ({"name": "a"}, "must be one static_layer or rtds_layer, is neither"),
        ({"name": "a", "admin_layer": {}}, "must be one static_layer or rtds_layer, is admin_layer"),
        ({"name": "a", "rtds_layer": {}}, "/rtds_layer/name: is required"),
        ({"name": "a", "rtds_layer": {"name": "r", "rtds_config": {"path": "/x"}}}, "rtds_config: must be ads or self"),
        ({"name": "a", "static_layer": {"x": {"numerator": -1}}}, "x: is not a FractionalPercent"),
    ],
)
def test_layers_that_cannot_be_honoured_are_refused(found: object, error: str) -> None:
    with pytest.raises(BootstrapError, match=error):
        layers(found)


def test_names_of_layers_are_unique() -> None:
    with pytest.raises(BootstrapError, match="'a' is the name of an earlier layer"):
        layers({"name": "a", "static_layer": {}}, {"name": "a", "static_layer": {}})
