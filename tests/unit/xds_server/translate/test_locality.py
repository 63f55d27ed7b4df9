"""`localityLbSetting`: what clients of a place are told about endpoints elsewhere. The rules are Istio's."""

import pytest

from xds_server.model import Place
from xds_server.translate import compile_documents

HERE = Place(("eu", "eu-1", "a"))
OUTLIERS = "outlierDetection: {consecutive5xxErrors: 1}"


def policy(setting: str, *more: str) -> str:
    return "{" + ", ".join((f"loadBalancer: {{localityLbSetting: {setting}}}", *more)) + "}"


@pytest.fixture
def served(destination_rule, instance):
    """Compile with endpoints by port and place; returns (port, priority) pairs, or with weights."""
    from xds_server.sources import memory

    def run(text, ports, *, place=HERE, profile="meshlib", weights=False, labels=None):
        instances = []
        for port, where in ports.items():
            region, zone, sub_zone = (*where.split("/"), "", "")[:3]
            fields = {"labels": labels[port]} if labels else {}
            instances.append(instance(port, region=region, zone=zone, sub_zone=sub_zone, **fields))
        documents, _ = memory.from_text(destination_rule(text), "t.yaml")
        compiled = compile_documents(documents, instances, profile=profile, place=place)
        assert not [finding for finding in compiled.findings if finding.severity == "error"], compiled.findings
        name = "outbound|80||reviews.default.svc.cluster.local"
        found = compiled.resources["type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"][name]
        result = []
        for group in found.endpoints:
            for one in group.lb_endpoints:
                port = one.endpoint.address.socket_address.port_value
                result.append((port, group.load_balancing_weight.value if weights else group.priority))
        return sorted(result), compiled

    return run


PLACES = {1: "eu/eu-1/a", 2: "eu/eu-1/b", 3: "eu/eu-2", 4: "us/us-1", 5: "as/as-1"}


def test_the_nearest_come_first_where_endpoints_can_fall_out(served):
    expected = [(1, 0), (2, 1), (3, 2), (4, 3), (5, 3)]
    for text in (policy("{enabled: true}", OUTLIERS), "{" + OUTLIERS + "}"):
        found, compiled = served(text, PLACES)
        assert (expected, True) == (found, compiled.depends_on_place)


@pytest.mark.parametrize("profile", ["meshlib", "envoy", "grpc"])
def test_priorities_have_no_gaps_at_any_client(served, profile):
    text = "{" + OUTLIERS + "}"
    ports = {3: "eu/eu-2", 4: "us/us-1"}
    assert [(3, 0), (4, 1)] == served(text, ports, profile=profile)[0]
    assert [(3, 1), (4, 0)] == served(text, ports, profile=profile, place=Place(("us", "", "")))[0]
    assert [(3, 0), (4, 0)] == served(text, ports, profile=profile, place=Place())[0]


@pytest.mark.parametrize(
    "text",
    [policy("{enabled: false}", OUTLIERS), policy("{enabled: true}"), "{loadBalancer: {simple: RANDOM}}"],
    ids=["switched off", "nobody falls out", "not asked for"],
)
def test_places_do_not_matter(served, text):
    found, compiled = served(text, PLACES)
    assert ([(port, 0) for port in PLACES], False) == (found, compiled.depends_on_place)


def test_failover_says_which_region_comes_next(served):
    text = policy("{failover: [{from: eu, to: as}, {from: us, to: eu}]}", OUTLIERS)
    assert [(1, 0), (2, 1), (3, 2), (4, 4), (5, 3)] == served(text, PLACES)[0]
    assert [(1, 1), (2, 1), (3, 1), (4, 0), (5, 2)] == served(text, PLACES, place=Place(("us", "us-1", "")))[0]


def test_failover_priority_counts_labels_in_common_from_the_first_on(served):
    words = "[topology.istio.io/network, topology.kubernetes.io/region, version=v1]"
    text = policy(f"{{failoverPriority: {words}}}", OUTLIERS)
    network = "topology.istio.io/network"
    labels = {
        1: {network: "n1", "version": "v1"},
        2: {network: "n1", "version": "v2"},
        3: {network: "n1", "version": "v1"},
        4: {network: "n2", "version": "v1"},
    }
    ports = {1: "eu/eu-1", 2: "eu/eu-1", 3: "us/us-1", 4: "eu/eu-1"}
    place = Place(("eu", "eu-1", ""), ((network, "n1"),))
    assert [(1, 0), (2, 1), (3, 2), (4, 3)] == served(text, ports, place=place, labels=labels)[0]


def test_labels_and_failover_go_together(served):
    text = policy("{failoverPriority: ['version=v1'], failover: [{from: eu, to: as}]}", OUTLIERS)
    labels = {port: {"version": "v1" if port != 1 else "v2"} for port in PLACES}
    assert [(1, 4), (2, 0), (3, 1), (4, 3), (5, 2)] == served(text, PLACES, labels=labels)[0]


def test_shares_are_those_of_the_first_rule_for_the_place(served):
    text = policy("{distribute: [{from: 'eu/eu-1/*', to: {'eu/*': 70, 'us/*': 30}}, {from: eu, to: {'as/*': 100}}]}")
    found, compiled = served(text, PLACES, weights=True)
    # 70 over three localities of equal weight: 24 each, rounded up.
    assert [(1, 24), (2, 24), (3, 24), (4, 30)] == found
    assert compiled.depends_on_place
    assert [(5, 100)] == served(text, PLACES, place=Place(("eu", "eu-2", "")), weights=True)[0]
    assert 5 == len(served(text, PLACES, place=Place(("us", "", "")))[0])
    cluster = compiled.resources["type.googleapis.com/envoy.config.cluster.v3.Cluster"]
    assert cluster["outbound|80||reviews.default.svc.cluster.local"].common_lb_config.HasField(
        "locality_weighted_lb_config"
    )


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("{distribute: [{from: eu, to: {us: 60, as: 30}}]}", "must add up to 100; it is 90"),
        ("{distribute: [{from: eu, to: {us: 100}}, {from: eu, to: {as: 100}}]}", "two rules with the same from"),
        ("{distribute: [{from: eu, to: {us: 100}}], failover: [{from: eu, to: us}]}", "not have both distribute and"),
        ("{failover: [{from: eu, to: eu}]}", "must be different regions"),
        ("{failover: [{from: eu/eu-1, to: us}]}", "must be a region alone"),
        ("{distribute: [{from: 'eu//a', to: {us: 100}}]}", "must name each part of a place"),
        ("{failoverPriority: [version]}", "for another label write version=value"),
        ("{failover: [{from: a, to: b}], failoverPriority: [topology.kubernetes.io/zone]}", "beside failover"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(compiled, destination_rule, setting, problem):
    (finding,) = compiled(destination_rule(policy(setting, OUTLIERS))).findings
    assert ("error", True) == (finding.severity, problem in finding.message)
