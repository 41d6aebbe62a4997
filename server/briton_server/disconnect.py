"""A client that goes away: raced against the work for it, never polled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.types import Receive


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[anyio.CancelScope]:
    """Cancel the block when the client disconnects; then `scope.cancelled_caught` is true after it.

    For a request whose body has been read: the next message is the disconnect.
    """
    with anyio.CancelScope() as scope:
        watcher = asyncio.create_task(_wait(receive, scope))
        try:
            yield scope
        finally:
            watcher.cancel()


async def _wait(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
