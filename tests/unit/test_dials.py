"""Endpoints with several addresses: what is decoded, and in which order they are dialled."""

from dataclasses import replace
from typing import Any

import pytest

from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.dialling import MAX_DIALS, DialOrder
from meshlib.model.endpoint import Endpoint
from meshlib.model.snapshot import ClusterConfig
from meshlib.protos import from_dict
from meshlib.runtime.dial import dial_target
from meshlib.testing.builders import assignment
from meshlib.view import ClusterState
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS, EDS

A, B, C = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"
X, Y, Z = "[::1]:1", "[::2]:1", "[::3]:1"


@pytest.mark.parametrize(
    ("order", "given", "expected"),
    [
        (DialOrder(), (A, B, X, Y), (A, X, B, Y)),
        (DialOrder(), (X, Y, Z, A), (X, A, Y, Z)),
        (DialOrder(version=6), (A, B, X, Y), (X, A, Y, B)),
        (DialOrder(version=4), (X, A, Y), (A, X, Y)),
        (DialOrder(version=6), (A, B), (A, B)),
        (DialOrder(count=2), (A, B, C, X, Y), (A, B, X, C, Y)),
        (DialOrder(version=6, count=3), (A, B, X, Y, Z), (X, Y, Z, A, B)),
        (DialOrder(), (), ()),
    ],
)
def test_families_take_turns_in_the_order_of_rfc_8305(order: DialOrder, given: Any, expected: Any) -> None:
    assert expected == order.of(given)


def address(text: str) -> dict[str, Any]:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def endpoint(*texts: str) -> dict[str, Any]:
    first, *more = [address(text) for text in texts]
    return {"endpoint": {"address": first, "additional_addresses": [{"address": one} for one in more]}}


def decoded(*entries: dict[str, Any]) -> Any:
    data = {"cluster_name": "c", "endpoints": [{"locality": {}, "lb_endpoints": list(entries)}]}
    return decode_resource(EDS, from_dict(EDS.rpartition("/")[2], data).SerializeToString())


def one(found: Any) -> Endpoint:
    assert found.errors == ()
    made = found.value.localities[0].endpoints[0]
    assert isinstance(made, Endpoint)
    return made


def test_additional_addresses_are_decoded_in_their_order_and_cost_nothing_where_there_are_none() -> None:
    assert ((A, X, B), A) == ((made := one(decoded(endpoint(A, B, X)))).dials, made.address)
    assert () == one(decoded(endpoint(A))).dials
    assert () == one(decoded(endpoint(A, A))).dials, "it has one address"
    assert one(decoded(endpoint(A, B))) is one(decoded(endpoint(A, B))), "remembered by its bytes"


def test_what_cannot_be_tried_is_reported() -> None:
    many = decoded(endpoint(*(f"10.0.0.{number}:1" for number in range(1, MAX_DIALS + 2))))
    assert MAX_DIALS == len(one(many).dials)
    assert ["endpoints[0].lb_endpoints[0].endpoint.additional_addresses"] == [
        text.partition(": ")[0] for text in many.unused
    ]
    entry = endpoint(A, B)
    entry["endpoint"]["additional_addresses"].append({"address": {"pipe": {"path": "/x"}}})
    found = decoded(entry)
    assert (A, B) == one(found).dials
    assert "only IP addresses" in found.unused[0]
    entry["endpoint"]["address"] = {"pipe": {"path": "/y"}}
    assert ("unix:/y", ()) == ((made := one(decoded(entry))).address, made.dials)


def test_names_have_the_addresses_that_dns_knows() -> None:
    """An endpoint known from EDS, with the same bytes, is not taken for one of a DNS cluster."""
    assert (A, B) == one(decoded(endpoint(A, B))).dials
    load = {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint(A, B)]}]}
    data = {"name": "c", "type": "STRICT_DNS", "load_assignment": load}
    found: Any = decode_resource(CDS, from_dict(CDS.rpartition("/")[2], data).SerializeToString())
    assert found.errors == ()
    assert () == found.value.discovery.assignment.localities[0].endpoints[0].dials


def cluster_of(**config: Any) -> Any:
    data = {
        "name": "c",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}}},
        "upstream_connection_options": {"happy_eyeballs_config": config, "tcp_keepalive": {}},
    }
    return decode_resource(CDS, from_dict(CDS.rpartition("/")[2], data).SerializeToString())


def test_a_cluster_says_which_family_is_first_and_how_many_of_it() -> None:
    found = cluster_of(first_address_family_version="V6", first_address_family_count=2)
    assert DialOrder(6, 2) == found.value.dial_order
    assert ("upstream_connection_options.tcp_keepalive",) == found.unused
    assert DialOrder() == cluster_of().value.dial_order
    assert DialOrder(4) == cluster_of(first_address_family_version="V4").value.dial_order
    assert ("upstream_connection_options.happy_eyeballs_config.first_address_family_count",) == tuple(
        text.partition(": ")[0] for text in cluster_of(first_address_family_count=0).errors
    )


def test_endpoints_of_a_cluster_are_dialled_in_its_order_and_keep_their_identity() -> None:
    several, alone = Endpoint(A, dials=(A, X, B)), Endpoint(C)
    config = ClusterConfig(Cluster("c", EdsDiscovery("c")), assignment("c", [several, alone]))
    state = ClusterState(config, now=0.0)
    before = dict(state.states)
    assert state.states[A].endpoint is several
    assert state.has_dials
    state.update(replace(config, cluster=replace(config.cluster, dial_order=DialOrder(6))), now=1.0)
    assert before == state.states
    assert ((X, A, B), ()) == (state.states[A].endpoint.dials, state.states[C].endpoint.dials)
    state.update(replace(config, assignment=assignment("c", [alone])), now=2.0)
    assert not state.has_dials


@pytest.mark.parametrize(
    ("dials", "target"),
    [
        ((), f"ipv4:{A}"),
        ((A, B), f"ipv4:{A},{B}"),
        ((X, Y), f"ipv6:{X},{Y}"),
        ((X, A), f"ipv6:{X},[::ffff:10.0.0.1]:1"),
    ],
)
def test_a_channel_dials_all_addresses_of_an_endpoint(dials: tuple[str, ...], target: str) -> None:
    assert target == dial_target(A, dials)
