"""The context that an inbound request hands on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from meshlib.model.request import Headers, RequestHead
from meshlib.runtime.context import (
    HANDED_ON,
    MAX_HANDED_ON,
    ContextExecutor,
    InboundContext,
    carry,
    current_request,
    entered,
    handed_on,
    names_to_hand_on,
    remaining_s,
    urgency_of,
    with_handed_on,
)


def test_there_is_no_context_outside_a_request() -> None:
    assert current_request() is None
    assert remaining_s(10.0) is None


def test_remaining_time_counts_down_to_zero() -> None:
    with entered(InboundContext(deadline=12.0)):
        assert 2.0 == remaining_s(10.0)
        assert 0.0 == remaining_s(99.0)
    assert current_request() is None


def test_a_request_without_deadline_has_no_remaining_time() -> None:
    with entered(InboundContext(principal="spiffe://a/b")):
        assert remaining_s(1.0) is None


def test_context_nests() -> None:
    with entered(InboundContext(attempt=1)):
        with entered(InboundContext(attempt=2)):
            assert InboundContext(attempt=2) == current_request()
        assert InboundContext(attempt=1) == current_request()


async def test_tasks_inherit_and_do_not_leak() -> None:
    async def child() -> InboundContext | None:
        return current_request()

    with entered(InboundContext(attempt=3)):
        task = asyncio.create_task(child())
    assert InboundContext(attempt=3) == await task
    assert current_request() is None


def test_carry_takes_the_context_into_a_thread() -> None:
    with ThreadPoolExecutor(1) as pool, entered(InboundContext(attempt=4)):
        assert pool.submit(current_request).result() is None
        assert InboundContext(attempt=4) == pool.submit(carry(current_request)).result()


async def test_context_executor_carries_for_submit_map_and_run_in_executor() -> None:
    seen = InboundContext(attempt=5)
    with ContextExecutor(1) as pool:
        assert pool.submit(current_request).result() is None
        with entered(seen):
            assert seen == pool.submit(current_request).result()
            assert [seen, seen] == list(pool.map(lambda _: current_request(), range(2)))
            assert seen == await asyncio.get_running_loop().run_in_executor(pool, current_request)
        assert pool.submit(current_request).result() is None


@pytest.mark.parametrize(
    ("text", "urgency"),
    [
        (None, 3),
        ("", 3),
        ("u=0", 0),
        ("u=7, i", 7),
        ("i, u=2", 2),
        ("i,u=2;x=1", 2),
        ("u=1, u=5", 5),
        ("u=8", 3),
        ("u=-1", 3),
        ("u=٣", 3),
        ("u", 3),
        ("u=0" + " " * MAX_HANDED_ON, 3),
    ],
)
def test_urgency_is_read_from_the_priority_header(text: str | None, urgency: int) -> None:
    """RFC 9218, section 4.1: 0 to 7, 3 by default; what is malformed means nothing."""
    assert urgency == urgency_of(text)


def incoming(*items: tuple[str, str], names: frozenset[str] = HANDED_ON, **options: str) -> tuple[tuple[str, str], ...]:
    return handed_on(Headers(items), names=names, but=frozenset({"traceparent", "tracestate"}), **options)  # type: ignore[arg-type]


def test_only_named_headers_of_a_sane_size_go_on() -> None:
    kept = ("x-request-id", "a" * MAX_HANDED_ON)
    assert (kept,) == incoming(kept, ("b3", "0" * (MAX_HANDED_ON + 1)), ("x-end-user", "me"), ("cookie", "c=1"))


def test_headers_of_the_propagator_are_left_to_it() -> None:
    """Who has set OTEL_PROPAGATORS=b3 has spans in these headers: they are written anew."""
    assert () == handed_on(Headers([("b3", "0")]), names=HANDED_ON, but=frozenset({"b3"}))


def test_identity_that_goes_on_is_the_one_that_was_proven() -> None:
    names = names_to_hand_on(["X-Forwarded-Client-Cert", "x-end-user"])
    forged = ("x-forwarded-client-cert", "URI=spiffe://a/admin")
    assert (("x-end-user", "me"), ("x-forwarded-client-cert", "URI=spiffe://a/caller")) == incoming(
        forged, ("x-end-user", "me"), names=names, principal="spiffe://a/caller"
    )
    assert () == incoming(forged, names=names)
    assert () == incoming(principal="spiffe://a/caller")


@pytest.mark.parametrize("name", ["Host", "content-length", ":path", "grpc-timeout", "x-envoy-retry-on"])
def test_headers_of_one_request_cannot_be_handed_on(name: str) -> None:
    with pytest.raises(ValueError, match=name.lower()):
        names_to_hand_on([name])


def test_a_string_of_names_is_a_slip() -> None:
    with pytest.raises(ValueError, match="sequence"):
        names_to_hand_on("x-end-user")


def head(*items: tuple[str, str]) -> RequestHead:
    return RequestHead("GET", "checkout", "/", Headers(items))


def test_what_the_application_wrote_itself_has_the_last_word() -> None:
    handed = (("x-request-id", "theirs"), ("priority", "u=1"))
    sent = with_handed_on(head(("x-request-id", "mine")), handed)
    assert (("x-request-id", "mine"), ("priority", "u=1")) == sent.headers.items


def test_a_trace_goes_on_whole_or_not_at_all() -> None:
    handed = (("x-b3-traceid", "1"), ("x-b3-spanid", "2"))
    own = head(("b3", "0"))
    assert own is with_handed_on(own, handed)
    assert handed == with_handed_on(head(), handed).headers.items
