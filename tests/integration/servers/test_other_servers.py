"""hypercorn and granian run the middleware, but hand no certificate to the application: what that means for callers.

Neither has the ASGI TLS extension (hypercorn 0.18, granian 2.8), also where it verifies clients itself.
"""

from typing import Any

import httpx
import pytest

KINDS = pytest.mark.parametrize("kind", ["hypercorn", "granian"])


def command(kind: str, port: int, pem: str = "", root: str = "") -> list[str]:
    if kind == "hypercorn":
        tls = ["--certfile", pem, "--keyfile", pem, "--ca-certs", root, "--verify-mode", "CERT_REQUIRED"] if pem else []
        return ["hypercorn", "web:app", "--bind", f"127.0.0.1:{port}", *tls]
    tls = ["--ssl-certificate", pem, "--ssl-keyfile", pem, "--ssl-ca", root, "--ssl-client-verify"] if pem else []
    return ["granian", "web:app", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port), *tls]


@KINDS
def test_permissive_is_taken_in_plaintext_whose_callers_are_anonymous(shared_world: Any, port: int, kind: str) -> None:
    shared_world.other_server(*command(kind, port), service=kind, namespace="mixed", port=port)
    (address,) = shared_world.wait_serving(kind)
    answer = httpx.get(f"http://{address}/open", timeout=20, trust_env=False)
    assert (200, "") == (answer.status_code, answer.json()["principal"])
    assert 403 == httpx.get(f"http://{address}/users/7", timeout=20, trust_env=False).status_code


@KINDS
def test_a_caller_whom_only_the_server_has_verified_is_nobody_to_the_mesh(
    shared_world: Any, port: int, kind: str
) -> None:
    """STRICT is refused: the server's own mTLS has let the gateway in, and does not say who it is."""
    context = shared_world.server.client_context("gateway")
    pem = str(shared_world.server.folder / "gateway.cluster.local.pem")
    name = f"{kind}-tls"
    tls = command(kind, port, pem, str(shared_world.server.root))
    shared_world.other_server(*tls, service=name, namespace="default", port=port)
    (address,) = shared_world.wait_serving(name)
    with httpx.Client(verify=context, trust_env=False, timeout=20) as client:
        answer = client.get(f"https://{address}/users/7")
    assert (403, True) == (answer.status_code, "mutual TLS is required" in answer.text)
