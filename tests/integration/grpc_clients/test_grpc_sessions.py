"""Stateful sessions of gRPC calls (A55): the cookie comes with the initial metadata, and leads back."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.model.session import MadeCookie, SessionCookie, SessionPolicy
from meshlib.model.snapshot import TargetConfig
from meshlib.testing.builders import service

UNARY, RESPONSES, REQUESTS, CHAT = (f"/test.Service/{name}" for name in ("Unary", "Responses", "Requests", "Chat"))
POLICY = SessionPolicy(SessionCookie("s", MadeCookie(60, "/test.Service")))


@pytest.fixture
def servers(server: Any, mesh: Any) -> list[Any]:
    """Three servers of a service with sessions."""
    made = [server() for _ in range(3)]
    snapshot = service("checkout", *(one.address for one in made))
    ((name, config),) = snapshot.targets.items()
    assert isinstance(config, TargetConfig)
    listener = replace(config.listener, has_session_filter=True, session=POLICY)
    mesh.source.publish(replace(snapshot, targets={name: replace(config, listener=listener)}))
    return made


def cookie_of(metadata: Any) -> str:
    return str(dict([*metadata]).get("set-cookie", "")).partition(";")[0]


def counts(servers: list[Any]) -> list[int]:
    return sorted(len(one.seen) for one in servers)


def test_blocking_calls_of_every_kind(servers: list[Any], mesh: Any) -> None:
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        response, call = channel.unary_unary(UNARY).with_call(b"x")
        assert isinstance(call, grpc.Call)
        assert grpc.StatusCode.OK is call.code()
        assert ("first", "1") in [(key, value) for key, value in call.initial_metadata()]
        cookie = cookie_of(call.initial_metadata())
        assert cookie.startswith("s=")
        back = [("cookie", cookie)]
        for _ in range(4):
            again, call = channel.unary_unary(UNARY).with_call(b"x", metadata=back)
            assert (response, "") == (again, cookie_of(call.initial_metadata()))
            future = channel.unary_unary(UNARY).future(b"x", metadata=back)
            assert (response, "") == (future.result(), cookie_of(future.initial_metadata()))
            chat = channel.stream_stream(CHAT)(iter([b"x"]), metadata=back)
            assert "" == cookie_of(chat.initial_metadata())
            assert [response] == list(chat)
        assert [0, 0, 13] == counts(servers)

        future = channel.stream_unary(REQUESTS).future(iter([b"x"]))
        assert cookie_of(future.initial_metadata()).startswith("s=")
        stream: Iterator[bytes] = channel.unary_stream(RESPONSES)(b"x")
        assert cookie_of(stream.initial_metadata()).startswith("s=")  # type: ignore[attr-defined]
        assert 3 == len(list(stream))


async def test_asyncio_calls_of_every_kind(servers: list[Any], mesh: Any) -> None:
    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
        call = channel.unary_unary(UNARY)(b"x")
        response = await call
        cookie = cookie_of(await call.initial_metadata())
        assert cookie.startswith("s=")
        back = (("cookie", cookie),)
        for _ in range(4):
            call = channel.unary_unary(UNARY)(b"x", metadata=back)
            assert (response, "") == (await call, cookie_of(await call.initial_metadata()))
            chat = channel.stream_stream(CHAT)(iter([b"x"]), metadata=back)
            assert "" == cookie_of(await chat.initial_metadata())
            assert [response] == [message async for message in chat]
        assert [0, 0, 9] == counts(servers)

        stream = channel.unary_stream(RESPONSES)(b"x")
        assert cookie_of(await stream.initial_metadata()).startswith("s=")
        assert 3 == len([message async for message in stream])


def test_methods_outside_of_the_cookie_s_path_have_no_session(servers: list[Any], mesh: Any) -> None:
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        call = channel.unary_unary("/test.ServiceTwo/Unary")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"x")
        assert "" == cookie_of(caught.value.initial_metadata() or ())  # type: ignore[attr-defined]
