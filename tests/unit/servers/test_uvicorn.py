"""What `meshlib.integrations.uvicorn` refuses, and what it adds to a scope."""

import asyncio
import threading
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from meshlib.errors import ConfigError
from meshlib.integrations import uvicorn


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workers": 2}, "'workers' cannot be used: one process serves one address"),
        ({"reload": True}, "'reload' cannot be used"),
        ({"uds": "/run/x"}, "'uds' cannot be used: clients reach a service of the mesh by TCP"),
        ({"fd": 3}, "'fd' cannot be used"),
        ({"ssl_certfile": "x"}, "'ssl_certfile' cannot be used: certificates come from the mesh"),
    ],
)
def test_options_that_contradict_the_mesh_are_refused(server_mesh: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        uvicorn.run(None, mesh=server_mesh, service="checkout", **options)


def test_another_thread_is_refused(server_mesh: Any) -> None:
    errors: list[str] = []

    def run() -> None:
        try:
            uvicorn.run(None, mesh=server_mesh, service="checkout")
        except ConfigError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert 1 == len(errors)
    assert "must be called in the main thread" in errors[0]


class Transport(asyncio.Transport):
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"sockname": ("10.0.0.1", 80), "peername": ("10.0.0.2", 5)}.get(name, default)


async def test_a_scope_has_the_addresses_of_the_connection() -> None:
    """Below uvicorn's own middleware, which lets headers replace them."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    config = uvicorn.MeshConfig(app, tls_context=None, log_config=None)
    config.load()
    assert issubclass(config.http_protocol_class, H11Protocol)
    protocol: Any = config.http_protocol_class(config=config, server_state=uvicorn.MeshServer(config, print).server_state,
                                               app_state={})  # type: ignore[call-arg]  # fmt: skip
    protocol.connection_made(Transport())
    scope = {"type": "http", "client": ("127.0.0.1", 1), "headers": [(b"x-forwarded-for", b"1.2.3.4")]}
    await protocol.app(scope, None, None)
    (seen,) = scopes
    assert {"server": ("10.0.0.1", 80), "client": ("10.0.0.2", 5)} == seen["extensions"]["meshlib.connection"]
    assert "tls" not in seen["extensions"]
