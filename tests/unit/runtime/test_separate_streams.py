"""The methods that serve one type of resource each."""

import pytest

from meshlib.runtime.separate_streams import method_of
from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS, TYPE_URLS


@pytest.mark.parametrize(
    ("type_url", "expected"),
    [
        (LDS, "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners"),
        (RDS, "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes"),
        (CDS, "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters"),
        (EDS, "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"),
        (SDS, "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"),
    ],
)
def test_each_type_has_a_service_of_its_own(type_url: str, expected: str) -> None:
    assert expected == method_of(type_url, is_delta=False)
    assert expected.replace("/Stream", "/Delta") == method_of(type_url, is_delta=True)


def test_every_type_that_is_subscribed_to_has_one() -> None:
    assert [method_of(type_url, is_delta=True).count("/") for type_url in TYPE_URLS] == [2] * len(TYPE_URLS)
