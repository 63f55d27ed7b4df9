"""Which responses are kept, for how long, and what they are told apart by (RFC 9111)."""

from typing import Any

import httpx
import pytest

from meshlib.clients.response_cache import CacheStatistics, ResponseCache, is_bypassed

MINUTE = {"cache-control": "max-age=60"}


def answer(
    headers: dict[str, str] | list[tuple[str, str]] | None = None,
    status: int = 200,
    sent: dict[str, str] | None = None,
    content: bytes = b"body",
) -> httpx.Response:
    request = httpx.Request("GET", "http://inventory/", headers=sent)
    return httpx.Response(status, headers=headers, content=content, request=request)


def kept_s(response: Any, *, took_s: float = 0.0, told: dict[str, str] | None = None) -> float | None:
    """Return for how many seconds after it came a response is handed out; None: not at all."""
    cache = ResponseCache()
    if not cache.store("k", response, told or {}, began_at=0.0, now=took_s):
        return None
    for after_s in (0.0, 1.0, 9.0, 10.0, 29.0, 30.0, 59.0, 60.0, 3600.0):
        if cache.find("k", took_s + after_s) is None:
            return after_s
    return 1e9


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"cache-control": "max-age=60"}, 60.0),
        ({"cache-control": 'Max-Age="60"'}, 60.0),
        ({"cache-control": "public, max-age=10, s-maxage=30"}, 30.0),
        ({"cache-control": "max-age=60, max-age=10"}, 60.0),
        ({"cache-control": "max-age=60", "age": "30"}, 30.0),
        ({"cache-control": "max-age=60", "age": "60"}, None),
        ({"cache-control": "max-age=60", "age": "soon"}, 60.0),
        ({"cache-control": "max-age=99999999999999999999"}, 1e9),
        ({"cache-control": "max-age=-1"}, None),
        ({"cache-control": "max-age=x"}, None),
        ({"cache-control": "max-age=0"}, None),
        ({"cache-control": "max-age=60, no-store"}, None),
        ({"cache-control": "max-age=60, no-cache"}, None),
        ({"cache-control": 'max-age=60, no-cache="set-cookie"'}, None),
        ({"cache-control": "max-age=60, private"}, None),
        ({"cache-control": "max-age=60", "set-cookie": "a=b"}, None),
        ([("cache-control", "public"), ("cache-control", "max-age=10")], 10.0),
        ({"date": "Thu, 26 Nov 2026 10:00:00 GMT", "expires": "Thu, 26 Nov 2026 10:00:30 GMT"}, 30.0),
        ({"date": "Thu, 26 Nov 2026 10:00:00 GMT", "expires": "Thu, 26 Nov 2026 09:00:00 GMT"}, None),
        ({"date": "Thu, 26 Nov 2026 10:00:00 GMT", "expires": "0"}, None),
        ({"expires": "Thu, 26 Nov 2126 10:00:00 GMT"}, None),
    ],
)
def test_response_says_for_how_long(headers: Any, expected: float | None) -> None:
    assert expected == kept_s(answer(headers))


def test_time_that_the_request_took_counts_as_age() -> None:
    assert 9.0 == kept_s(answer(MINUTE), took_s=51.0)
    assert kept_s(answer(MINUTE), took_s=60.0) is None


@pytest.mark.parametrize(("status", "is_kept"), [(200, True), (404, True), (206, False), (500, False), (201, False)])
def test_status_decides_too(status: int, is_kept: bool) -> None:
    assert is_kept == (kept_s(answer(MINUTE, status)) is not None)


@pytest.mark.parametrize(
    ("vary", "sent", "told", "is_kept"),
    [
        ("*", {}, {}, False),
        ("accept-encoding, Accept", {"accept": "text/plain"}, {}, True),
        ("x-tenant", {}, {}, True),
        ("x-tenant", {"x-tenant": "a"}, {}, False),
        ("x-tenant", {"x-tenant": "a"}, {"x-tenant": "a"}, True),
        ("accept, x-tenant", {"x-tenant": "a"}, {"accept": "b"}, False),
    ],
)
def test_response_that_varies_by_what_the_arguments_do_not_show_is_not_kept(
    vary: str, sent: dict[str, str], told: dict[str, str], is_kept: bool
) -> None:
    assert is_kept == (kept_s(answer({**MINUTE, "vary": vary}, sent=sent), told=told) is not None)


@pytest.mark.parametrize(
    ("control", "told", "is_kept"),
    [
        ("max-age=60", {}, False),
        ("max-age=60, public", {}, True),
        ("s-maxage=60", {}, True),
        ("max-age=60", {"authorization": "Bearer x"}, True),
    ],
)
def test_answer_to_hidden_credentials_is_kept_only_if_it_is_public(
    control: str, told: dict[str, str], is_kept: bool
) -> None:
    """RFC 9111, section 3.5. Credentials among the arguments tell calls apart by themselves."""
    response = answer({"cache-control": control}, sent={"authorization": "Bearer x"})
    assert is_kept == (kept_s(response, told=told) is not None)


@pytest.mark.parametrize("value", [None, 7, {"headers": {}}, object()])
def test_what_is_no_response_is_not_kept(value: Any) -> None:
    assert kept_s(value) is None


def test_body_that_nobody_has_read_is_not_kept() -> None:
    stream = httpx.Response(200, headers=MINUTE, stream=httpx.ByteStream(b"later"))
    assert kept_s(stream) is None
    stream.read()
    assert 60.0 == kept_s(stream)


def test_large_bodies_are_not_kept() -> None:
    cache = ResponseCache(max_body_bytes=4)
    assert cache.store("k", answer(MINUTE), {}, began_at=0.0, now=0.0)
    assert not cache.store("k", answer(MINUTE, content=b"12345"), {}, began_at=0.0, now=0.0)


def test_the_one_used_least_recently_leaves() -> None:
    cache = ResponseCache(max_entries=2)
    for key in ("a", "b"):
        cache.store(key, answer(MINUTE), {}, began_at=0.0, now=0.0)
    cache.find("a", 1.0)
    cache.store("c", answer(MINUTE), {}, began_at=1.0, now=1.0)
    assert [True, False, True] == [cache.find(key, 2.0) is not None for key in ("a", "b", "c")]


def test_old_response_stands_in_for_a_failure_as_long_as_it_says() -> None:
    cache = ResponseCache()
    response = answer({"cache-control": "max-age=10, stale-if-error=50"})
    cache.store("k", response, {}, began_at=0.0, now=0.0)
    assert cache.find("k", 10.0) is None
    assert (response,) == cache.find_stale("k", 59.0)
    assert cache.find_stale("k", 60.0) is None
    assert CacheStatistics(entries=1, hits=0, misses=1, stale=1) == cache.statistics()
    assert cache.find("k", 60.0) is None
    assert 0 == cache.statistics().entries


@pytest.mark.parametrize("control", ["must-revalidate", "proxy-revalidate", "s-maxage=10"])
def test_who_must_be_asked_again_is_never_replaced(control: str) -> None:
    cache = ResponseCache()
    response = answer({"cache-control": f"max-age=10, stale-if-error=50, {control}"})
    cache.store("k", response, {}, began_at=0.0, now=0.0)
    assert cache.find_stale("k", 20.0) is None


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, False),
        ({"accept": "a/b"}, False),
        ({"cache-control": "max-age=60"}, False),
        ({"cache-control": "no-cache"}, True),
        ({"cache-control": "No-Store"}, True),
        ({"cache-control": "max-age=0"}, True),
        ({"pragma": "no-cache"}, True),
        ({"range": "bytes=0-1"}, True),
    ],
)
def test_request_may_insist_on_an_answer_of_the_server(told: dict[str, str], expected: bool) -> None:
    assert expected == is_bypassed(told)


@pytest.mark.parametrize("options", [{"max_entries": 0}, {"max_body_bytes": 0}])
def test_limits_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ResponseCache(**options)


def test_cleared_cache_is_empty() -> None:
    cache = ResponseCache()
    cache.store("k", answer(MINUTE), {}, began_at=0.0, now=0.0)
    cache.clear()
    assert cache.find("k", 0.0) is None
