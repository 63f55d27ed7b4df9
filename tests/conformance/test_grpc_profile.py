"""What gRPC's own client refuses, a mesh refuses with the profile of gRPC; where they differ is listed with the reason."""

from pathlib import Path

from differential.grpc_profile import compare
from differential.grpc_profile_cases import all_cases

CONSTRAINT = "refused by Envoy's constraints on the field, which always count"
TAKEN_BY_GO = "grpc-go and grpc-java have least_request, which C-core lacks"

TAKEN_BY_MESHLIB_ALONE = {
    "cluster-least-request": TAKEN_BY_GO,
    "cluster-list-least-request": TAKEN_BY_GO,
}
REFUSED_BY_MESHLIB_ALONE = {
    "listener-rbac-metadata": "never matches in C-core; refused rather than ignored",
    "listener-rbac-bad-ip": "C-core passes the condition over, which changes who is let in",
    "listener-rbac-no-permission": CONSTRAINT,
    "routeconfiguration-regex-empty": CONSTRAINT,
    "routeconfiguration-fraction-without-default": CONSTRAINT,
    "routeconfiguration-header-prefix-empty": CONSTRAINT,
    "routeconfiguration-header-suffix-empty": CONSTRAINT,
    "routeconfiguration-header-contains-empty": CONSTRAINT,
    "routeconfiguration-header-string-prefix-empty": CONSTRAINT,
    "routeconfiguration-header-without-name": CONSTRAINT,
    "routeconfiguration-no-cluster": CONSTRAINT,
    "routeconfiguration-no-action": CONSTRAINT,
    "routeconfiguration-hash-nothing": CONSTRAINT,
    "routeconfiguration-retry-zero-base": CONSTRAINT,
    "routeconfiguration-retry-max-below-base": "Envoy refuses it; C-core raises max_interval",
    "routeconfiguration-override-other-side": "overrides of authorization are refused rather than ignored",
    "cluster-outliers-failure-threshold": f"C-core looks at another field by mistake; {CONSTRAINT}",
    "cluster-socket-matches": "grpc-go refuses it; C-core would connect in the clear",
    "cluster-tls-names-empty-suffix": CONSTRAINT,
    "clusterloadassignment-no-weight-no-locality": "grpc-go refuses it; C-core looks at the weight first",
    "clusterloadassignment-endpoint-weights-too-many": "Envoy and grpc-go refuse it",
}


def test_acknowledgements_are_those_of_grpc(tmp_path: Path) -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases) > 250
    found = compare(cases, tmp_path)
    assert TAKEN_BY_MESHLIB_ALONE.keys() == {one.case for one in found if one.grpc}, found
    assert REFUSED_BY_MESHLIB_ALONE.keys() == {one.case for one in found if one.meshlib}, found
