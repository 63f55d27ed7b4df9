"""What is kept of load reports, and how their messages are read."""

import pytest

from meshlib.protos import from_dict
from xds_server.load_reports import ClusterLoad, LoadReports, Locality, LocalityLoad
from xds_server.lrs import decode_report
from xds_server.stream import StreamRefused

REQUEST = "envoy.service.load_stats.v3.LoadStatsRequest"
EAST = Locality("east", "a", "")


def load(succeeded: int = 0, **fields) -> ClusterLoad:
    return ClusterLoad("c1", interval_s=10.0, localities=(LocalityLoad(EAST, succeeded=succeeded, **fields),))


@pytest.fixture
def reports() -> LoadReports:
    return LoadReports()


def test_reports_are_differences_and_add_up(reports):
    metrics = {"cpu": (2, 0.5)}
    reports.record("n1", "stream", [load(5, failed=1, issued=7, in_progress=3, metrics=metrics)], 0.0)
    reports.record("n1", "stream", [load(10, failed=2, issued=11, in_progress=1, metrics=metrics)], 10.0)
    (client,) = reports.describe(12.0)
    (locality,) = client["localities"]
    assert ("c1", "n1", "east") == (client["cluster"], client["node_id"], locality["region"])
    assert (15, 3, 18, 1) == tuple(locality[name] for name in ("succeeded", "failed", "issued", "in_progress"))
    assert {"cpu": {"requests": 4, "total": 1.0}} == locality["metrics"]
    assert [(12.0, 5), (2.0, 10)] == [(each["s_ago"], each["succeeded"]) for each in locality["recent"]]


def test_what_was_in_progress_ends_with_its_stream_and_counters_stay(reports):
    reports.record("n1", "first", [load(5, in_progress=3)], 0.0)
    reports.record("n1", "second", [load(1, in_progress=2)], 0.0)
    reports.closed("first")
    (locality,) = reports.describe(0.0)[0]["localities"]
    assert (6, 2) == (locality["succeeded"], locality["in_progress"])


def test_clients_are_kept_apart(reports):
    reports.record("n2", "b", [load(2)], 0.0)
    reports.record("n1", "a", [load(1)], 0.0)
    assert ["n1", "n2"] == [client["node_id"] for client in reports.describe(0.0)]


def test_only_the_last_reports_are_kept_one_by_one(reports):
    for number in range(100):
        reports.record("n1", "a", [load(1)], float(number))
    (locality,) = reports.describe(100.0)[0]["localities"]
    assert (100, 60, 1.0) == (locality["succeeded"], len(locality["recent"]), locality["recent"][-1]["s_ago"])


def test_number_of_entries_is_bounded(reports, monkeypatch):
    monkeypatch.setattr("xds_server.load_reports.MAX_ENTRIES", 2)
    for name in ("n1", "n2", "n3"):
        reports.record(name, name, [load(1), ClusterLoad("c2", dropped={"lb": 1})], 0.0)
    assert ["n2", "n3", "n2", "n3"] == [client["node_id"] for client in reports.describe(0.0)]


def test_number_of_categories_and_metrics_is_bounded(reports):
    many = {str(number): 1 for number in range(100)}
    metrics = dict.fromkeys(many, (1, 1.0))
    dropping = ClusterLoad("c1", dropped=many, localities=(LocalityLoad(EAST, metrics=metrics),))
    reports.record("n1", "a", [dropping], 0.0)
    (client,) = reports.describe(0.0)
    assert (64, 64) == (len(client["dropped"]), len(client["localities"][0]["metrics"]))


def test_a_report_is_read_from_its_message():
    message = from_dict(
        REQUEST,
        {
            "node": {"id": "n1", "client_features": ["a"]},
            "cluster_stats": [
                {
                    "cluster_name": "c1",
                    "cluster_service_name": "e1",
                    "total_dropped_requests": 5,
                    "dropped_requests": [{"category": "lb", "dropped_count": 3}],
                    "load_report_interval": "1.5s",
                    "upstream_locality_stats": [
                        {
                            "locality": {"region": "east", "zone": "a"},
                            "priority": 1,
                            "total_successful_requests": 1,
                            "total_error_requests": 2,
                            "total_issued_requests": 3,
                            "total_requests_in_progress": 4,
                            "load_metric_stats": [
                                {
                                    "metric_name": "cpu",
                                    "num_requests_finished_with_metric": 2,
                                    "total_metric_value": 0.5,
                                }
                            ],
                        }
                    ],
                }
            ],
        },
    )
    node, loads = decode_report(message.SerializeToString())
    assert ("n1", frozenset({"a"})) == (node.id, node.client_features)
    locality = LocalityLoad(EAST, 1, succeeded=1, failed=2, issued=3, in_progress=4, metrics={"cpu": (2, 0.5)})
    assert (ClusterLoad("c1", "e1", 1.5, {"lb": 3, "": 2}, (locality,)),) == loads


def test_names_that_are_too_long_are_refused():
    message = from_dict(REQUEST, {"cluster_stats": [{"cluster_name": "c" * 3000}]})
    with pytest.raises(StreamRefused, match="at most 2048"):
        decode_report(message.SerializeToString())
    with pytest.raises(StreamRefused, match="not a LoadStatsRequest"):
        decode_report(b"\xff")
