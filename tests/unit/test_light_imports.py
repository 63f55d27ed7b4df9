"""What a process that only calls services over plain text does not load."""

import json
import subprocess
import sys

import pytest

from meshlib.protos import TYPE_PREFIX, from_dict
from meshlib.xds.resources import CDS, EDS, LDS

HEAVY = (
    "cryptography",  # 8 MB; only where certificates are read
    "django",
    "fastapi",
    "google.protobuf.json_format",
    "grpc_status",
    "jwt",
    "rich",
    "spiffe",
    "starlette",
    "tenacity",
    "typer",
    "uvicorn",
    "xds_server",
    "yaml",
)
PROGRAM = """
import json, sys
import meshlib
loaded = {"import": sorted(sys.modules)}
import meshlib.runtime.control, meshlib.runtime.engine
from meshlib.xds.decode import decode_resource
mesh = meshlib.Mesh.connect("127.0.0.1:1", node_id="light")
for kind, body in json.load(sys.stdin):
    decoded = decode_resource(kind, bytes.fromhex(body))
    assert decoded.value is not None, decoded.errors
mesh.channel("xds:///checkout").close()
USE_HTTPX
loaded["use"] = sorted(sys.modules)
print(json.dumps(loaded))
"""
ROUTES = {
    "name": "inline",
    "virtual_hosts": [
        {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "a"}}]}
    ],
}
MANAGER = {
    "@type": f"{TYPE_PREFIX}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "route_config": ROUTES,
    "http_filters": [
        {
            "name": "router",
            "typed_config": {"@type": f"{TYPE_PREFIX}envoy.extensions.filters.http.router.v3.Router"},
        }
    ],
}
ADDRESS = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}
RESOURCES = {
    LDS: {"name": "checkout", "api_listener": {"api_listener": MANAGER}},
    CDS: {"name": "a", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}},
    EDS: {"cluster_name": "a", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": ADDRESS}}]}]},
}


def loaded(program: str) -> dict[str, list[str]]:
    resources = [
        (kind, from_dict(kind.removeprefix(TYPE_PREFIX), body).SerializeToString().hex())
        for kind, body in RESOURCES.items()
    ]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, input=json.dumps(resources), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "use", ["", "import httpx; httpx.Client(transport=mesh.httpx_transport()).close()"], ids=["grpc", "httpx"]
)
def test_a_mesh_without_certificates_loads_no_heavy_library(use):
    found = loaded(PROGRAM.replace("USE_HTTPX", use))
    # httpx itself loads `rich`, for its command.
    avoided = {*HEAVY} - {"rich"} if use else {*HEAVY, "httpx", "httpcore", "h2", "anyio"}
    assert [] == sorted(avoided.intersection(found["use"]))
    assert {"grpc", "httpx", "google.protobuf", "meshlib.mesh"}.isdisjoint(found["import"])


def test_certificates_are_read_with_the_library_all_the_same():
    program = "\n".join(
        [
            "import json, sys",
            "from meshlib.identity import parse_chain",
            "assert 'cryptography' not in sys.modules",
            "try: parse_chain(b'no certificate')",
            "except ValueError as error: assert 'not a PEM certificate chain' in str(error), error",
            "print(json.dumps({'use': sorted(sys.modules)}))",
        ]
    )
    assert "cryptography.x509" in loaded(program)["use"]
