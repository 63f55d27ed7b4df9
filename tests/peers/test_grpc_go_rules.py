"""What grpc-go refuses beside what meshlib refuses with the profile of gRPC, resource by resource."""

import json
from pathlib import Path

from differential.grpc_profile import Judge, ask_mesh, bootstrap_for, verdicts_of
from differential.grpc_profile_cases import all_cases
from foreign.grpc_go import GoClient

NO_SESSIONS = "grpc-go has no stateful sessions; C-core takes it"
NAME = "grpc-go wants the transport socket to be called envoy.transport_sockets.tls; C-core and Envoy look at its type"
TAKEN_BY_MESHLIB_ALONE = {
    "listener-session-off": NO_SESSIONS,
    "listener-session-cookie": NO_SESSIONS,
    "listener-server-tls": NAME,
    "listener-server-tls-requires": NAME,
    "cluster-list-wins": "grpc-go looks at lb_policy though a list is given; Envoy and C-core do not",
    "cluster-list-ring-hash": "grpc-go wants the hash function named, C-core takes the default",
    "cluster-tls-roots": NAME,
    "cluster-tls-system-roots": NAME,
    "cluster-tls-combined": NAME,
    "cluster-tls-names": NAME,
    "cluster-tls-identity": NAME,
    "cluster-tls-alpn": NAME,
}
# What C-core refuses as well, or the constraints of the field do: the reasons are in conformance/test_grpc_profile.py.
REFUSED_BY_ENVOY_AND_MESHLIB = {
    "listener-rbac-metadata",
    "listener-rbac-no-permission",
    "routeconfiguration-regex-empty",
    "routeconfiguration-fraction-without-default",
    "routeconfiguration-header-without-name",
    "routeconfiguration-no-cluster",
    "routeconfiguration-no-action",
    "routeconfiguration-hash-nothing",
    "routeconfiguration-retry-max-below-base",
}
REFUSED_BY_C_CORE_AND_MESHLIB = {
    "listener-inline-broken",
    "listener-rbac-nested-deep",
    "routeconfiguration-domains-none",
    "routeconfiguration-domains-empty",
    "routeconfiguration-domains-star-inside",
    "routeconfiguration-header-range-backwards",
    "routeconfiguration-header-string-regex-ignore-case",
    "routeconfiguration-cluster-empty",
    "routeconfiguration-weights-without-name",
    "routeconfiguration-weights-by-header",
    "routeconfiguration-weights-one-unset",
    "routeconfiguration-hash-header-without-name",
    "routeconfiguration-stream-duration-negative",
    "cluster-ring-hash-min-above-max",
    "cluster-ring-hash-too-large",
    "cluster-ring-hash-min-zero",
    "cluster-list-weights-metric",
    "cluster-upstream-other",
    "clusterloadassignment-pipe",
    "clusterloadassignment-hostname",
    "clusterloadassignment-port-too-large",
    "clusterloadassignment-no-address",
    "clusterloadassignment-more-addresses-pipe",
    "clusterloadassignment-more-addresses-hostname",
    "clusterloadassignment-drop-without-category",
    "clusterloadassignment-drop-without-percentage",
}


def test_acknowledgements_are_those_of_grpc_go(tmp_path: Path) -> None:
    cases = all_cases()
    path = tmp_path / "go.json"
    with Judge(cases) as judge:
        path.write_text(json.dumps(bootstrap_for(judge.address, "grpc-go", folder=tmp_path)))
        with GoClient("grpc-go", path, tmp_path) as client:
            client.open([f"xds:///{case.name}" for case in cases])
            theirs = verdicts_of(judge, "grpc-go", cases)
        ours = ask_mesh(judge, cases, tmp_path)
    taken = {name: theirs[name] for name in ours if theirs[name] and not ours[name]}
    refused = {name: ours[name] for name in ours if ours[name] and not theirs[name]}
    assert TAKEN_BY_MESHLIB_ALONE.keys() == taken.keys(), taken
    assert REFUSED_BY_ENVOY_AND_MESHLIB | REFUSED_BY_C_CORE_AND_MESHLIB == refused.keys(), refused
