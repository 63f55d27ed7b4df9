"""What the mesh answers by itself: status, body, headers, flags and details are Envoy's, case by case."""

import random
from dataclasses import replace

import pytest
from differential import subject
from differential.decision import comparable
from differential.envoy_side import EnvoySide
from differential.generate import Request
from peers.envoy import static_cluster
from peers.upstreams import LOOPBACK

from meshlib.call import Call, Done
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import Snapshot, TargetConfig
from meshlib.protos import from_dict
from meshlib.testing import builders
from meshlib.view import TargetView, build_view
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import RDS

FAULT = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
HEADERS = [
    {"header": {"key": "x-said", "value": "%RESPONSE_FLAGS%/%RESPONSE_CODE_DETAILS%/%UPSTREAM_REQUEST_ATTEMPT_COUNT%"}},
    {"header": {"key": "x-to", "value": "%UPSTREAM_CLUSTER%"}},
]


def fault(**abort: object) -> dict[str, object]:
    config = {"@type": FAULT, "abort": {**abort, "percentage": {"numerator": 100}}}
    return {"route": {"cluster": "a"}, "typed_per_filter_config": {"envoy.filters.http.fault": config}}


CASES = {
    "no route": {"match": {"path": "/never"}, "route": {"cluster": "a"}},
    "no cluster": {"route": {"cluster": "nowhere"}},
    "no cluster, told as 404": {"route": {"cluster": "nowhere", "cluster_not_found_response_code": "NOT_FOUND"}},
    "no cluster, told as 500": {
        "route": {"cluster": "nowhere", "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR"}
    },
    "no header that names a cluster": {"route": {"cluster_header": "x-cluster"}},
    "no endpoint": {"route": {"cluster": "empty"}},
    "overflow": {"route": {"cluster": "full"}},
    "not forwarded": {"non_forwarding_action": {}},
    "a direct response": {"direct_response": {"status": 418, "body": {"inline_string": "tea"}}},
    "a direct response without a body": {"direct_response": {"status": 204}},
    "a direct response that is somewhere else": {"direct_response": {"status": 201}},
    "a redirect": {"redirect": {"https_redirect": True}},
    "a redirect of the path": {"redirect": {"path_redirect": "/b?c", "response_code": "PERMANENT_REDIRECT"}},
    "an injected failure": fault(http_status=429),
    "an injected failure of gRPC to another client": fault(grpc_status=8),
}


@pytest.fixture(scope="module")
def side(tmp_path_factory):
    full = static_cluster("full", f"{LOOPBACK}:1")
    full["circuit_breakers"] = {"thresholds": [{"max_requests": 0, "max_pending_requests": 0}]}
    empty = static_cluster("empty", f"{LOOPBACK}:1")
    empty["load_assignment"]["endpoints"] = []
    with EnvoySide(tmp_path_factory.mktemp("envoy"), clusters=(full, empty), managers=({}, REWRITING)) as side:
        yield side


def answer_of_meshlib(
    configuration: dict[str, object], request: Request, manager: dict[str, object] | None = None
) -> tuple[LocalReply, str]:
    message = from_dict("envoy.config.route.v3.RouteConfiguration", configuration)
    routes = decode_resource(RDS, message.SerializeToString()).value
    assert isinstance(routes, RouteConfiguration)
    limited = Cluster("full", EdsDiscovery("full"), circuit_breakers=CircuitBreakers(max_requests=0))
    listener = replace(subject.listener(manager or {}), routes=routes, has_fault_filter=True)
    clusters = {
        "a": builders.cluster("a", "127.0.0.1:1"),
        "empty": builders.cluster("empty"),
        "full": builders.cluster("full", "127.0.0.1:1", template=limited),
    }
    view = build_view(Snapshot({"shop": TargetConfig(listener, routes)}, clusters=clusters), None, now=0.0)
    target = view.targets["shop"]
    assert isinstance(target, TargetView)
    head = RequestHead(request.method, request.authority, request.path, Headers(request.headers))
    call = Call(target, head, rng=random.Random(1), now=0.0)
    step = call.start(0.0)
    call.close(0.0)
    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    return step.result, step.flag


REWRITING = {
    "local_reply_config": {
        "mappers": [
            {
                "filter": {"response_flag_filter": {"flags": ["UH", "UO", "FI"]}},
                "status_code": 502,
                "body": {"inline_string": "try again"},
                "headers_to_add": [{"header": {"key": "x-was", "value": "%RESPONSE_CODE%"}}],
            }
        ],
        "body_format": {
            "json_format": {
                "code": "%RESPONSE_CODE%",
                "flags": "%RESPONSE_FLAGS%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "route": "%ROUTE_NAME%",
                "cluster": "%UPSTREAM_CLUSTER%",
                "message": "%LOCAL_REPLY_BODY%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            }
        },
    }
}


@pytest.mark.parametrize("name", CASES)
def test_answer_rewritten(side, name):
    route = {"name": "r", "match": {"prefix": "/"}, "response_headers_to_add": HEADERS, **CASES[name]}
    configuration = {"name": "differential", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]}
    request = Request("GET", "/a?b=1", "shop", (("x-1", "a"),), manager=1)

    (envoy,) = side.decide(configuration, [request])
    reply, flag = answer_of_meshlib(configuration, request, REWRITING)

    assert (envoy.status, envoy.flag, envoy.details) == (reply.status, flag, reply.details)
    assert envoy.headers == comparable(reply.headers)
    assert envoy.body == reply.body.decode()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", CASES)
def test_answer(side, name, method):
    route = {"name": "r", "match": {"prefix": "/"}, "response_headers_to_add": HEADERS, **CASES[name]}
    host = {"name": "v", "domains": ["*"], "routes": [route]}
    configuration = {"name": "differential", "virtual_hosts": [host]}
    request = Request(method, "/a?b=1", "shop", (("x-1", "a"),))

    (envoy,) = side.decide(configuration, [request])
    reply, flag = answer_of_meshlib(configuration, request)

    assert envoy.details, "an upstream answered"
    assert envoy.status == reply.status
    assert envoy.flag == flag
    assert envoy.details == reply.details
    assert envoy.headers == comparable(reply.headers)
    assert envoy.body == ("" if method == "HEAD" else reply.body.decode())
