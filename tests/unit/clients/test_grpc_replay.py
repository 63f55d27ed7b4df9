"""Request streams that can be sent again."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from meshlib.clients.grpc_replay import LIMIT_BYTES, LIMIT_MESSAGES, AioReplay, Replay


def test_the_next_attempt_reads_from_the_first_message() -> None:
    replay = Replay(iter(["a", "b", "c"]), str.encode)
    first = replay.reader()
    assert [b"a", b"b"] == [next(first), next(first)]
    assert [b"a", b"b", b"c"] == list(replay.reader())


def test_the_reader_before_ends_with_the_next_one() -> None:
    replay = Replay(iter([b"a", b"b"]), None)
    first = replay.reader()
    next(first)
    replay.reader()
    assert [] == list(first)


def test_each_message_is_asked_for_once() -> None:
    asked = []

    def source() -> Iterator[bytes]:
        for number in range(3):
            asked.append(number)
            yield b"%d" % number

    replay = Replay(source(), None)
    assert list(replay.reader()) == list(replay.reader())
    assert [0, 1, 2] == asked


@pytest.mark.parametrize("messages", [[b"x" * (LIMIT_BYTES + 1)], [b""] * (LIMIT_MESSAGES + 1)])
def test_too_much_to_keep_commits(messages: list[bytes]) -> None:
    replay = Replay(iter(messages), None)
    assert messages == list(replay.reader())
    assert replay.is_committed


def test_a_committed_stream_keeps_nothing_and_goes_on() -> None:
    replay = Replay(iter([b"a", b"b", b"c"]), None)
    reader = replay.reader()
    next(reader)
    replay.commit()
    assert [b"b", b"c"] == list(reader)
    assert 0 == len(replay._kept.messages)


def test_an_error_of_the_callers_iterator_is_raised_to_every_reader() -> None:
    def source() -> Iterator[bytes]:
        yield b"a"
        raise ValueError("broken")

    replay = Replay(source(), None)
    for _ in range(2):
        reader = replay.reader()
        assert b"a" == next(reader)
        with pytest.raises(ValueError, match="broken"):
            next(reader)


async def messages(*items: bytes) -> AsyncIterator[bytes]:
    for item in items:
        yield item


async def test_aio_the_next_attempt_reads_from_the_first_message() -> None:
    replay = AioReplay(messages(b"a", b"b", b"c"), None)
    assert b"a" == await anext(replay.reader())
    assert [b"a", b"b", b"c"] == [item async for item in replay.reader()]
    replay.close()


async def test_aio_messages_are_asked_for_when_they_are_wanted() -> None:
    asked = []

    async def source() -> AsyncIterator[bytes]:
        for number in range(5):
            asked.append(number)
            yield b"%d" % number

    replay = AioReplay(source(), None)
    reader = replay.reader()
    await anext(reader)
    for _ in range(5):
        await asyncio.sleep(0)
    assert [0] == asked
    await anext(reader)
    assert [0, 1] == asked
    replay.close()


async def test_aio_an_abandoned_read_does_not_reach_the_callers_iterator() -> None:
    """gRPC cancels the task that reads requests when an attempt fails."""
    go_on = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"a"
        await go_on.wait()
        yield b"b"

    replay = AioReplay(source(), None)
    first = replay.reader()
    await anext(first)
    waiting = asyncio.ensure_future(anext(first))
    await asyncio.sleep(0)
    waiting.cancel()
    second = replay.reader()
    go_on.set()
    assert [b"a", b"b"] == [item async for item in second]
    replay.close()


async def test_aio_writing_waits_until_the_message_is_taken() -> None:
    replay = AioReplay(None, None)
    writing = asyncio.ensure_future(replay.put(b"a"))
    await asyncio.sleep(0)
    assert not writing.done()
    reader = replay.reader()
    assert b"a" == await anext(reader)
    await writing
    replay.finish()
    assert [] == [item async for item in reader]
    with pytest.raises(asyncio.InvalidStateError):
        await replay.put(b"b")


async def test_aio_closing_ends_a_wait_in_the_callers_iterator() -> None:
    waits, ended = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"a"
        try:
            waits.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    replay = AioReplay(source(), None)
    reader = replay.reader()
    await anext(reader)
    waiting = asyncio.ensure_future(anext(reader, b"end"))
    await waits.wait()
    replay.close()
    await ended.wait()
    assert b"end" == await waiting
