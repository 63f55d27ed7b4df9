import pytest

from meshlib.protos import from_dict, message_class
from meshlib.xds.constraints import check_constraints
from meshlib.xds.problems import Problems

CORE = "envoy.config.core.v3."
ROUTE = "envoy.config.route.v3."
CLUSTER = "envoy.config.cluster.v3."


def complaints(full_name, data, path=""):
    problems = Problems()
    check_constraints(from_dict(full_name, data), path, problems)
    return problems.errors


@pytest.mark.parametrize(
    ("full_name", "data", "expected"),
    [
        (f"{CLUSTER}Cluster", {}, ["name: must not be empty"]),
        (f"{ROUTE}WeightedCluster", {}, ["clusters: needs at least 1 element"]),
        (f"{CORE}SocketAddress", {"address": "x"}, ["port_specifier: one of port_value, named_port is required"]),
        (f"{CORE}SocketAddress", {"address": "x", "port_value": 65536}, ["port_value: must be at most 65535"]),
        (f"{ROUTE}DirectResponseAction", {"status": 600}, ["status: must be less than 600"]),
        (f"{ROUTE}DirectResponseAction", {}, ["status: must be at least 200"]),
        (f"{ROUTE}Route", {"redirect": {}}, ["match: is required"]),
        (f"{CORE}HeaderValueOption", {"header": {"key": "a\nb"}}, ["header.key: has a NUL, CR or LF"]),
        (f"{CORE}HeaderValueOption", {"header": {"key": "a" * 16385}}, ["header.key: must have at most 16384 bytes"]),
        (f"{CORE}HeaderValueOption", {"header": {"key": "a" * 16384}}, []),
        (f"{CLUSTER}OutlierDetection", {"interval": "0s"}, ["interval: must be greater than 0 s"]),
        (f"{CLUSTER}OutlierDetection", {"max_ejection_percent": 101}, ["max_ejection_percent: must be at most 100"]),
        (f"{CLUSTER}Cluster.LeastRequestLbConfig", {"choice_count": 1}, ["choice_count: must be at least 2"]),
        ("envoy.type.v3.Percent", {"value": "NaN"}, ["value: must be at most 100"]),
        ("envoy.config.rbac.v3.Permission", {"any": False}, ["any: must be true"]),
        (f"{ROUTE}RouteMatch", {"path_separated_prefix": "/a/"}, ["path_separated_prefix: must match ^[^?#]+[^?#/]$"]),
        (
            "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
            {"verify_certificate_hash": ["ab"]},
            ["verify_certificate_hash[0]: must have at least 64 characters"],
        ),
        (f"{CORE}UpstreamHttpProtocolOptions", {"override_auto_sni_header": ""}, []),
    ],
)
def test_rules_of_the_protos(full_name, data, expected):
    assert expected == list(complaints(full_name, data))


def test_values_that_an_enum_does_not_have():
    problems = Problems()
    check_constraints(message_class(f"{CLUSTER}Cluster")(name="c", lb_policy=99), "", problems)
    assert ("lb_policy: unknown value 99",) == problems.errors


def test_paths_go_through_lists_maps_and_a_prefix():
    rules = {"policies": {"p": {"permissions": [{"or_rules": {}}], "principals": [{"any": True}]}}}
    expected = ('x.policies["p"].permissions[0].or_rules.rules: needs at least 1 element',)
    assert expected == complaints("envoy.config.rbac.v3.RBAC", rules, "x")


def test_what_the_chosen_member_of_a_oneof_requires_is_not_required_of_the_others():
    assert () == complaints(f"{ROUTE}RouteMatch", {"prefix": ""})


def test_names_that_only_label_may_be_missing():
    assert () == complaints(f"{ROUTE}VirtualHost", {"domains": ["*"]})
