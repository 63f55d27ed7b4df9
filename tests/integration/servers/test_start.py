"""Starting when something is missing."""

import json
import signal
import socket
from typing import Any

import httpx

NOWHERE = {
    "xds_servers": [
        {"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
    ]
}


def test_a_port_in_use_is_one_clear_error(world: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        address = f"127.0.0.1:{port}"
        site = world.gunicorn("taken", "--bind", address)
        processes = [world.start("web", "mesh", "taken", environment={"PORT": str(port)})]
        processes += [world.start("greeter", run, "taken", address=address) for run in ("sync", "aio")]
        assert [1, 1, 1] == [process.wait(90) for process in processes]
        assert 1 == site.wait(90)
    for process in processes:
        assert process.lines[-1].endswith(f"cannot listen on {address}: Address already in use"), process.output
    assert "Connection in use" in site.output  # gunicorn's own words
    assert [] == world.server.leases("taken")


def test_without_a_management_server_the_error_names_it_and_nothing_is_left(world: Any) -> None:
    """All at once: uvicorn, gunicorn and gRPC; the management server is away for two, the registry for the third."""
    away = world.server.bootstrap("n", "alone") | NOWHERE | {"meshlib": {"registry_uri": "http://127.0.0.1:2"}}
    no_registry = world.server.bootstrap("n", "alone", meshlib={"registry_uri": "http://127.0.0.1:2"})
    web = world.start("web", "mesh", "alone", bootstrap=away, start_timeout_s=5)
    greeter = world.start("greeter", "sync", "alone", bootstrap=no_registry, start_timeout_s=5)
    site = world.gunicorn("alone", GRPC_XDS_BOOTSTRAP_CONFIG=json.dumps(away), MESHLIB_START_TIMEOUT_S="5")
    assert (1, 1, 3) == (web.wait(90), greeter.wait(90), site.wait(90)), (web.output, greeter.output, site.output)
    assert "UnavailableError" in web.lines[-1]
    assert "management server 127.0.0.1:1 does not answer" in web.lines[-1]
    assert "127.0.0.1:2/v1/registrations/" in greeter.lines[-1]
    (line,) = [line for line in site.lines if "management server 127.0.0.1:1 does not answer" in line]
    assert "[ERROR]" in line
    assert "Traceback" not in site.output
    assert [] == world.server.leases("alone")


def test_a_registration_that_is_refused_is_an_error_with_the_reason(world: Any) -> None:
    process = world.start("web", "mesh", "alone", service_account="somebody-else")
    assert 1 == process.wait(90)
    assert "ConfigError: register alone at 127.0.0.1:" in process.lines[-1]
    assert "403" in process.lines[-1]


def test_a_service_restarts_without_the_management_server(own_world: Any, port: int, wait_for: Any) -> None:
    """With its copy of the configuration: mTLS, rules and clients as before; it is registered when the server is back."""
    world, server = own_world, own_world.server
    bootstrap = server.bootstrap("restarting", "guarded")
    options = {"bootstrap": bootstrap, "state_dir": str(world.folder / "disk"), "environment": {"PORT": str(port)}}
    first = world.start("web", "mesh", "guarded", **options)
    world.wait_serving("guarded")
    gateway, stranger = server.client_context("gateway"), server.client_context("stranger")

    def status(context: Any) -> int:
        with httpx.Client(verify=context, trust_env=False) as client:
            try:
                return client.get(f"https://127.0.0.1:{port}/users/7", timeout=10).status_code
            except httpx.TransportError:
                return 0

    wait_for(lambda: status(gateway) == 200, "it serves")
    server.stop()
    first.send(signal.SIGTERM)
    assert 0 == first.wait(), first.output

    second = world.start("web", "mesh", "guarded", **options)
    wait_for(lambda: status(gateway) == 200 or not second.is_running, lambda: second.output, 60.0)
    assert second.is_running, second.output
    assert 403 == status(stranger)
    assert 0 == status(server.client_context(None))

    server.start()
    wait_for(lambda: server.instances("guarded") == [f"127.0.0.1:{port}"], "it is registered again", 60.0)
    with world.client("gateway", "guarded") as client:
        assert second.pid == client.get("http://guarded/users/7").json()["pid"]
