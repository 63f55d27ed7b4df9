import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from xds_server.sources import files


@asynccontextmanager
async def watching(path) -> AsyncIterator[asyncio.Queue[None]]:
    """Collect changes; ready once a first change of ours has come through, since the watch has no word for it."""
    queue: asyncio.Queue[None] = asyncio.Queue()

    async def follow() -> None:
        async for change in files.watch([str(path)]):
            queue.put_nowait(change)

    task = asyncio.create_task(follow())
    probe = path / "probe.yaml" if path.is_dir() else path
    while queue.empty():
        probe.write_text("a: 1\n", encoding="utf-8")
        await asyncio.sleep(0.02)
    with suppress(TimeoutError):
        while True:  # what was written meanwhile comes through too, sooner or later
            await asyncio.wait_for(queue.get(), 0.5)
    try:
        yield queue
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("a: 0\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("whole_folder", [True, False])
async def test_a_file_replaced_by_a_rename_is_seen_each_time(rules, whole_folder):
    async with watching(rules.parent if whole_folder else rules) as changes:
        for number in range(3):
            new = rules.with_name(".rules.yaml.swp")
            new.write_text(f"a: {number}\n", encoding="utf-8")
            os.replace(new, rules)
            await asyncio.wait_for(changes.get(), 30)
            await asyncio.sleep(0.1)
            while not changes.empty():
                changes.get_nowait()


async def test_a_file_written_in_place_is_seen(rules):
    async with watching(rules) as changes:
        rules.write_text("a: 2\n", encoding="utf-8")
        await asyncio.wait_for(changes.get(), 30)


async def test_a_file_that_did_not_exist_is_seen(tmp_path, rules):
    async with watching(tmp_path) as changes:
        (tmp_path / "new.yaml").write_text("a: 1\n", encoding="utf-8")
        await asyncio.wait_for(changes.get(), 30)


async def test_neighbours_of_a_lone_file_are_none_of_its_business(rules):
    async with watching(rules) as changes:
        rules.with_name("other.yaml").write_text("a: 1\n", encoding="utf-8")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(changes.get(), 0.3)
