"""The chunks of one accepted request, as its consumer sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self

from briton.engine.types import TokenChunk


class RequestStream:
    """An async iterator over what came since the last look: what piles up while the consumer is slow comes together.

    Ends after the final chunk, or raises the error that ended the request once all chunks before it were read. For one
    consumer, in the loop of its Engine. Leaving the `with` block, or `close`, cancels a request that has not ended.
    """

    __slots__ = (
        "_chunks",
        "_error",
        "_on_close",
        "_on_finish",
        "_waiter",
        "ended",
        "finished_sequences",
        "finishing",
        "request_id",
        "timer",
    )

    def __init__(
        self,
        request_id: int,
        on_close: Callable[[RequestStream], None],
        on_finish: Callable[[RequestStream, int | None], None],
    ) -> None:
        self.request_id = request_id
        self.ended = False  # nothing more will be pushed
        self.finishing = False  # its consumer has enough and waits for the final chunk
        self.finished_sequences: set[int] = set()  # of which its consumer has enough
        self.timer: asyncio.TimerHandle | None = None  # of the request's deadline
        self._on_close = on_close
        self._on_finish = on_finish
        self._chunks: list[TokenChunk] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, chunk: TokenChunk) -> None:
        """Add a chunk; the Engine's side."""
        self._chunks.append(chunk)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more will come; the Engine's side."""
        self.ended = True
        self._error = error
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self._wake()

    def finish(self) -> None:
        """The consumer has enough: the request is cancelled, and its final chunk comes as usual. Idempotent."""
        if not self.ended and not self.finishing:
            self.finishing = True
            self._on_finish(self, None)

    def finish_sequence(self, index: int) -> None:
        """The consumer has enough of one sequence, which need not be computed any further. Idempotent."""
        if not self.ended and not self.finishing and index not in self.finished_sequences:
            self.finished_sequences.add(index)
            self._on_finish(self, index)

    def close(self) -> None:
        """The consumer goes away. Idempotent."""
        if not self.ended:
            self._on_close(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[TokenChunk]:
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self.ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        chunks, self._chunks = self._chunks, []
        return chunks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
