"""Published state: versions by content, what changed, what a resource needs, and what must hold before it is published."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.protos import from_dict
from xds_server.consistency import check
from xds_server.model import Severity
from xds_server.ordering import CDS, EDS, LDS, RDS, SDS
from xds_server.references import references
from xds_server.snapshot import NOTHING, Resource, Snapshot, TypeState
from xds_server.versions import resource_version, type_version

ADS = {"ads": {}, "resource_api_version": "V3"}


@pytest.fixture
def cluster() -> Callable[..., Any]:
    def make(name: str, **fields: Any) -> Any:
        value = {"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": ADS}, **fields}
        return from_dict("envoy.config.cluster.v3.Cluster", value)

    return make


@pytest.fixture
def tls_cluster(cluster) -> Any:
    tls = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    common = {"tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ADS}]}
    socket = {"name": "tls", "typed_config": {"@type": f"type.googleapis.com/{tls}", "common_tls_context": common}}
    return cluster("c", type="STATIC", transport_socket=socket)


@pytest.fixture
def assignment() -> Callable[[str], Any]:
    return lambda name: from_dict("envoy.config.endpoint.v3.ClusterLoadAssignment", {"cluster_name": name})


@pytest.fixture
def routes() -> Any:
    action = {
        "weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"name": "b", "weight": 1}]},
        "request_mirror_policies": [{"cluster": "m"}],
    }
    rules = [{"match": {"prefix": "/"}, "route": action}, {"match": {"prefix": "/"}, "route": {"cluster": "a"}}]
    hosts = [{"name": "h", "domains": ["*"], "routes": rules}]
    return from_dict("envoy.config.route.v3.RouteConfiguration", {"name": "r", "virtual_hosts": hosts})


# Versions.


def test_ver_1_equal_content_has_an_equal_version(cluster):
    assert Resource.of("a", cluster("a")).version == Resource.of("a", cluster("a")).version
    assert Resource.of("a", cluster("a")).version != Resource.of("a", cluster("a", connect_timeout="9s")).version


def test_ver_1_versions_are_lower_case_hex():
    assert set(resource_version(b"x")) <= set("0123456789abcdef")


def test_ver_2_version_of_a_type_does_not_depend_on_order():
    assert type_version([("a", "1"), ("b", "2")]) == type_version([("b", "2"), ("a", "1")])


def test_ver_2_names_and_versions_are_kept_apart():
    assert type_version([("ab", "c")]) != type_version([("a", "bc")])


def test_ver_4_the_empty_set_has_a_version():
    assert type_version([]) == NOTHING.state(CDS).version != ""


# Snapshots.


def test_unchanged_resources_are_taken_from_the_previous_snapshot(cluster):
    before = Snapshot.build({CDS: {"a": cluster("a"), "b": cluster("b")}})
    after = Snapshot.build({CDS: {"a": cluster("a"), "b": cluster("b", connect_timeout="9s")}}, before)
    assert before.state(CDS).resources["a"] is after.state(CDS).resources["a"]
    assert {CDS: frozenset({"b"})} == after.changes_since(before)


def test_changes_tell_what_came_and_went(cluster, assignment):
    before = Snapshot.build({CDS: {"a": cluster("a")}, EDS: {"a": assignment("a")}})
    after = Snapshot.build({CDS: {"b": cluster("b")}, EDS: {"a": assignment("a")}})
    assert {CDS: frozenset({"a", "b"})} == after.changes_since(before)


def test_bytes_of_a_resource_are_not_shown():
    assert "secret" not in repr(TypeState.of([Resource("a", "1", b"secret")]))


# References.


def test_cluster_names_its_endpoints_by_service_name_if_it_has_one(cluster):
    assert ((EDS, "a"),) == references(cluster("a"))
    named = cluster("a", eds_cluster_config={"service_name": "other", "eds_config": ADS})
    assert ((EDS, "other"),) == references(named)


def test_endpoints_from_a_file_are_not_the_servers(cluster):
    local = {"path_config_source": {"path": "/etc/eds.yaml"}}
    assert () == references(cluster("a", eds_cluster_config={"eds_config": local}))


def test_secret_inside_an_extension_is_found(tls_cluster):
    assert ((SDS, "default"),) == references(tls_cluster)


def test_route_names_all_its_clusters_once(routes):
    assert ((CDS, "a"), (CDS, "b"), (CDS, "m")) == references(routes)


def test_listener_names_its_routes():
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "rds": {"route_config_name": "r", "config_source": ADS},
    }
    value = {"name": "l", "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}]}
    assert ((RDS, "r"),) == references(from_dict("envoy.config.listener.v3.Listener", value))


# Consistency.


def found(snapshot: Snapshot, *secrets: str, **options: Any) -> list[tuple[Severity, str]]:
    return [(each.severity, each.message) for each in check(snapshot, group="envoy", secrets=secrets, **options)]


def test_con_2_complete_state_is_accepted(cluster, assignment):
    assert [] == found(Snapshot.build({CDS: {"a": cluster("a")}, EDS: {"a": assignment("a")}}))


def test_con_2_missing_endpoints_and_clusters_are_errors(cluster, assignment, routes):
    snapshot = Snapshot.build(
        {CDS: {"a": cluster("a"), "b": cluster("b")}, EDS: {"a": assignment("a")}, RDS: {"r": routes}}
    )
    errors = [message for severity, message in found(snapshot) if severity is Severity.ERROR]
    assert [
        "envoy: Cluster 'b' names ClusterLoadAssignment 'b', which does not exist",
        "envoy: RouteConfiguration 'r' names Cluster 'm', which does not exist",
    ] == errors


def test_con_2_unknown_secret_is_an_error_of_a_server_that_issues_others(tls_cluster):
    snapshot = Snapshot.build({CDS: {"c": tls_cluster}})
    assert [] == found(snapshot, "default")
    ((severity, message),) = found(snapshot, "other")
    assert (Severity.ERROR, True) == (severity, message.endswith("it can be other"))


def test_secrets_of_a_server_without_an_authority_are_a_warning_that_says_what_to_do(tls_cluster):
    ((severity, message),) = found(Snapshot.build({CDS: {"c": tls_cluster}}))
    assert (Severity.WARNING, True) == (severity, "--state-dir" in message)


def test_con_2_empty_name_is_an_error(assignment):
    errors = [message for severity, message in found(Snapshot.build({EDS: {"": assignment("")}}))]
    assert "envoy: a ClusterLoadAssignment has an empty name" in errors


def test_secrets_cannot_come_from_documents():
    secret = from_dict("envoy.extensions.transport_sockets.tls.v3.Secret", {"name": "mine"})
    ((severity, message),) = found(Snapshot.build({SDS: {"mine": secret}}))
    assert (Severity.ERROR, True) == (severity, "'mine' cannot come from documents" in message)


def test_con_3_what_nothing_names_is_a_warning(assignment):
    assert [(Severity.WARNING, "envoy: nothing names ClusterLoadAssignment 'x'")] == found(
        Snapshot.build({EDS: {"x": assignment("x")}})
    )


def test_lim_1_state_that_needs_too_large_a_response_is_a_warning():
    listener = from_dict("envoy.config.listener.v3.Listener", {"name": "l"})
    ((severity, message),) = found(Snapshot.build({LDS: {"l": listener}}), max_response_bytes=10)
    assert (Severity.WARNING, True) == (severity, "all 1 of type Listener need" in message)
