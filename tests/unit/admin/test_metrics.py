"""The standard metrics and their exporters' view of them."""

import pytest

from meshlib.admin.metrics import LABELS, StandardMetrics, destination_of
from meshlib.events import AttemptFinished, CallFinished, HostEjected, RequestMirrored, RequestServed
from meshlib.model.endpoint import Endpoint

CLUSTER = "outbound|80|v2|checkout.default.svc.cluster.local"
ENDPOINT = Endpoint("127.0.0.1:1")


def call(**changes: object) -> CallFinished:
    facts: dict[str, object] = {
        "kind": "http",
        "target": "checkout",
        "method": "GET",
        "route": "",
        "cluster": CLUSTER,
        "endpoint": ENDPOINT,
        "attempts": 1,
        "duration_s": 0.003,
        "status": 200,
        "grpc_status": None,
        "flag": "-",
        "secure": True,
    }
    return CallFinished(**(facts | changes))  # type: ignore[arg-type]


def served(**changes: object) -> RequestServed:
    facts: dict[str, object] = {
        "kind": "http",
        "service": "user-service",
        "method": "GET",
        "path": "/users/7",
        "principal": "spiffe://cluster.local/ns/default/sa/gateway",
        "duration_s": 0.2,
        "status": 200,
        "grpc_status": None,
        "denied": False,
    }
    return RequestServed(**(facts | changes))  # type: ignore[arg-type]


def labels(metrics: StandardMetrics, index: int = 0) -> dict[str, str]:
    return dict(zip(LABELS, metrics.requests()[index].labels, strict=True))


def test_call_is_counted_under_its_destination() -> None:
    metrics = StandardMetrics(app="gateway", version="v1", namespace="default")
    metrics(call())
    metrics(call())
    (sample,) = metrics.requests()
    assert 2 == sample.count
    seen = labels(metrics)
    assert ("source", "gateway", "checkout", "v2", "200") == (
        seen["reporter"],
        seen["source_app"],
        seen["destination_service_name"],
        seen["destination_version"],
        seen["response_code"],
    )


def test_durations_fall_into_buckets_with_inclusive_bounds() -> None:
    metrics = StandardMetrics(buckets_ms=(1, 5, 10))
    for seconds in (0.001, 0.0011, 0.005, 0.5):
        metrics(call(duration_s=seconds))
    (sample,) = metrics.requests()
    assert (1, 2, 0, 1) == sample.buckets
    assert 507.1 == round(sample.sum_ms, 6)


def test_server_side_names_the_caller_by_its_identity() -> None:
    metrics = StandardMetrics(app="user-service", version="v1", namespace="default")
    metrics(served())
    seen = labels(metrics)
    assert ("destination", "gateway", "default", "mutual_tls") == (
        seen["reporter"],
        seen["source_app"],
        seen["source_workload_namespace"],
        seen["connection_security_policy"],
    )


def test_anonymous_caller_is_unknown() -> None:
    metrics = StandardMetrics()
    metrics(served(principal=""))
    seen = labels(metrics)
    assert ("unknown", "unknown", "none") == (
        seen["source_app"],
        seen["source_principal"],
        seen["connection_security_policy"],
    )


def test_number_of_series_is_bounded_and_nothing_is_lost() -> None:
    metrics = StandardMetrics(max_series=10)
    for number in range(100):
        metrics(call(cluster=f"outbound|80||s{number}.default.svc.cluster.local"))
    assert 11 == len(metrics.requests())
    assert 100 == sum(sample.count for sample in metrics.requests())


def test_attempts_and_ejections_are_counted() -> None:
    metrics = StandardMetrics()
    facts = {"target": "checkout", "cluster": CLUSTER, "endpoint": ENDPOINT, "duration_s": 0.1}
    metrics(AttemptFinished(**facts, number=1, status=0, grpc_status=None, failure="connect", will_retry=True))  # type: ignore[arg-type]
    metrics(AttemptFinished(**facts, number=2, status=200, grpc_status=None, failure="", will_retry=False))  # type: ignore[arg-type]
    metrics(HostEjected(CLUSTER, ENDPOINT, "consecutive_5xx", 30.0))
    assert {(CLUSTER, "retried"): 1, (CLUSTER, "2xx"): 1} == metrics.attempts()
    assert {(CLUSTER, "consecutive_5xx"): 1} == metrics.ejections()


def test_copies_are_counted_apart_from_calls() -> None:
    metrics = StandardMetrics()
    for status, failure in ((200, ""), (503, ""), (0, "timeout"), (204, "")):
        metrics(RequestMirrored("checkout", CLUSTER, None, 0.1, status, failure))

    assert {(CLUSTER, "2xx"): 2, (CLUSTER, "5xx"): 1, (CLUSTER, "timeout"): 1} == metrics.mirrored()
    assert () == metrics.requests()


def test_destination_of_istio_names() -> None:
    assert ("checkout.default.svc.cluster.local", "checkout", "default", "v2") == destination_of(CLUSTER, "x")


def test_destination_of_an_external_host() -> None:
    assert ("api.example.com", "api.example.com", "unknown", "unknown") == destination_of(
        "outbound|443||api.example.com", "x"
    )


def test_destination_of_other_names_is_the_cluster() -> None:
    assert ("c1", "c1", "unknown", "unknown") == destination_of("c1", "target")
    assert ("target", "target", "unknown", "unknown") == destination_of("", "target")


def test_the_limit_of_series_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    metrics = StandardMetrics(max_series=2)
    for number in range(9):
        metrics(call(cluster=f"outbound|80||s{number}.default.svc.cluster.local"))
    (record,) = caplog.records
    assert ("WARNING", True) == (record.levelname, "2 sets of labels" in record.getMessage())


def test_who_we_are_can_be_said_later_and_is_not_changed() -> None:
    metrics = StandardMetrics(version="v1")
    metrics(call())
    metrics.identify(app="gateway", namespace="shop")
    metrics.identify(app="other", version="v2", namespace="other")
    metrics(call())
    before, after = labels(metrics, 0), labels(metrics, 1)
    assert ("unknown", "unknown") == (before["source_app"], before["source_workload_namespace"])
    assert ("gateway", "v1", "shop") == (
        after["source_app"],
        after["source_version"],
        after["source_workload_namespace"],
    )


def test_a_server_is_named_as_its_callers_name_it() -> None:
    metrics = StandardMetrics(namespace="default")
    metrics(served())
    seen = labels(metrics)
    assert ("user-service.default.svc.cluster.local", "user-service") == (
        seen["destination_service"],
        seen["destination_service_name"],
    )


def test_a_server_without_namespace_has_its_bare_name() -> None:
    metrics = StandardMetrics()
    metrics(served())
    assert "user-service" == labels(metrics)["destination_service"]


def test_rpc_has_protocol_and_status() -> None:
    metrics = StandardMetrics()
    metrics(call(kind="grpc", grpc_status=14, flag="UF"))
    metrics(served(kind="grpc", grpc_status=0))
    outbound, inbound = labels(metrics, 0), labels(metrics, 1)
    assert ("grpc", "200", "14", "UF", "unknown") == tuple(
        outbound[name]
        for name in (
            "request_protocol", "response_code", "grpc_response_status", "response_flags", "connection_security_policy",
        )
    )  # fmt: skip
    assert ("grpc", "0", "-") == tuple(
        inbound[name] for name in ("request_protocol", "grpc_response_status", "response_flags")
    )


def test_a_call_that_went_well_counts_as_its_attempt_and_its_end() -> None:
    at_once, apart = StandardMetrics(max_series=3), StandardMetrics(max_series=3)
    for number in range(6):
        for cluster in ("outbound|80||a.default.svc.cluster.local", f"b-{number}"):
            at_once.succeeded(cluster, "target", number % 2 == 0, number / 10)
            apart.attempted(cluster, 200, 0, "", False)
            apart.ended("grpc", cluster, "target", 200, 0, "-", number % 2 == 0, number / 10)
        if number == 3:
            at_once.identify(app="named", namespace="since")
            apart.identify(app="named", namespace="since")
    assert apart.requests() == at_once.requests()
    assert apart.attempts() == at_once.attempts()
