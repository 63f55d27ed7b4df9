"""Bootstraps that the server prints are read by its clients."""

from meshlib.model.endpoint import Locality
from meshlib.xds.decode_bootstrap import parse_bootstrap
from xds_server.bootstrap import Bootstrap


def test_a_place_is_in_the_bootstrap_only_when_it_is_given() -> None:
    made = Bootstrap("orders-1", "orders", "127.0.0.1:18002", ("eu", "eu-1", "")).plaintext("127.0.0.1:18000")
    assert {"region": "eu", "zone": "eu-1"} == made["node"]["locality"]
    assert Locality("eu", "eu-1") == parse_bootstrap(made, origin="test").node.locality
    assert "locality" not in Bootstrap("orders-1", "", "127.0.0.1:18002").plaintext("127.0.0.1:18000")["node"]
