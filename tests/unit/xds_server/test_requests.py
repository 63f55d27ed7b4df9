"""What a request may not say, whatever the stream and its variant."""

import pytest

from xds_server import requests
from xds_server.ordering import CDS, EDS
from xds_server.requests import check_limits, check_node, check_type
from xds_server.stream import StreamRefused
from xds_server.subscription import Subscription
from xds_server.wire import Node


def test_node_of_the_first_request_stays_and_may_be_left_out_later():
    first = Node("n")
    assert first is check_node(first, None)
    for later in (None, Node(""), Node("n")):
        assert first is check_node(later, first)


@pytest.mark.parametrize(
    ("node", "known"), [(None, None), (Node(""), None), (Node("n" * 2049), None), (Node("other"), Node("n"))]
)
def test_nobodys_or_somebody_elses_stream_ends(node, known):
    with pytest.raises(StreamRefused) as refused:
        check_node(node, known)
    assert "INVALID_ARGUMENT" == refused.value.code


def test_type_may_be_left_out_only_where_the_service_says_it():
    assert CDS == check_type("", CDS) == check_type(CDS, CDS) == check_type(CDS, None)
    for type_url, service_type in ((EDS, CDS), ("", None)):
        with pytest.raises(StreamRefused):
            check_type(type_url, service_type)


def test_names_of_all_types_count_together(monkeypatch):
    monkeypatch.setattr(requests, "MAX_NAMES", 3)
    subscriptions = {CDS: Subscription(CDS, frozenset({"a", "b"}))}
    check_limits(subscriptions, EDS, ["c"], 1)
    check_limits(subscriptions, CDS, ["c"], 3)  # the type's own names are in the count already
    with pytest.raises(StreamRefused, match="at most 3 names"):
        check_limits(subscriptions, EDS, ["c", "d"], 2)
