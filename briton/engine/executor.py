"""The Executor protocol, the seam between the engine and whatever runs the model."""

from __future__ import annotations

from typing import Protocol

from briton.engine.step_cost import StepCost
from briton.engine.types import ExecutorStats, GenerationRequest, ModelInfo, StepProgress, TokenChunk


class Executor(Protocol):
    """Runs requests on one model. Knows token ids only: no text, no sockets, no asyncio.

    It has the shape of TensorRT-LLM's executor (enqueue_request, cancel_request, await_responses,
    get_latest_iteration_stats, shutdown). `tests/conformance.py` is its specification.
    """

    info: ModelInfo
    cost: StepCost  # of its steps, learned as it runs

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request without blocking. Its chunks may come before this returns.

        Raises InvalidRequest, Unsupported or QueueFull, and then no chunk ever comes; EngineDead after a failure or
        shutdown.
        """
        ...

    def cancel(self, request_id: int, index: int | None = None) -> None:
        """End a request soon: its final chunk says CANCELLED. Idempotent; unknown and finished ids are fine.

        With an `index`, end that one of its sequences: its last chunk says CANCELLED. An executor that can only end
        whole requests lets it go on until its siblings have ended, too.
        """
        ...

    def await_chunks(self, timeout: float) -> list[TokenChunk]:
        """Wait up to `timeout` seconds for chunks of any request, oldest first; empty when none came.

        For one caller thread. Raises EngineDead when the executor can make no more progress and all chunks were
        delivered.
        """
        ...

    def stats(self) -> ExecutorStats:
        """A snapshot. From any thread, at any time."""
        ...

    def progress(self) -> StepProgress:
        """Where it stands. From any thread, at any time; the watchdog asks it some times a second."""
        ...

    def shutdown(self) -> None:
        """End every open request (CANCELLED) and free the model. Idempotent."""
        ...
