"""A client that does not read holds its call, and what it was going to be sent, only for so long."""

from __future__ import annotations

import asyncio

import pytest

from briton.rpc.slow_readers import SlowReaders


async def test_a_write_that_takes_too_long_is_cancelled() -> None:
    readers = SlowReaders(write_timeout_s=0.05, look_s=0.01)

    async def stuck() -> None:
        with readers.writing():
            await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.ensure_future(stuck()), 2)
    readers.close()


async def test_who_reads_is_left_alone_however_long_the_call() -> None:
    readers = SlowReaders(write_timeout_s=0.05, look_s=0.01)

    async def reads() -> str:
        for _ in range(20):
            with readers.writing():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
        return "read"

    assert await reads() == "read"
    readers.close()
