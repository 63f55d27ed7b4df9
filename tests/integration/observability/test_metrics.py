"""The standard metrics of both sides, as Prometheus and as OpenTelemetry see them."""

import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from meshlib.admin.metrics import LABELS, StandardMetrics
from meshlib.integrations import opentelemetry, prometheus

TOTAL = "istio_requests_total"
DURATION = "istio_request_duration_milliseconds"
Samples = dict[str, list[tuple[dict[str, str], float]]]


@pytest.fixture
def metrics(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with nothing counted."""
    for mesh in (stage.back_mesh, stage.front_mesh):
        fresh = StandardMetrics()
        fresh.identify(app=mesh.bootstrap.node.id, version=mesh.bootstrap.node.metadata["LABELS"]["version"])
        fresh.identify(namespace="default")
        monkeypatch.setattr(mesh, "metrics", fresh)
        monkeypatch.setattr(mesh, "_hooks", (fresh,))


def scraped(mesh: Any) -> Samples:
    server = prometheus.serve(mesh, port=0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        server.close()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def collected(mesh: Any) -> Samples:
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    opentelemetry.export_metrics(mesh, meter=provider.get_meter("test"))
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    return {
        metric.name: [(dict(point.attributes), point.value) for point in metric.data.data_points]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def settle(stage: Any, front: int, back: int) -> None:
    """Wait until so many requests have been counted: a server counts one after its client has the answer."""
    deadline = time.monotonic() + 5
    for mesh, expected in ((stage.front_mesh, front), (stage.back_mesh, back)):
        while sum(sample.count for sample in mesh.metrics.requests()) < expected:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def by_labels(sample: tuple[dict[str, str], float]) -> list[tuple[str, str]]:
    return sorted(sample[0].items())


def only(samples: Samples, name: str, **labels: str) -> tuple[dict[str, str], float]:
    (found,) = [sample for sample in samples[name] if all(sample[0].get(key) == value for key, value in labels.items())]
    return found


@pytest.mark.usefixtures("metrics")
def test_a_call_is_counted_on_both_sides(stage: Any, asking: Callable[..., Any]) -> None:
    for _ in range(3):
        asking("asgi", "http", {})
    settle(stage, front=6, back=3)
    labels, count = only(scraped(stage.front_mesh), TOTAL, reporter="source")
    assert 3 == count
    assert {
        "reporter": "source",
        "source_app": "front",
        "source_version": "v7",
        "source_workload_namespace": "default",
        "source_principal": "unknown",
        "destination_service": "back.default.svc.cluster.local",
        "destination_service_name": "back",
        "destination_service_namespace": "default",
        "destination_version": "unknown",
        "request_protocol": "http",
        "response_code": "200",
        "grpc_response_status": "",
        "response_flags": "-",
        "connection_security_policy": "unknown",
    } == labels
    labels, count = only(scraped(stage.back_mesh), TOTAL)
    assert 3 == count
    assert {
        "reporter": "destination",
        "source_app": "unknown",
        "destination_service": "back.default.svc.cluster.local",
        "destination_service_name": "back",
        "destination_service_namespace": "default",
        "destination_version": "v1",
        "request_protocol": "http",
        "response_code": "200",
        "connection_security_policy": "none",
    }.items() <= labels.items()


@pytest.mark.usefixtures("metrics")
def test_durations_are_a_histogram_in_milliseconds(stage: Any, asking: Callable[..., Any]) -> None:
    asking("asgi", "http", {}, timeout_s=5)  # front takes 200 ms for its part
    settle(stage, front=2, back=1)
    samples = scraped(stage.front_mesh)
    buckets = {
        labels["le"]: value for labels, value in samples[f"{DURATION}_bucket"] if labels["reporter"] == "destination"
    }
    assert (0, 1) == (buckets["100.0"], buckets["+Inf"])
    assert sorted(buckets.values()) == list(buckets.values())
    _, total = only(samples, f"{DURATION}_sum", reporter="destination")
    assert 200 <= total < 5000
    assert 1 == only(samples, f"{DURATION}_count", reporter="destination")[1]


@pytest.mark.usefixtures("metrics")
def test_rpcs_have_their_status(stage: Any, asking: Callable[..., Any]) -> None:
    asking("grpc", "grpc", {})
    settle(stage, front=2, back=1)
    for mesh, reporter in ((stage.front_mesh, "source"), (stage.back_mesh, "destination")):
        labels, count = only(scraped(mesh), TOTAL, reporter=reporter)
        assert ("grpc", "200", "0", 1) == (
            labels["request_protocol"],
            labels["response_code"],
            labels["grpc_response_status"],
            count,
        )


@pytest.mark.usefixtures("metrics")
def test_retries_are_attempts_and_not_requests(stage: Any, asking: Callable[..., Any]) -> None:
    stage.back.refusals = 1
    asking("asgi", "http", {})
    settle(stage, front=2, back=2)
    samples = scraped(stage.front_mesh)
    assert 1 == only(samples, TOTAL, reporter="source")[1]
    cluster = "outbound|80||back.default.svc.cluster.local"
    assert {"retried": 1, "2xx": 1} == {
        labels["outcome"]: value for labels, value in samples["meshlib_attempts_total"] if labels["cluster"] == cluster
    }
    assert {"503": 1, "200": 1} == {labels["response_code"]: value for labels, value in scraped(stage.back_mesh)[TOTAL]}


@pytest.mark.usefixtures("metrics")
def test_opentelemetry_sees_the_same_numbers(stage: Any, asking: Callable[..., Any]) -> None:
    stage.back.refusals = 1
    asking("asgi", "http", {})
    asking("grpc", "grpc", {})
    settle(stage, front=4, back=3)
    for mesh in (stage.front_mesh, stage.back_mesh):
        ours, theirs = scraped(mesh), collected(mesh)
        for name in (TOTAL, f"{DURATION}_bucket", f"{DURATION}_count", f"{DURATION}_sum", "meshlib_attempts_total"):
            in_order = [sorted(values.get(name, []), key=by_labels) for values in (ours, theirs)]
            assert in_order[0] == in_order[1], name
    assert set(LABELS) == set(collected(stage.front_mesh)[TOTAL][0][0])


def test_the_node_says_who_we_are(stage: Any) -> None:
    assert ("front", "v7", "default") == stage.front_mesh.metrics._source
