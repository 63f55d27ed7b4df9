"""Runtime values: how they are read, which layer counts, and what they change."""

from dataclasses import replace
from typing import Any

import pytest

from meshlib.errors import BootstrapError
from meshlib.model.cluster import (
    CircuitBreakers,
    Cluster,
    EdsDiscovery,
    LeastRequest,
    OutlierDetection,
    SlowStart,
    ZoneAware,
)
from meshlib.model.discovery import FilterConfig, RuntimeLayer, RuntimeValue
from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl, ListedLimit, LocalRateLimit
from meshlib.model.health import HealthCheck, HttpProbe
from meshlib.model.local_reply import AllOf, Comparison, ReplyMapper, ReplyRules, Sampled, StatusIs, TookMs
from meshlib.model.matcher import Fraction, PathKind, PathMatcher
from meshlib.model.retry import RetryPolicy
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
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.resources import CDS, ECDS, RTDS
from meshlib.xds.runtime import merge_layers, with_runtime
from meshlib.xds.runtime_cluster import cluster_with_runtime


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
    assert (found.delay, found.abort) == (FaultDelay(1.0, Fraction(30)), FaultAbort(Fraction(50, 100, "mine"), 503))


def test_weights_of_clusters_have_a_prefix() -> None:
    weights = WeightedClusters((ClusterWeight("a", 90), ClusterWeight("b", 10)), runtime_key_prefix="split")
    changed = with_runtime(weights, {"split.a": 40.0, "split.b": 60.0})
    assert [entry.weight for entry in changed.clusters] == [40, 60]
    assert with_runtime(weights, {"split.a": 0.0, "split.b": 0.0}) is weights
    assert with_runtime(weights, {"split.c": 7.0}) is weights


def test_faults_have_times_and_statuses_of_their_own() -> None:
    fault = FaultPolicy(
        FaultDelay(1.0, Fraction(100)),
        FaultAbort(Fraction(100), 503, runtime_keys=(("http_status", "mine"),)),
        max_active=9,
    )
    runtime = {
        "fault.http.delay.fixed_duration_ms": 250.0,
        "fault.http.abort.http_status": 418.0,
        "mine": 429.0,
        "fault.http.max_active_faults": 3.0,
    }
    found = with_runtime(fault, runtime)
    assert (found.delay, found.abort) == (FaultDelay(0.25, Fraction(100)), FaultAbort(Fraction(100), 429))
    assert found.max_active == 3
    assert with_runtime(fault, {"mine": 42.0}) is fault
    rpc = FaultPolicy(abort=FaultAbort(Fraction(100), grpc_status=14))
    changed = with_runtime(rpc, {"fault.http.abort.grpc_status": 8.0}).abort
    assert changed is not None and changed.grpc_status == 8
    assert with_runtime(rpc, {"fault.http.abort.grpc_status": 17.0, "fault.http.abort.http_status": 500.0}) is rpc


def test_faults_that_requests_ask_for_are_by_runtime_values_too() -> None:
    by_header = FaultPolicy(FaultDelay(0.0, Fraction(100), by_header=True), FaultAbort(Fraction(100), by_header=True))
    values: dict[str, float | bool | Fraction] = {
        "fault.http.delay.fixed_duration_ms": 250.0,
        "fault.http.delay.fixed_delay_percent": 100.0,
        "fault.http.abort.http_status": 429.0,
        "fault.http.abort.grpc_status": 8.0,
    }
    found = with_runtime(by_header, values)
    assert found.delay == FaultDelay(0.0, Fraction(100), by_header=True, instead_s=0.25, is_share_fixed=True)
    assert found.abort == FaultAbort(Fraction(100), 429, 8, by_header=True)


def test_requests_of_a_named_cluster_have_faults_of_their_own() -> None:
    fault = FaultPolicy(FaultDelay(1.0, Fraction(50)), FaultAbort(Fraction(50), 503))
    runtime: dict[str, float | bool | Fraction] = {
        "fault.http.delay.fixed_delay_percent": 10.0,
        "fault.http.delay.fixed_duration_ms": 100.0,
        "fault.http.abort.http_status": 429.0,
        "fault.http.web.abort.abort_percent": 20.0,
        "fault.http.web.abort.http_status": 418.0,
        "fault.http.a.b.delay.fixed_delay_percent": 30.0,
        "fault.http.a.b.delay.fixed_duration_ms": 7.0,
        "fault.http..abort.abort_percent": 0.0,
        "fault.http.web.rate_limit.response_percent": 1.0,
    }
    found = with_runtime(fault, runtime)
    assert (found.delay, found.abort) == (FaultDelay(0.1, Fraction(10)), FaultAbort(Fraction(50), 429))
    assert found.by_caller.keys() == {"web", "a.b", ""}
    # The general keys do not concern them, but for the length of a delay.
    web, dotted, nameless, others = *(found.by_caller[name] for name in ("web", "a.b", "")), found.for_callers
    assert others is not None
    assert (web.delay, web.abort) == (FaultDelay(0.1, Fraction(50)), FaultAbort(Fraction(20), 418))
    assert (dotted.delay, dotted.abort) == (FaultDelay(0.007, Fraction(30)), FaultAbort(Fraction(50), 503))
    assert (nameless.delay, nameless.abort) == (FaultDelay(0.1, Fraction(50)), FaultAbort(Fraction(0), 503))
    assert (others.delay, others.abort) == (FaultDelay(0.1, Fraction(50)), FaultAbort(Fraction(50), 503))


FAULT_KEYS = {
    "delay_duration_runtime": "d",
    "abort_http_status_runtime": "h",
    "abort_grpc_status_runtime": "g",
    "max_active_faults_runtime": "m",
}


def test_keys_of_faults_are_read() -> None:
    share = {"numerator": 100}
    fields = {"delay": {"fixed_delay": "1s", "percentage": share}, "abort": {"http_status": 503, "percentage": share}}
    kind = "envoy.extensions.filters.http.fault.v3.HTTPFault"
    config = {"@type": f"type.googleapis.com/{kind}", **fields, **FAULT_KEYS}
    message = from_dict("envoy.config.core.v3.TypedExtensionConfig", {"name": "f", "typed_config": config})
    decoded = decode_resource(ECDS, message.SerializeToString())
    assert (decoded.errors, decoded.unused) == ((), ())
    assert isinstance(decoded.value, FilterConfig)
    found = with_runtime(decoded.value.config, {"d": 5.0, "h": 500.0, "m": 1.0})
    assert isinstance(found, FaultPolicy)
    assert (found.delay, found.abort) == (FaultDelay(0.005, Fraction(100)), FaultAbort(Fraction(100), 500))
    assert found.max_active == 1


def test_a_wait_before_retries_that_the_resource_does_not_say_is_a_runtime_value() -> None:
    key = "upstream.base_retry_backoff_ms"
    assert with_runtime(RetryPolicy(frozenset({"5xx"})), {key: 100.0}).base_interval_s == 0.1
    own = RetryPolicy(frozenset({"5xx"}), has_own_base=True)
    assert with_runtime(own, {key: 100.0}) is own


def test_conditions_on_answers_have_keys() -> None:
    keys = (("value", "k"),)
    rules = ReplyRules(
        (
            ReplyMapper(AllOf((StatusIs(Comparison.GE, 500, keys), TookMs(Comparison.GE, 10, keys)))),
            ReplyMapper(Sampled(Fraction(0, 100, "share"))),
        )
    )
    expected = ReplyRules(
        (
            ReplyMapper(AllOf((StatusIs(Comparison.GE, 404, keys), TookMs(Comparison.GE, 404, keys)))),
            ReplyMapper(Sampled(Fraction(7, 100, "share"))),
        )
    )
    assert expected == with_runtime(rules, {"k": 404.0, "share": 7.0})


def test_filters_that_limit_have_keys() -> None:
    keys = (
        ("is_enabled", "on"),
        ("aggression", "a"),
        ("threshold", "t"),
        ("rps_threshold", "r"),
        ("max_rejection", "m"),
    )
    filters = (ListedLimit("x", AdmissionControl(runtime_keys=keys)),)
    found = with_runtime(filters, {"on": False, "a": 3.0, "t": 50.0, "r": 7.9, "m": 250.0})
    assert found[0].config == AdmissionControl(False, 30.0, 3.0, 0.5, 7, 1.0)
    assert with_runtime(filters, {"on": 1.0, "a": 0.5, "t": -1.0}) is filters
    adaptive = AdaptiveConcurrency(runtime_keys=(("is_enabled", "on"),))
    assert with_runtime(adaptive, {"on": False}).is_enabled is False
    rate = ListedLimit("y", LocalRateLimit(None, Fraction(0, 100, "e"), Fraction(0, 100, "f")))
    changed = with_runtime(rate, {"e": 100.0, "f": 10.0}).config
    assert isinstance(changed, LocalRateLimit)
    assert (changed.enabled.numerator, changed.enforced.numerator) == (100, 10)


CHECK = HealthCheck(HttpProbe("/"), 1.0, 5.0, 2, 2)


def cluster(**fields: Any) -> Cluster:
    return Cluster("a.b", EdsDiscovery("a.b"), **fields)


@pytest.mark.parametrize(
    ("before", "runtime", "after"),
    [
        (
            cluster(),
            {"circuit_breakers.a.b.default.max_requests": 5.0, "circuit_breakers.a.b.high.max_retries": 9.0},
            cluster(
                circuit_breakers=CircuitBreakers(max_requests=5),
                high_priority_circuit_breakers=CircuitBreakers(max_retries=9),
            ),
        ),
        (
            cluster(),
            {
                "circuit_breakers.a.b.default.max_connections": 1.0,
                "circuit_breakers.a.b.default.max_pending_requests": 0.0,
                "circuit_breakers.a.b.default.retry_budget.min_retry_concurrency": 4.0,
            },
            cluster(
                circuit_breakers=CircuitBreakers(
                    max_connections=1, max_pending_requests=0, retry_budget_percent=20.0, min_retry_concurrency=4
                )
            ),
        ),
        (
            cluster(),
            {"circuit_breakers.a.b.high.retry_budget.budget_percent": 12.5},
            cluster(high_priority_circuit_breakers=CircuitBreakers(retry_budget_percent=12.5)),
        ),
        (
            cluster(outlier_detection=OutlierDetection()),
            {
                "outlier_detection.consecutive_5xx": 2.0,
                "outlier_detection.interval_ms": 1500.0,
                "outlier_detection.base_ejection_time_ms": 0.0,
                "outlier_detection.max_ejection_percent": 150.0,
                "outlier_detection.enforcing_consecutive_5xx": 0.0,
                "outlier_detection.success_rate_stdev_factor": 100.0,
            },
            cluster(
                outlier_detection=OutlierDetection(
                    consecutive_5xx=2,
                    interval_s=1.5,
                    base_ejection_time_s=0.0,
                    max_ejection_percent=100,
                    enforcing_consecutive_5xx=0,
                    success_rate_stdev_factor=100,
                )
            ),
        ),
        (cluster(), {"upstream.maintenance_mode.a.b": 250.0}, cluster(maintenance_percent=100)),
        (
            cluster(health_check=CHECK),
            {
                "health_check.min_interval": 1500.0,
                "health_check.max_interval": 3000.0,
                "health_check.verify_cluster": 40.0,
            },
            cluster(health_check=replace(CHECK, min_wait_s=1.5, max_wait_s=3.0, verify_percent=40)),
        ),
        (cluster(), {"upstream.healthy_panic_threshold": 0.0}, cluster(panic_threshold_percent=0.0)),
        (
            cluster(),
            {"upstream.zone_routing.enabled": 50.0, "upstream.zone_routing.min_cluster_size": 2.0},
            cluster(zone_aware=ZoneAware(enabled_percent=50, min_cluster_size=2)),
        ),
        (
            cluster(),
            {"upstream.zone_routing.enabled": 0.0},
            cluster(zone_aware=ZoneAware(enabled_percent=0)),
        ),
        (
            cluster(
                lb_policy=LeastRequest(
                    slow_start=SlowStart(9.0, runtime_keys=(("aggression", "g"),)),
                    runtime_keys=(("active_request_bias", "b"),),
                )
            ),
            {"b": 0.5, "g": 2.0},
            cluster(lb_policy=LeastRequest(active_request_bias=0.5, slow_start=SlowStart(9.0, 2.0))),
        ),
    ],
)
def test_clusters_have_envoys_keys(before: Cluster, runtime: dict[str, RuntimeValue], after: Cluster) -> None:
    found = cluster_with_runtime(before, runtime)
    assert found == after != before


@pytest.mark.parametrize(
    "runtime",
    [
        {},
        {"upstream.maintenance_mode.a": 5.0, "upstream.maintenance_mode.a.b": 0.0, "health_check.min_interval": 5.0},
        {"circuit_breakers.b.default.max_requests": 5.0, "outlier_detection.consecutive_5xx": 1.0},
        {"circuit_breakers.a.b.default.max_requests": 1024.0, "upstream.healthy_panic_threshold": 50.0},
        {"upstream.healthy_panic_threshold": True, "circuit_breakers.a.b.default.max_requests": -1.0},
    ],
)
def test_a_cluster_that_no_value_concerns_stays_the_same_object(runtime: dict[str, RuntimeValue]) -> None:
    plain = cluster()
    assert cluster_with_runtime(plain, runtime) is plain


def test_rounds_of_outlier_detection_keep_a_pause() -> None:
    plain = cluster(outlier_detection=OutlierDetection())
    assert cluster_with_runtime(plain, {"outlier_detection.interval_ms": 0.0}) is plain


def test_keys_of_policies_and_limits_are_read() -> None:
    slow = {"slow_start_window": "5s", "aggression": {"default_value": 2.0, "runtime_key": "g"}}
    config = {"active_request_bias": {"default_value": 1.0, "runtime_key": "b"}, "slow_start_config": slow}
    resource = {
        "name": "c",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}}},
        "lb_policy": "LEAST_REQUEST",
        "least_request_lb_config": config,
    }
    decoded = decode_resource(CDS, from_dict("envoy.config.cluster.v3.Cluster", resource).SerializeToString())
    assert (decoded.errors, decoded.unused) == ((), ())
    assert isinstance(decoded.value, Cluster)
    found = cluster_with_runtime(decoded.value, {"b": 0.25, "g": 3.0})
    assert found.lb_policy == LeastRequest(active_request_bias=0.25, slow_start=SlowStart(5.0, 3.0))


def test_envoys_keys_without_an_effect_here_say_so() -> None:
    found = layer(
        upstream={"weight_enabled": 50, "healthy_panic_threshold": 10}, re2={"max_program_size": {"error_level": 5}}
    )
    assert (found.errors, sorted(found.unused)) == (
        (),
        [
            "layer.re2.max_program_size.error_level: has no effect here",
            "layer.upstream.weight_enabled: has no effect here",
        ],
    )


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
