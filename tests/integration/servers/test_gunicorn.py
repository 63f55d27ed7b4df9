"""Django and plain WSGI under gunicorn, with several workers."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

GATEWAY = "spiffe://cluster.local/ns/default/sa/gateway"


@pytest.fixture(scope="module")
def site(shared_world: Any) -> Iterator[httpx.Client]:
    """Client of a site with two workers, STRICT mTLS and rules."""
    shared_world.gunicorn("guarded", "--workers", "2")
    shared_world.wait_serving("guarded")
    with shared_world.client("gateway", "guarded") as client:
        yield client


def test_two_workers_share_one_lease_and_both_know_the_caller(shared_world: Any, site: httpx.Client) -> None:
    pids = set()
    deadline = time.monotonic() + 60
    while len(pids) < 2:
        assert time.monotonic() < deadline, "one worker takes all requests"
        answer = site.get("http://guarded/users/7", headers={"connection": "close"})
        assert (200, GATEWAY, "/users/7") == (
            answer.status_code,
            answer.json()["principal"],
            answer.json()["path"],
        ), answer.text
        pids.add(answer.json()["pid"])
    assert 1 == len(shared_world.server.leases("guarded"))


def test_rules_streams_errors_and_head(shared_world: Any, site: httpx.Client) -> None:
    assert 403 == site.get("http://guarded/admin").status_code
    assert 403 == site.get("http://guarded/%61dmin").status_code
    assert b"in context\n" * 3 == site.get("http://guarded/stream").content
    assert 500 == site.get("http://guarded/boom").status_code
    assert b"" == site.head("http://guarded/admin").content
    with shared_world.client("stranger", "guarded") as stranger:
        assert 403 == stranger.get("http://guarded/users/7").status_code


def test_callers_without_certificate_or_from_elsewhere_are_refused(shared_world: Any, site: httpx.Client) -> None:
    (address,) = shared_world.wait_serving("guarded")
    server = shared_world.server
    for context in (server.client_context(None), server.client_context("gateway", "elsewhere.example")):
        with httpx.Client(verify=context, trust_env=False) as client:
            try:
                answer = client.get(f"https://{address}/users/7", timeout=10)
            except httpx.TransportError:
                continue
        # gunicorn answers over the connection whose handshake it has just refused.
        assert (403, True) == (answer.status_code, "SSL" in answer.text or "certificate" in answer.text), answer.text


def test_plain_wsgi_without_tls(shared_world: Any) -> None:
    shared_world.gunicorn("plain-wsgi", run="plain", namespace="plain")
    (address,) = shared_world.wait_serving("plain-wsgi")
    with shared_world.client("gateway", "plain-wsgi.plain", namespace="plain") as client:
        assert "/users/7" == client.get("http://plain-wsgi.plain/users/7").json()["path"]
    spoofed = {"host": "10.0.0.9:80", "x-forwarded-host": "10.0.0.9", "x-forwarded-for": "10.0.0.9"}
    assert 200 == httpx.get(f"http://{address}/users/7", headers=spoofed, trust_env=False).status_code


def test_reload_and_max_requests_keep_the_instance_and_sigterm_fails_no_request(
    world: Any, load: Any, wait_for: Any
) -> None:
    """Under load: workers are replaced after some requests, all of them are reloaded, then one of two masters stops."""
    first = world.gunicorn("site", "--workers", "2", "--max-requests", "100", "--max-requests-jitter", "50")
    second = world.gunicorn("site", "--workers", "1")
    world.wait_serving("site", 2)
    leases = world.server.leases("site")
    with world.client("gateway", "site") as client:

        def call() -> int:
            answer = client.get("http://site/users/7")
            assert 200 == answer.status_code, answer.text
            return int(answer.json()["pid"])

        with load(call, 3) as calls:
            seen: set[str] = set()

            def pids() -> set[int]:
                seen.update(world.server.leases("site"))
                assert not calls.failures, calls.failures
                assert 2 == len(world.server.leases("site")), "the lease must outlive a worker"
                return set(calls.answers)

            wait_for(lambda: len(pids()) >= 5, "workers are replaced", 60.0)
            before = pids()
            second.send(signal.SIGHUP)
            wait_for(lambda: pids() - before, "the reloaded worker answers", 60.0)
            assert leases == sorted(seen)
            first.send(signal.SIGTERM)
            assert 0 == first.wait(), first.output
            count = len(calls.answers)
            wait_for(lambda: len(calls.answers) > count + 20 or calls.failures, "the other one answers")
        assert [] == calls.failures
        assert 1 == len(world.server.leases("site"))


def test_the_lease_is_held_for_as_long_as_a_new_worker_may_load(world: Any, wait_for: Any, tmp_path: Path) -> None:
    """A worker that loaded for longer than 15 s, as on a busy machine, found its instance gone from the mesh."""
    loading = tmp_path / "loading"
    process = world.gunicorn("slow", "--workers", "1", "--timeout", "50", LOADS_WHILE=str(loading))
    world.wait_serving("slow")
    (lease,) = world.server.leases("slow")
    with world.client("gateway", "slow") as client:
        assert 200 == client.get("http://slow/users/7").status_code  # the worker has done more than announce itself
    loading.touch()
    try:
        process.send(signal.SIGHUP)
        wait_for(lambda: world.server.lifetimes("slow") == {lease: 65.0}, "the lease is held for the new worker", 60.0)
    finally:
        loading.unlink()
    wait_for(lambda: world.server.lifetimes("slow") == {lease: 5.0}, "the new worker renews it", 60.0)


def test_a_killed_worker_leaves_the_lease_and_a_killed_master_ends_it(world: Any, wait_for: Any) -> None:
    process = world.gunicorn("killed", "--workers", "2")
    world.wait_serving("killed")
    (lease,) = world.server.leases("killed")
    with world.client("gateway", "killed") as client:
        victim = client.get("http://killed/users/7").json()["pid"]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: client.get("http://killed/users/7").json()["pid"] != victim, "another worker answers")
        assert [lease] == world.server.leases("killed")
    process.send(signal.SIGKILL)
    process.wait(90)
    wait_for(lambda: world.server.leases("killed") == [], "the lease has ended")


def test_settings_that_contradict_the_mesh_are_refused(world: Any) -> None:
    process = world.gunicorn("refused", "--certfile", "/dev/null")
    assert 0 != process.wait(90)
    assert "certfile cannot be set" in process.output
