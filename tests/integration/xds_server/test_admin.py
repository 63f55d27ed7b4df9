"""The HTTP side, over real sockets."""

import asyncio
import contextlib
import json
from datetime import timedelta

import httpx
import pytest

from xds_server import http as http_server
from xds_server.addresses import Address
from xds_server.identity import Identity, Speakers
from xds_server.model import Profile
from xds_server.ordering import CDS
from xds_server.tokens import Tokens

BODY = {"service": "checkout", "address": "127.0.0.1", "port": 8080, "ttl_s": 5}


@pytest.fixture
def http():
    def client(app) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://{app.admin}", trust_env=False)

    return client


async def test_instance_registers_renews_is_listed_and_leaves(run_server, http):
    async with run_server() as app, http(app) as client:
        for _ in range(2):
            answer = await client.put("/v1/registrations/checkout-1", json=BODY)
            assert (200, {"id": "checkout-1", "ttl_s": 5.0, "expires_in_s": 5.0}) == (answer.status_code, answer.json())
        (listed,) = (await client.get("/v1/registrations")).json()["registrations"]
        assert ("checkout-1", "checkout", 8080) == (listed["id"], listed["service"], listed["port"])
        assert 204 == (await client.delete("/v1/registrations/checkout-1")).status_code
        assert 404 == (await client.delete("/v1/registrations/checkout-1")).status_code


async def test_bad_body_is_refused_with_the_field(run_server, http):
    async with run_server() as app, http(app) as client:
        answer = await client.put("/v1/registrations/a", json={**BODY, "port": "http"})
        assert 400 == answer.status_code
        assert "port must be an integer" in answer.json()["error"]
        answer = await client.put("/v1/registrations/a", content=b"{")
        assert (400, True) == (answer.status_code, answer.json()["error"].startswith("the body is not JSON"))
        answer = await client.put("/v1/registrations/a", content=b" " * 70_000)
        assert 413 == answer.status_code


async def test_service_account_needs_its_own_token(run_server, http, tmp_path):
    state_dir = tmp_path / "state"
    async with run_server(state_dir=state_dir) as app, http(app) as client:

        async def put(account: str | None, body: dict = BODY | {"service_account": "checkout"}) -> int:
            headers = {}
            if account is not None:
                token = Tokens.open(state_dir).issue(Identity("default", account), timedelta(hours=1))
                headers["authorization"] = f"Bearer {token}"
            return (await client.put("/v1/registrations/a", json=body, headers=headers)).status_code

        assert 401 == await put(None)
        assert 403 == await put("cart")
        assert 200 == await put("checkout")
        assert 401 == await put(None, BODY)  # an instance without an identity
        assert 403 == await put("cart", BODY | {"service_account": "cart"})  # another's registration, another's service
        assert 401 == (await client.delete("/v1/registrations/a")).status_code


async def test_an_account_speaks_for_other_services_only_when_that_is_granted(run_server, http, tmp_path):
    state_dir = tmp_path / "state"
    speakers = Speakers.parse(["deployer=checkout"], "--may-register")
    async with run_server(state_dir=state_dir, speakers=speakers) as app, http(app) as client:

        async def put(account: str) -> int:
            token = Tokens.open(state_dir).issue(Identity("default", account), timedelta(hours=1))
            answer = await client.put(
                f"/v1/registrations/{account}",
                json=BODY | {"service_account": account},
                headers={"authorization": f"Bearer {token}"},
            )
            return answer.status_code

        assert 403 == await put("cart")
        assert 200 == await put("deployer")


async def test_an_account_cannot_register_at_the_address_of_another(run_server, http, tmp_path):
    state_dir = tmp_path / "state"
    async with run_server(state_dir=state_dir) as app, http(app) as client:

        async def put(account: str, service: str, instance_id: str) -> httpx.Response:
            token = Tokens.open(state_dir).issue(Identity("default", account), timedelta(hours=1))
            body = {**BODY, "service": service, "service_account": account}
            return await client.put(
                f"/v1/registrations/{instance_id}", json=body, headers={"authorization": f"Bearer {token}"}
            )

        assert 200 == (await put("checkout", "checkout", "a")).status_code
        refused = await put("alpha", "alpha", "b")
        assert 409 == refused.status_code
        assert "127.0.0.1 port 8080 is registered by service account default/checkout" == refused.json()["error"]
        assert 200 == (await put("checkout", "checkout", "a")).status_code


async def test_leases_survive_a_restart(run_server, http, tmp_path):
    state_dir = tmp_path / "state"
    async with run_server(state_dir=state_dir) as app, http(app) as client:
        token = Tokens.open(state_dir).issue(Identity("default", "checkout"), timedelta(hours=1))
        client.headers["authorization"] = f"Bearer {token}"
        body = BODY | {"service_account": "checkout"}
        await client.put("/v1/registrations/a", json={**body, "ttl_s": 60})
        await client.put("/v1/registrations/b", json={**body, "ttl_s": 30})
        before = [lease.instance for lease in app.registry.leases()]
    # Stopping waits for the file's last write.
    async with run_server(state_dir=tmp_path / "state") as app:
        assert before == [lease.instance for lease in app.registry.leases()]
        assert [60.0, 30.0] == [lease.ttl_s for lease in app.registry.leases()]


async def test_lease_that_is_not_renewed_expires(run_server, http):
    async with run_server() as app, http(app) as client:
        await client.put("/v1/registrations/a", json={**BODY, "ttl_s": 0.5})
        while (await client.get("/v1/registrations")).json()["registrations"]:
            pass
        assert 0 == len(app.registry)


async def test_status_shows_clients_and_what_they_accepted(run_server, http, connect, source, eds_cluster, assignment):
    source.set(eds_cluster("c1"), assignment("c1", 7001))
    async with run_server() as app, http(app) as client, connect(app.listen) as stream:
        await stream.ask(CDS)
        response = await stream.response()
        await stream.ack(response, error="do not like it")
        while (status := (await client.get("/v1/status")).json())["clients"][0]["types"]["Cluster"]["state"] == "STALE":
            pass
        (one,) = status["clients"]
        assert ("raw-1", "meshlib", None) == (one["node_id"], one["profile"], one["identity"])
        clusters = one["types"]["Cluster"]
        assert ("ERROR", True, 1, "do not like it") == (
            clusters["state"],
            clusters["wildcard"],
            clusters["resources"],
            clusters["last_error"],
        )
        assert ("", response.version_info) == (clusters["acked_version"], clusters["sent_version"])


async def test_resources_of_each_profile_are_shown(run_server, http, source, eds_cluster, assignment):
    source.set(eds_cluster("c1"), assignment("c1", 7001))
    async with run_server() as app, http(app) as client:
        for profile in Profile:
            shown = (await client.get("/v1/resources", params={"profile": profile})).json()
            assert "EDS" == shown[CDS]["c1"]["resource"]["type"]
        assert 400 == (await client.get("/v1/resources", params={"profile": "nginx"})).status_code


async def test_a_refused_publish_keeps_the_old_state_and_is_shown(run_server, http, source, eds_cluster, assignment):
    source.set(eds_cluster("c1"), assignment("c1", 7001))
    async with run_server() as app, http(app) as client:
        assert {"refused": False, "findings": []} == (await client.get("/v1/findings")).json()
        source.set(eds_cluster("c2"))  # without endpoints
        source.publish()
        while not (shown := (await client.get("/v1/findings")).json())["refused"]:
            pass
        assert "names ClusterLoadAssignment 'c2', which does not exist" in shown["findings"][0]["message"]
        assert ["c1"] == list((await client.get("/v1/resources")).json()[CDS])


async def test_probes_and_metrics(run_server, http):
    async with run_server() as app, http(app) as client:
        assert "ok\n" == (await client.get("/healthz")).text
        assert "ready\n" == (await client.get("/readyz")).text
        assert "xds_server_streams_opened_total 0" in (await client.get("/metrics")).text.splitlines()


async def test_foreign_host_names_are_refused_on_loopback(run_server, http):
    async with run_server() as app, http(app) as client:
        answer = await client.get("/v1/registrations", headers={"host": "evil.example"})
        assert 400 == answer.status_code


@pytest.mark.parametrize(("host", "status"), [("[::1]:1", 200), ("localhost", 200), ("evil.example:1", 400)])
async def test_host_names_on_loopback_of_both_kinds(run_server, http, host, status):
    async with run_server(admin=Address("::1", 0)) as app, http(app) as client:
        assert status == (await client.get("/healthz", headers={"host": host})).status_code


async def test_no_page_shows_a_private_key(run_server, http, tmp_path):
    async with run_server(state_dir=tmp_path / "state") as app, http(app) as client:
        for path in ("/v1/status", "/v1/resources", "/v1/registrations", "/v1/findings", "/metrics"):
            text = (await client.get(path)).text
            assert "PRIVATE KEY" not in text and "PRIVATE KEY" not in json.dumps(text)


async def _until_closed(address: Address, data: bytes) -> bytes:
    """Send something, and return what came back until the server closed."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        writer.write(data)
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("which", ["first", "later"])
async def test_a_head_that_comes_byte_by_byte_is_not_waited_for(run_server, monkeypatch, which):
    async with run_server() as app:
        if which == "first":
            monkeypatch.setattr(http_server, "HEAD_S", 0.3)
        reader, writer = await asyncio.open_connection(app.admin.host, app.admin.port)
        if which == "later":
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"HTTP/1.1 200 OK\r\n" == await reader.readline()
            monkeypatch.setattr(http_server, "HEAD_S", 0.3)
        writer.write(b"GET /healthz HTTP/1.1\r\nx: ")
        closed = asyncio.create_task(reader.read())
        async with asyncio.timeout(30):
            while not closed.done():  # the bytes never end
                writer.write(b"y")
                await asyncio.wait([closed], timeout=0.02)
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1" not in await closed  # no answer to the head that was never whole
        writer.close()


async def test_callers_that_say_nothing_are_not_waited_for(run_server, http, monkeypatch):
    monkeypatch.setattr(http_server, "HEAD_S", 0.3)
    async with run_server() as app, http(app) as client:
        answers = await asyncio.gather(*(_until_closed(app.admin, b"") for _ in range(20)))
        assert {b""} == set(answers)
        monkeypatch.undo()
        assert 200 == (await client.get("/healthz")).status_code


async def test_a_caller_that_does_not_read_its_answer_is_let_go(run_server, http, monkeypatch):
    monkeypatch.setattr(http_server, "READ_S", 0.2)
    async with run_server() as app, http(app) as client:
        for number in range(300):
            body = BODY | {"port": 1000 + number, "labels": {"x": "y" * 63, "z": "y" * 60}}
            await client.put(f"/v1/registrations/{number}", json=body)
        _, writer = await asyncio.open_connection(app.admin.host, app.admin.port, limit=1)
        writer.transport.pause_reading()
        for _ in range(200):  # more than the sockets' buffers hold
            writer.write(b"GET /v1/registrations HTTP/1.1\r\nhost: localhost\r\n\r\n")
        server = app._http
        async with asyncio.timeout(60):
            while len(server.server_state.connections) != 2:
                await asyncio.sleep(0)  # at each turn of the loop: it may not stay for long
            while len(server.server_state.connections) != 1:  # the client's own stays
                await asyncio.sleep(0.02)
                await client.get("/healthz")
        writer.transport.abort()


async def test_an_oversized_head_is_refused(run_server):
    async with run_server() as app:
        answer = await _until_closed(app.admin, b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000)
        assert answer[:12] in (b"HTTP/1.1 400", b"")
