"""What is counted for load reports, and when it is told."""

import threading

from meshlib.model.endpoint import Locality
from meshlib.protos import message_class
from meshlib.xds.bootstrap import NodeConfig
from meshlib.xds.load_report import (
    ClusterLoad,
    ClusterReport,
    Demand,
    LoadReporting,
    LocalityReport,
    MetricSum,
    propagated_metrics,
)
from meshlib.xds.load_wire import decode_load_response, encode_load_hello, encode_load_reports

HERE, THERE = Locality("here"), Locality("there", "b", "2")
ALL = Demand(True, frozenset(), 10.0)
REQUEST = message_class("envoy.service.load_stats.v3.LoadStatsRequest")
RESPONSE = message_class("envoy.service.load_stats.v3.LoadStatsResponse")


def load(*localities: Locality) -> ClusterLoad:
    found = ClusterLoad("c", "", 0.0, lock=threading.Lock())
    found.use(localities)
    return found


def report(cluster: str = "c", **counts: int) -> ClusterReport:
    return ClusterReport(cluster, "", (LocalityReport(HERE, **counts),), (), 0, 1.0)


def test_counts_start_from_zero_with_each_report_but_requests_in_progress_stay() -> None:
    found = load(HERE)
    count = found.use((HERE,))[HERE]
    for is_success in (True, True, False):
        count.begin()
        count.end(is_success=is_success)
    count.begin()
    assert (LocalityReport(HERE, 4, 2, 1, 1),) == found.take(5.0).localities
    assert (LocalityReport(HERE, 0, 0, 0, 1),) == found.take(6.0).localities
    count.end(is_success=True)
    assert (LocalityReport(HERE, 0, 1, 0, 0),) == found.take(7.0).localities


def test_the_interval_is_the_real_time_between_reports() -> None:
    found = load(HERE)
    assert [5.0, 2.5] == [found.take(now).interval_s for now in (5.0, 7.5)]


def test_drops_count_by_category_and_those_of_the_breaker_in_the_total_only() -> None:
    found = load()
    for category in ("lb", "throttle", "lb", "", ""):
        found.drop(category)
    taken = found.take(1.0)
    assert ((("lb", 2), ("throttle", 1)), 5) == (taken.dropped, taken.total_dropped)
    assert 0 == found.take(2.0).total_dropped


def test_a_locality_that_left_is_told_of_until_it_is_zero() -> None:
    found = load(HERE)
    count = found.use((HERE,))[HERE]
    count.begin()
    found.use((THERE,))
    assert [HERE, THERE] == [locality.locality for locality in found.take(1.0).localities]
    count.end(is_success=True)
    assert [HERE, THERE] == [locality.locality for locality in found.take(2.0).localities]
    assert [THERE] == [locality.locality for locality in found.take(3.0).localities]


def test_it_is_idle_when_there_is_nothing_to_tell() -> None:
    found = load(HERE)
    count = found.use((HERE,))[HERE]
    assert found.is_idle
    count.begin()
    assert not found.is_idle
    count.end(is_success=True)
    assert not found.is_idle
    found.take(1.0)
    assert found.is_idle
    found.drop()
    assert not found.is_idle


def test_metrics_add_up_per_name() -> None:
    found = load(HERE)
    count = found.use((HERE,))[HERE]
    count.add_metrics({"named_metrics.q": 2.0, "cpu_utilization": 0.5})
    count.add_metrics({"named_metrics.q": 4.0})
    metrics = found.take(1.0).localities[0].metrics
    assert {"named_metrics.q": MetricSum(2, 6.0), "cpu_utilization": MetricSum(1, 0.5)} == metrics
    assert {} == found.take(2.0).localities[0].metrics


def test_only_metrics_that_are_asked_for_are_passed_on() -> None:
    use, named = {"cpu_utilization": 0.5, "mem_utilization": 0.25}, {"a": 1.0, "b": 2.0}

    def passed(*words: str) -> dict[str, float]:
        return propagated_metrics(use, named, words)

    assert {} == passed()
    assert {"cpu_utilization": 0.5} == passed("cpu_utilization", "application_utilization", "nonsense")
    assert {"named_metrics.b": 2.0} == passed("named_metrics.b", "named_metrics.c")
    assert {"named_metrics.a": 1.0, "named_metrics.b": 2.0} == passed("named_metrics.*")


def test_nothing_is_told_before_the_server_has_asked() -> None:
    reporting = LoadReporting()
    reporting.opened()
    assert reporting.due((report(issued=1),)) is None
    assert reporting.interval_s is None


def test_the_time_starts_with_the_first_answer_and_anew_when_it_is_another() -> None:
    reporting = LoadReporting()
    reporting.opened()
    assert 10.0 == reporting.received(ALL)
    assert reporting.received(ALL) is None
    assert reporting.received(Demand(False, frozenset("c"), 10.0)) is None
    assert 3.0 == reporting.received(Demand(False, frozenset("c"), 3.0))


def test_reports_are_a_second_apart_at_least() -> None:
    reporting = LoadReporting()
    reporting.opened()
    assert 1.0 == reporting.received(Demand(True, frozenset(), 0.0))


def test_only_clusters_asked_for_are_told_of_unless_it_is_all() -> None:
    reports = (report("a", issued=1), report("b", issued=1))
    reporting = LoadReporting()
    reporting.opened()
    reporting.received(Demand(False, frozenset("b"), 1.0))
    assert (reports[1],) == reporting.due(reports)
    reporting.received(Demand(True, frozenset("b"), 1.0))
    assert reports == reporting.due(reports)


def test_one_report_of_zeros_follows_activity() -> None:
    reporting = LoadReporting()
    reporting.opened()
    reporting.received(ALL)
    busy, zero = (report(issued=1),), (report(),)
    assert [busy, zero, None, None, busy, zero, None] == [
        reporting.due(one) for one in (busy, zero, zero, zero, busy, zero, zero)
    ]


def test_a_new_stream_has_to_ask_anew() -> None:
    reporting = LoadReporting()
    reporting.opened()
    reporting.received(ALL)
    reporting.opened()
    assert reporting.due((report(issued=1),)) is None
    assert 10.0 == reporting.received(ALL)


def test_the_first_message_says_who_we_are() -> None:
    message = REQUEST.FromString(encode_load_hello(NodeConfig("n")))
    assert "n" == message.node.id
    assert "envoy.lrs.supports_send_all_clusters" in message.node.client_features
    assert not message.cluster_stats


def test_every_number_has_its_field() -> None:
    metrics = {"cpu_utilization": MetricSum(1, 0.5), "named_metrics.q": MetricSum(2, 6.0)}
    full = ClusterReport("c", "s", (LocalityReport(THERE, 4, 2, 1, 1, metrics),), (("lb", 2),), 3, 2.5)
    (stats,) = REQUEST.FromString(encode_load_reports((full,))).cluster_stats
    assert ("c", "s", 3) == (stats.cluster_name, stats.cluster_service_name, stats.total_dropped_requests)
    assert [("lb", 2)] == [(drop.category, drop.dropped_count) for drop in stats.dropped_requests]
    assert 2.5 == stats.load_report_interval.ToNanoseconds() / 1e9
    (locality,) = stats.upstream_locality_stats
    assert ("there", "b", "2") == (locality.locality.region, locality.locality.zone, locality.locality.sub_zone)
    assert (4, 2, 1, 1, 0) == (
        locality.total_issued_requests,
        locality.total_successful_requests,
        locality.total_error_requests,
        locality.total_requests_in_progress,
        locality.priority,
    )
    assert (1, 0.5) == (
        locality.cpu_utilization.num_requests_finished_with_metric,
        locality.cpu_utilization.total_metric_value,
    )
    (named,) = locality.load_metric_stats
    assert ("named_metrics.q", 2, 6.0) == (
        named.metric_name,
        named.num_requests_finished_with_metric,
        named.total_metric_value,
    )


def test_a_response_is_read_and_rubbish_is_not() -> None:
    message = RESPONSE(clusters=["a", "b"], send_all_clusters=False)
    message.load_reporting_interval.FromNanoseconds(1_500_000_000)
    assert Demand(False, frozenset("ab"), 1.5) == decode_load_response(message.SerializeToString())
    assert decode_load_response(b"\xff") is None
