"""Other people's transports around ours."""

import hishel
import hishel.httpx
import httpx

from meshlib.clients.httpx_sync import MeshTransport

from .conftest import reply


def test_cache_of_hishel_goes_around_the_transport(mesh, http_server, tmp_path):
    asked: list[str] = []

    def answer(handler, sent):
        asked.append(handler.path)
        reply(handler, 200, b"%d" % len(asked), {"Cache-Control": "max-age=60"})

    mesh.serve("shop", {"c": [http_server(answer=answer).address]})
    storage = hishel.SqliteStorage(database_path=tmp_path / "cache.db")
    transport = hishel.httpx.CacheTransport(next_transport=MeshTransport(mesh), storage=storage, rfc=True)
    with httpx.Client(transport=transport) as client:
        assert ["1", "1", "2"] == [client.get(f"http://shop/{path}").text for path in "aab"]
    assert ["/a", "/b"] == asked
    assert (0, 0) == mesh.held("c")
