"""Leases against a small HTTP server on loopback."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from peers.ports import free_port

from meshlib import Mesh
from meshlib.errors import ConfigError
from meshlib.runtime import registration as module
from meshlib.runtime.registration import Instance, Registration


class Registry:
    """Attributes:
    calls: (method, path, body, authorization) in order.
    answer: Status and body of each answer to a PUT.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any, str]] = []
        self.answer: tuple[int, dict[str, Any]] = (200, {"id": "x", "ttl_s": 1, "expires_in_s": 1})
        self._changed = threading.Condition()
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._take(*registry.answer)

            def do_DELETE(self) -> None:
                self._take(204, None)

            def _take(self, status: int, answer: dict[str, Any] | None) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                call = (
                    self.command,
                    self.path,
                    json.loads(data) if data else None,
                    self.headers.get("authorization", ""),
                )
                # Before the answer: the client goes on as soon as it has it.
                with registry._changed:
                    registry.calls.append(call)
                    registry._changed.notify_all()
                body = b"" if answer is None else json.dumps(answer).encode()
                self.send_response(status)
                if answer is not None:
                    self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._handler = Handler
        self.port = free_port()
        self.start()

    def start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, count: int) -> None:
        self.wait_until(lambda: len(self.calls) >= count)

    def wait_until(self, look: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        with self._changed:
            while not look():
                assert time.monotonic() < end, self.calls
                self._changed.wait(0.02)  # not everything that is looked for is a call


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    yield server
    server.stop()


def mesh_for(registry: Registry) -> Mesh:
    uri = f"http://127.0.0.1:{registry.port}"
    return Mesh.connect("127.0.0.1:1", node_id="n", registry_uri=uri, state_dir="")


def test_an_instance_is_announced_renewed_and_taken_out(registry: Registry) -> None:
    registration = mesh_for(registry).register(
        service="checkout", address="127.0.0.1:8080", labels={"version": "v1"}, service_account="checkout", ttl_s=0.06
    )
    assert registration.is_registered
    registry.wait_for(3)
    registration.close()
    registration.close()
    methods = [method for method, *_ in registry.calls]
    assert methods[-1] == "DELETE"
    assert set(methods[:-1]) == {"PUT"}
    assert {path for _, path, *_ in registry.calls} == {f"/v1/registrations/{registration.id}"}
    assert registry.calls[0][2] == {
        "service": "checkout",
        "namespace": "default",
        "address": "127.0.0.1",
        "port": 8080,
        "labels": {"version": "v1"},
        "service_account": "checkout",
        "service_port": 80,
        "protocol": "http",
        "weight": 1,
        "locality": {"region": "", "zone": "", "sub_zone": ""},
        "ttl_s": 0.06,
    }


def test_an_instance_is_ready_when_it_says_so(registry: Registry) -> None:
    registration = mesh_for(registry).register(service="checkout", address="127.0.0.1:8080", ready=False, ttl_s=60.0)
    assert [False] == [body["ready"] for _, _, body, _ in registry.calls]
    registration.set_ready()
    registry.wait_for(2)
    assert "ready" not in registry.calls[1][2]
    registration.close()


def test_an_instance_that_is_not_listening_yet_is_ready_when_it_is(registry: Registry) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        registration = mesh_for(registry).register(service="checkout", address=address, when_listening=True, ttl_s=0.06)
        registry.wait_for(5)
        assert {False} == {body["ready"] for _, _, body, _ in registry.calls}
        held.listen()
        registry.wait_until(lambda: "ready" not in registry.calls[-1][2])
        registration.close()


def test_an_instance_that_never_listens_can_be_closed(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as held, pytest.MonkeyPatch.context() as patch:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        patch.setattr(module, "PROBE_WARNING_S", 0.0)
        registration = mesh_for(registry).register(service="checkout", address=address, when_listening=True, ttl_s=60.0)
        warning = f"{address} takes no connections yet, so nobody calls it"
        registry.wait_until(lambda: warning in caplog.messages)
        registration.close()
        registry.wait_until(lambda: registry.calls[-1][0] == "DELETE")
        registry.wait_until(lambda: all(thread.name != "meshlib-listening" for thread in threading.enumerate()))
    assert [("PUT", False), ("DELETE", None)] == [
        (method, body and body["ready"]) for method, _, body, _ in registry.calls
    ]
    assert 1 == caplog.messages.count(warning)


def test_who_decides_when_an_instance_is_ready_is_one_of_two(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="ready=False leaves it to set_ready, when_listening to the port; choose one"):
        mesh_for(registry).register(service="checkout", address="127.0.0.1:1", ready=False, when_listening=True)


def test_a_lease_that_others_share_is_left_to_them(registry: Registry) -> None:
    registration = mesh_for(registry).register(service="checkout", address="127.0.0.1:8080", lease_id="shared")
    registration.release()
    registration.close()
    assert ["PUT"] == [method for method, *_ in registry.calls]
    registration.hold(9.0)
    registration.withdraw()
    assert ["PUT", "PUT", "DELETE"] == [method for method, *_ in registry.calls]
    assert 9.0 == registry.calls[1][2]["ttl_s"]
    assert {"/v1/registrations/shared"} == {path for _, path, *_ in registry.calls}


def test_a_registry_that_is_away_keeps_nobody_waiting() -> None:
    mesh = Mesh.connect("127.0.0.1:1", node_id="n", registry_uri="http://127.0.0.1:1", state_dir="")
    registration = Registration(Instance("checkout", "127.0.0.1:8080"), mesh.bootstrap, rng=mesh.rng)
    start = time.monotonic()
    registration.start(wait_s=60.0)
    assert time.monotonic() - start < 50.0
    assert "127.0.0.1:1/v1/registrations/" in registration.error
    registration.close()


def test_a_refusal_is_an_error_with_the_servers_reason(registry: Registry) -> None:
    registry.answer = (400, {"error": "port: must be between 1 and 65535"})
    with pytest.raises(ConfigError, match=r"register checkout at 127\.0\.0\.1:0: 400 from .*: port: must be between"):
        mesh_for(registry).register(service="checkout", address="127.0.0.1:0")
    assert [method for method, *_ in registry.calls] == ["PUT"]


def test_a_server_that_comes_late_or_goes_is_announced_to_again(registry: Registry) -> None:
    registry.answer = (503, {"error": "starting"})
    mesh = mesh_for(registry)
    registration = Registration(Instance("checkout", "127.0.0.1:8080", ttl_s=0.06), mesh.bootstrap, rng=mesh.rng)
    registration.start(wait_s=0.05)
    assert not registration.is_registered
    registry.answer = (200, {})
    registry.wait_for(4)
    registry.stop()
    before = len(registry.calls)
    registry.start()
    registry.wait_for(before + 2)
    assert registration.is_registered
    registration.close()
    assert registry.calls[-1][0] == "DELETE"


def test_the_token_of_the_bootstrap_is_shown(registry: Registry, tmp_path: Path) -> None:
    payload = base64.urlsafe_b64encode(b'{"exp": 99999999999}').rstrip(b"=").decode()
    token = f"e30.{payload}.c2ln"
    (tmp_path / "token").write_text(token)
    mesh = Mesh(
        {
            "xds_servers": [
                {
                    "server_uri": "127.0.0.1:1",
                    "channel_creds": [{"type": "tls"}],
                    "call_creds": [{"type": "jwt_token_file", "config": {"jwt_token_file": str(tmp_path / "token")}}],
                }
            ],
            "meshlib": {"registry_uri": f"http://127.0.0.1:{registry.port}"},
        },
        state_dir="",
    )
    registration = mesh.register(service="checkout", address="127.0.0.1:8080")
    registration.close()
    assert {authorization for *_, authorization in registry.calls} == {f"Bearer {token}"}
    assert token not in repr(registration)


def test_without_a_registry_the_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the bootstrap has no meshlib\.registry_uri"):
        Mesh.connect("127.0.0.1:1", node_id="n").register(service="checkout", address="127.0.0.1:8080")


def test_an_address_without_a_port_is_named(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="address must be IP:port, not 'localhost'"):
        mesh_for(registry).register(service="checkout", address="localhost")
