"""Waiting for whichever comes first: something happens, or its time is up."""

import asyncio


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Return when the event is set or after `timeout_s` seconds; None waits without limit."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
