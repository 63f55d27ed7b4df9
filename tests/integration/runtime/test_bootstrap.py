"""What a bootstrap says, from the file to the wire: profiles of validation, credentials, several meshes in a process."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from peers.authority import Authority, Leaf
from peers.endpoints import ports

from meshlib import Mesh
from meshlib.errors import BootstrapError, UnavailableError
from meshlib.xds.resources import CDS, EDS

STRICT, DELTA = "meshlib.validation_grpc", "meshlib.delta"


def eventually(look: Callable[[], Any], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def server(address: str, *features: str, creds: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    channel = [{"type": "what-we-do-not-know"}, creds or {"type": "insecure"}]
    return {"server_uri": address, "channel_creds": channel, "server_features": ["xds_v3", *features], **fields}


def write(folder: Path, *servers: dict[str, Any], node: str = "orders-1") -> Path:
    path = folder / f"{node}.json"
    path.write_text(json.dumps({"xds_servers": list(servers), "node": {"id": node}}))
    return path


@pytest.mark.parametrize("variant", ["ads", "delta_ads"])
def test_the_profile_of_the_bootstrap_refuses_what_grpc_refuses_and_keeps_the_last_good(
    variant: str, request: pytest.FixtureRequest, tmp_path: Path, tools: Any
) -> None:
    """1. Both meshes use the cluster. 2. It becomes one that only Envoy takes. 3. One refuses it and goes on with the old."""
    ads = request.getfixturevalue(variant)
    features = [DELTA] if variant == "delta_ads" else []
    strict = write(tmp_path, server(ads.address, STRICT, *features), node="strict")
    plain = write(tmp_path, server(ads.address, *features), node="plain")
    with Mesh(strict, state_dir="") as mesh, Mesh(plain, state_dir="") as other:
        for one in (mesh, other):
            one.wait_ready("checkout", timeout_s=30)
        ads.put(CDS, {**tools.eds_cluster("checkout"), "lb_policy": "MAGLEV"})
        ads.wait_for(lambda: any(request.HasField("error_detail") for request in ads.of_type(CDS)))
        (nack,) = [request for request in ads.of_type(CDS) if request.HasField("error_detail")]
        assert (nack.error_detail.code, "checkout: lb_policy: MAGLEV is not a policy of gRPC") == (
            3,
            nack.error_detail.message.partition("resource index 0: ")[2].rstrip("]"),
        )
        (refused,) = [found for found in mesh.dump() if found.error]
        assert (refused.name, refused.state, refused.is_in_use) == ("checkout", "NACKED", True)
        assert ports(mesh) == [1]
        eventually(lambda: {found.state for found in other.dump()} == {"ACKED"})
        ads.put(CDS, {**tools.eds_cluster("checkout"), "lb_policy": "RING_HASH"})
        eventually(lambda: {found.state for found in mesh.dump()} == {"ACKED"})


# Credentials.


def put_file(path: Path, content: bytes | str) -> str:
    new = path.with_name(path.name + ".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.replace(path)
    return str(path)


def restart_with(ads: Any, leaf: Leaf, *, callers: Authority | None = None) -> None:
    """Go on at the same port with this certificate, and only with callers whom this authority knows."""
    ads.stop()
    roots = None if callers is None else callers.pem
    pair = [(leaf.key_pem, leaf.chain_pem)]
    ads.credentials = grpc.ssl_server_credentials(pair, roots, require_client_auth=callers is not None)
    ads.start()


def jwt(**claims: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none'})}.{part(claims)}.c2ln"


def test_rotated_certificates_and_roots_of_the_connection_are_picked_up_without_a_restart(
    ads: Any, tools: Any, tmp_path: Path
) -> None:
    """1. Mutual TLS to the server. 2. The server and its callers get certificates of another root. 3. An update arrives."""
    first, second = Authority("first"), Authority("second")
    mine = first.issue("spiffe://a/orders")
    config = {
        "ca_certificate_file": put_file(tmp_path / "root.pem", first.pem),
        "certificate_file": put_file(tmp_path / "cert.pem", mine.chain_pem),
        "private_key_file": put_file(tmp_path / "key.pem", mine.key_pem),
        "refresh_interval": "1s",
    }
    restart_with(ads, first.issue(ips=["127.0.0.1"]), callers=first)
    path = write(tmp_path, server(ads.address, creds={"type": "tls", "config": config}))
    with Mesh(path, state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        put_file(tmp_path / "key.pem", "half of a key")  # a replacement that is under way
        restart_with(ads, first.issue(ips=["127.0.0.1"]), callers=first)
        ads.put(EDS, tools.load_assignment("checkout", 2))
        eventually(lambda: ports(mesh) == [2])
        theirs = second.issue("spiffe://a/orders")
        put_file(tmp_path / "root.pem", second.pem)
        put_file(tmp_path / "cert.pem", theirs.chain_pem)
        put_file(tmp_path / "key.pem", theirs.key_pem)
        restart_with(ads, second.issue(ips=["127.0.0.1"]), callers=second)
        ads.put(EDS, tools.load_assignment("checkout", 3))
        eventually(lambda: ports(mesh) == [3])


def test_a_server_of_another_root_is_not_spoken_to(ads: Any, tmp_path: Path) -> None:
    restart_with(ads, Authority("other").issue(ips=["127.0.0.1"]))
    config = {"ca_certificate_file": put_file(tmp_path / "root.pem", Authority("mine").pem)}
    path = write(tmp_path, server(ads.address, creds={"type": "tls", "config": config}))
    with Mesh(path, state_dir="") as mesh, pytest.raises(UnavailableError, match="does not answer"):
        mesh.wait_ready("checkout", timeout_s=1)
    assert ads.requests == []


def test_a_token_is_read_again_for_each_stream(ads: Any, tools: Any, tmp_path: Path) -> None:
    """1. A token opens the stream. 2. A stream whose token has expired waits. 3. The next token opens it again."""
    authority = Authority()
    restart_with(ads, authority.issue(ips=["127.0.0.1"]))
    token = tmp_path / "token"
    one, old, two = jwt(n=1, exp=time.time() + 60), jwt(n=2, exp=time.time() - 60), jwt(n=3)
    put_file(token, one)
    creds = {"type": "tls", "config": {"ca_certificate_file": put_file(tmp_path / "root.pem", authority.pem)}}
    calls = [{"type": "unknown"}, {"type": "jwt_token_file", "config": {"jwt_token_file": str(token)}}]
    path = write(tmp_path, server(ads.address, creds=creds, call_creds=calls))
    with Mesh(path, state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        assert [stream["authorization"] for stream in ads.metadata] == [f"Bearer {one}"]
        put_file(token, old)
        restart_with(ads, authority.issue(ips=["127.0.0.1"]))
        eventually(lambda: "expired" in mesh.status().connection_text)
        assert (len(ads.metadata), ports(mesh), old in mesh.status().connection_text) == (1, [1], False)
        put_file(token, two)
        ads.put(EDS, tools.load_assignment("checkout", 2))
        eventually(lambda: ports(mesh) == [2])
        assert ads.metadata[-1]["authorization"] == f"Bearer {two}"


GOOGLE = {
    "__init__.py": """
import types

exceptions = types.SimpleNamespace(GoogleAuthError=ValueError)


def default(scopes):
    assert scopes == ("https://www.googleapis.com/auth/cloud-platform",)
    return "credentials", "project"
""",
    "transport/__init__.py": "",
    "transport/requests.py": """
class Request:
    pass
""",
    "transport/grpc.py": """
import grpc


class AuthMetadataPlugin(grpc.AuthMetadataPlugin):
    def __init__(self, credentials, request):
        assert credentials == "credentials"

    def __call__(self, context, callback):
        callback((("authorization", "Bearer of google"),), None)
""",
}
PROGRAM = """
import sys

from meshlib import Mesh

with Mesh.from_env(state_dir="") as mesh:
    mesh.wait_ready("checkout", timeout_s=30)
"""


def test_google_default_sends_the_tokens_of_googles_library(ads: Any, tmp_path: Path) -> None:
    """The library is a double with the same names; gRPC's default roots, which it goes by, are ours in the process."""
    for name, text in GOOGLE.items():
        path = tmp_path / "google" / "auth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    authority = Authority()
    restart_with(ads, authority.issue(ips=["127.0.0.1"]))
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "GRPC_XDS_BOOTSTRAP": str(write(tmp_path, server(ads.address, creds={"type": "google_default"}))),
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": put_file(tmp_path / "root.pem", authority.pem),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ads.metadata[0]["authorization"] == "Bearer of google"


# Several meshes.


def test_meshes_of_one_process_have_bootstraps_of_their_own(
    ads: Any, delta_ads: Any, tools: Any, tmp_path: Path
) -> None:
    tools.put_service(delta_ads, "checkout", 7)
    one = write(tmp_path, server(ads.address), node="one")
    two = write(tmp_path, server(delta_ads.address, DELTA, STRICT), node="two")
    with Mesh(one, state_dir="") as mesh, Mesh(two, state_dir="") as other:
        for each in (mesh, other):
            each.wait_ready("checkout", timeout_s=30)
        assert (ports(mesh), ports(other)) == ([1], [7])
        assert ({r.node.id for _, r in ads.requests}, {r.node.id for _, r in delta_ads.requests}) == (
            {"one", ""},
            {"two", ""},
        )
        mesh.close()
        delta_ads.put(EDS, tools.load_assignment("checkout", 8))
        eventually(lambda: ports(other) == [8])


# Errors.


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, r"bootstrap GRPC_XDS_BOOTSTRAP \({path}\): cannot be read: No such file or directory"),
        ("{", r"bootstrap GRPC_XDS_BOOTSTRAP \({path}\): not valid JSON: .*line 1 column 2"),
        (
            '{"xds_servers": [{"server_uri": "a:1", "channel_creds": [{"type": "x"}]}]}',
            r"bootstrap GRPC_XDS_BOOTSTRAP \({path}\): at /xds_servers/0/channel_creds: no known creds type found",
        ),
    ],
)
def test_errors_name_the_variable_the_path_the_place_and_the_reason(
    content: str | None, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bootstrap.json"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(path))
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "{}")
    with pytest.raises(BootstrapError, match=text.replace("{path}", str(path))):
        Mesh.from_env(state_dir="")
