"""What the documents ask for and meshlib's own gRPC calls do not do is said, for services that gRPC calls."""

import pytest

from xds_server.model import Instance

ROUTE = (
    "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n"
    "spec: {hosts: [reviews], http: [{%s}]}\n"
)
TO = "route: [{destination: {host: reviews}}]"
RULE = (
    "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d}\n"
    "spec: {host: reviews, trafficPolicy: {%s}}\n"
)

CASES = {
    "outlierDetection": RULE % "outlierDetection: {consecutive5xxErrors: 3}",
    "consistentHash on anything but a header": RULE
    % "loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 1s}}}",
    "connectionPool.tcp.maxConnections": RULE % "connectionPool: {tcp: {maxConnections: 3}}",
    "connectionPool.http.http1MaxPendingRequests": RULE % "connectionPool: {http: {http1MaxPendingRequests: 3}}",
    "mirror": ROUTE % f"mirror: {{host: reviews}}, {TO}",
    "retries.attempts": ROUTE % f"retries: {{attempts: 5}}, {TO}",
    "redirect": ROUTE % "redirect: {uri: /}",
    "directResponse": ROUTE % "directResponse: {status: 404}",
}


def said(result) -> list[str]:
    return [finding.message for finding in result.findings if "gRPC" in finding.message]


@pytest.mark.parametrize("feature", CASES)
def test_what_grpc_calls_do_not_do_is_said_once_with_its_place(compiled, feature):
    grpc = Instance("i", "reviews", "default", "10.0.0.1", 9001, protocol="grpc")
    result = compiled(CASES[feature], grpc)
    (message,) = said(result)
    assert message.startswith(f"profile meshlib: {feature} of a gRPC service: in gRPC calls ")
    assert all(finding.position is not None for finding in result.findings)


@pytest.mark.parametrize("feature", CASES)
@pytest.mark.parametrize(("protocol", "profile"), [("http", "meshlib"), ("grpc", "envoy")])
def test_nothing_is_said_where_everything_is_done(compiled, feature, protocol, profile):
    instance = Instance("i", "reviews", "default", "10.0.0.1", 9001, protocol=protocol)
    assert not said(compiled(CASES[feature], instance, profile=profile))


def test_what_grpc_calls_do_as_well_is_not_reported(compiled):
    grpc = Instance("i", "reviews", "default", "10.0.0.1", 9001, protocol="grpc")
    header = RULE % "loadBalancer: {consistentHash: {httpHeaderName: x}}, connectionPool: {http: {http2MaxRequests: 5}}"
    assert not said(compiled(header + "---\n" + ROUTE % f"retries: {{attempts: 4}}, timeout: 1s, {TO}", grpc))
