"""Each code is found, at its line and column, with its severity."""

import pytest

from xds_server import codes
from xds_server.model import Instance

VS = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec:\n  hosts: [a]\n  http:\n"
DR = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec:\n  host: a\n"
SE = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec:\n"
AP = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec:\n"
PA = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n"
TO = "  - route: [{destination: {host: a}}]\n"
CLUSTER = '"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster\n'

CASES = {
    "unknown subset": (VS + "  - route: [{destination: {host: a, subset: v9}}]\n---\n" + DR, "error IST0101 7:37"),
    "unknown subset, no rule": (VS + "  - route: [{destination: {host: a, subset: v9}}]\n", "warning IST0101 7:37"),
    "unknown host": (VS + "  - route: [{destination: {host: b.example.com}}]\n", "warning IST0101 7:28"),
    "two for one host": (VS + TO + "---\n" + VS.replace("name: a", "name: b") + TO, "warning IST0109 13:11"),
    "rule behind catch-all": (VS + TO + TO, "warning IST0130 8:5"),
    "rule behind prefix": (
        VS
        + "  - {match: [{uri: {prefix: /a}}], route: [{destination: {host: a}}]}\n"
        + "  - {match: [{uri: {exact: /ab}, method: {exact: GET}}], route: [{destination: {host: a}}]}\n",
        "warning IST0130 8:5",
    ),
    "match behind another rule": (
        VS
        + "  - {match: [{uri: {prefix: /a}}], route: [{destination: {host: a}}]}\n"
        + "  - {match: [{uri: {prefix: /b}}, {uri: {prefix: /a/c}}], route: [{destination: {host: a}}]}\n",
        "warning IST0131 8:35",
    ),
    "match twice": (
        VS + "  - {match: [{uri: {prefix: /a}}, {uri: {prefix: /a}}], route: [{destination: {host: a}}]}\n",
        "warning IST0131 7:35",
    ),
    "wrong type": (VS + "  - {route: [{destination: {host: a}}], timeout: 5}\n", "error IST0106 7:41"),
    "unquoted boolean": (
        VS + "  - {match: [{headers: {x: {exact: true}}}], route: [{destination: {host: a}}]}\n",
        "error IST0106 7:29",
    ),
    "missing host": (VS + "  - route: [{destination: {subset: v1}}]\n", "error IST0106 7:14"),
    "no action": (VS + "  - name: x\n", "error IST0106 7:5"),
    "two actions": (VS + TO + "    redirect: {uri: /x}\n", "error IST0106 7:5"),
    "weights of nothing": (VS + "  - route: [{destination: {host: a}}, {destination: {host: a}}]\n", "error MESH0015 7:5"),
    "negative weight": (VS + "  - route: [{destination: {host: a}, weight: -1}]\n", "error IST0106 7:38"),
    "short timeout": (VS + "  - {timeout: 1us, route: [{destination: {host: a}}]}\n", "error IST0106 7:6"),
    "no duration": (VS + "  - {timeout: soon, route: [{destination: {host: a}}]}\n", "error IST0106 7:6"),
    "regex": (VS + "  - {match: [{uri: {regex: '(a'}}], route: [{destination: {host: a}}]}\n", "error MESH0014 7:21"),
    "backreference": (
        VS + "  - {match: [{uri: {regex: '(a)\\1'}}], route: [{destination: {host: a}}]}\n",
        "error MESH0014 7:21",
    ),
    "long regex": (
        VS + f"  - {{match: [{{uri: {{regex: {'a' * 1025}}}}}], route: [{{destination: {{host: a}}}}]}}\n",
        "error IST0106 7:21",
    ),
    "empty fault": (VS + TO + "    fault: {}\n", "error MESH0013 8:5"),
    "abort status": (VS + TO + "    fault: {abort: {httpStatus: 600}}\n", "error IST0106 8:21"),
    "percentage": (
        VS + TO + "    fault: {delay: {fixedDelay: 1s, percentage: {value: 101}}}\n",
        "error IST0106 8:50",
    ),
    "retry word": (VS + TO + "    retries: {attempts: 1, retryOn: 'gateway-error, reset'}\n", "error IST0106 8:28"),
    "retries off with fields": (VS + TO + "    retries: {attempts: 0, perTryTimeout: 1s}\n", "error IST0106 8:5"),
    "bare wildcard": (VS.replace("[a]", "['*']") + TO, "error IST0106 5:11"),
    "host twice": (VS.replace("[a]", "[a, A]") + TO, "error IST0106 5:14"),
    "mirror and mirrors": (
        VS + TO + "    mirror: {host: a}\n    mirrors: [{destination: {host: a}}]\n",
        "error IST0106 7:5",
    ),
    "header name": (VS + TO + "    headers: {request: {set: {'a b': c}}}\n", "error IST0106 8:31"),
    "operator in a header": (VS + TO + "    headers: {request: {set: {a: '%REQ(b)%'}}}\n", "error IST0106 8:31"),
    "unknown field": (VS + TO + "    timeOut: 2s\n", "error MESH0010 8:5"),
    "deprecated": (
        VS + TO + "    mirror: {host: a}\n    mirrorPercent: 10\n",
        "warning MESH0011 9:5",
    ),
    "not supported": (VS + TO + "    corsPolicy: {allowOrigins: []}\n", "error MESH0012 8:5"),
    "gateways only": (VS.replace("  hosts", "  gateways: [g]\n  hosts") + TO, "info MESH0020 5:3"),
    "rule elsewhere": (DR.replace("name: a", "name: a, namespace: b").replace("host: a", "host: a.c.svc.cluster.local"), "warning MESH0023 5:3"),
    "shares between zones": (
        DR + "  trafficPolicy:\n    loadBalancer:\n      zoneAwareLbSetting: {enabled: true}\n",
        "error MESH0012 8:7",
    ),
    "failover without outliers": (
        DR + "  trafficPolicy:\n    loadBalancer:\n      localityLbSetting: {failover: [{from: a, to: b}]}\n",
        "warning MESH0029 8:7",
    ),
    "subset twice": (DR + "  subsets: [{name: v1}, {name: v1}]\n", "warning MESH0026 6:25"),
    "empty policy": (DR + "  trafficPolicy: {}\n", "error IST0106 6:3"),
    "simple and hash": (
        DR + "  trafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}\n",
        "error IST0106 6:19",
    ),
    "maglev": (
        DR + "  trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 100}}}}\n",
        "error IST0106 6:79",
    ),
    "mode not supported": (DR + "  trafficPolicy: {tls: {mode: MUTUAL}}\n", "error MESH0012 6:25"),
    "endpoint name": (
        SE + "  hosts: [a.b]\n  ports: [{number: 80, name: http}]\n  resolution: STATIC\n  endpoints: [{address: c.d}]\n",
        "error IST0106 8:16",
    ),
    "resolution NONE": (SE + "  hosts: [a.b]\n  ports: [{number: 80, name: http}]\n", "error IST0106 4:1"),
    "TCP": (
        SE + "  hosts: [a.b]\n  ports: [{number: 80, name: x, protocol: TCP}]\n  resolution: DNS\n",
        "error MESH0012 6:33",
    ),
    "empty source": (AP + "  rules: [{from: [{source: {}}]}]\n", "error IST0106 5:20"),
    "deny nothing": (AP + "  action: DENY\n", "error IST0106 4:1"),
    "custom": (AP + "  action: CUSTOM\n", "error MESH0012 5:3"),
    "audit": (AP + "  action: AUDIT\n  rules: [{}]\n", "info MESH0022 5:3"),
    "JWT condition": (AP + "  rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]\n", "error MESH0030 5:20"),
    "JWT principal": (AP + "  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]\n", "error MESH0030 5:29"),
    "unknown condition": (AP + "  rules: [{when: [{key: source.ipp, values: ['1.1.1.1']}]}]\n", "error IST0106 5:20"),
    "address": (AP + "  rules: [{from: [{source: {ipBlocks: ['1.1.1']}}]}]\n", "error IST0106 5:40"),
    "path template": (AP + "  rules: [{to: [{operation: {paths: ['/a/{*}b']}}]}]\n", "error IST0106 5:38"),
    "accounts and principals": (
        AP + "  rules: [{from: [{source: {serviceAccounts: [a], principals: [b]}}]}]\n",
        "error IST0106 5:20",
    ),
    "permissive": (PA + "  mtls: {mode: PERMISSIVE}\n", "info MESH0021 5:10"),
    "ports without selector": (PA + "  portLevelMtls: {'80': {mode: STRICT}}\n", "error IST0106 5:3"),
    "second of a scope": (PA + "  mtls: {}\n---\n" + PA.replace("name: a", "name: b") + "  mtls: {}\n", "warning MESH0027 9:12"),
    "no kind": ("a: 1\n", "error MESH0005 1:1"),
    "unknown kind": ("apiVersion: v1\nkind: VirtualServise\n", "error MESH0005 2:1"),
    "wrong group": ("apiVersion: v1\nkind: VirtualService\n", "error MESH0005 1:1"),
    "Gateway API": ("apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n", "error MESH0006 2:1"),
    "SMI": ("apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n", "error MESH0006 2:1"),
    "defined twice": (DR + "---\n" + DR, "error MESH0007 9:12"),
    "native field": (CLUSTER + "name: a\nconect_timeout: 1s\n", "error MESH0050 3:1"),
    "native value": (CLUSTER + "name: a\nconnect_timeout: 1x\n", "error MESH0051 1:1"),
    "native type": ('"@type": type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap\n', "error MESH0052 1:1"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_finding(compiled, text, expected):
    found = [
        f"{finding.severity} {finding.code} {finding.position.line}:{finding.position.column}"
        for finding in compiled(text, profile="envoy").findings
    ]
    assert [expected] == found


def _instance(**fields: object) -> Instance:
    values = {"id": "i", "service": "a", "namespace": "default", "address": "10.0.0.1", "port": 1} | fields
    return Instance(**values)  # type: ignore[arg-type]


REGISTRATIONS = {
    "no host registered": (VS + "  - route: [{destination: {host: b}}]\n", [_instance()], "warning IST0101"),
    "destination without port": (
        VS.replace("[a]", "[x.example.com]") + TO,
        [_instance(service_port=81), _instance(id="j", service_port=82, port=2)],
        "warning IST0112",
    ),
    "selector": (AP + "  selector: {matchLabels: {app: b}}\n", [_instance()], "info IST0127"),
    "short name": (
        "",
        [_instance(namespace="x"), _instance(namespace="y", port=2)],
        "warning MESH0024",
    ),
    "same address": ("", [_instance(), _instance(id="j", weight=2)], "warning MESH0025"),
    "protocols": ("", [_instance(), _instance(id="j", port=2, protocol="grpc")], "warning MESH0028"),
}


@pytest.mark.parametrize(("text", "instances", "expected"), REGISTRATIONS.values(), ids=REGISTRATIONS)
def test_finding_about_registrations(compiled, text, instances, expected):
    found = [f"{finding.severity} {finding.code}" for finding in compiled(text, *instances).findings]
    assert [expected] == found


def test_a_native_resource_in_place_of_a_generated_one_is_said(compiled):
    result = compiled(CLUSTER + "name: outbound|80||a.default.svc.cluster.local\ntype: STATIC\n---\n" + DR)
    assert result.codes == ["MESH0053"]
    assert result.cluster(service="a")["type"] == "STATIC"


def test_every_code_is_explained():
    constants = {value for name, value in vars(codes).items() if name.isupper() and isinstance(value, str)}
    assert constants == set(codes.EXPLANATIONS)


def test_every_code_has_a_test():
    elsewhere = {"MESH0001", "MESH0002", "MESH0003", "MESH0004", "MESH0040", "MESH0053"}
    tested = {expected.split()[1] for _, expected in CASES.values()}
    tested |= {expected.split()[1] for _, _, expected in REGISTRATIONS.values()}
    assert set(codes.EXPLANATIONS) == tested | elsewhere
