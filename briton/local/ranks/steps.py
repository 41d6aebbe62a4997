"""The two sides of a step that ranks compute together: rank 0, which decides what, and those that follow."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from briton.local.plan import Forward, StepInputs
from briton.local.ranks.step_buffer import BLOCK, await_step, broadcast_step, broadcast_stop
from briton.model.sharding import Shard
from briton.ranks.communicator import Communicator
from briton.ranks.progress import Phase


class LeadingForward:
    """Rank 0's forward function: the step to all ranks, its own part of it, and everybody's logits."""

    def __init__(self, communicator: Communicator, forward: Forward, shards: Sequence[Shard]) -> None:
        """`forward` computes this rank's logits [rows, its vocab]."""
        self._communicator = communicator
        self._forward = forward
        self._spans = [shard.vocab for shard in shards]
        self._logits = np.empty((0, self._spans[-1].end), np.float32)
        self._parts = [np.empty((0, span.size), np.float32) for span in self._spans[1:]]

    def __call__(self, inputs: StepInputs) -> NDArray[np.float32]:
        """Logits [rows, vocab], valid until the next call."""
        progress, counters = self._communicator.progress, self._communicator.counters
        started = time.perf_counter()
        progress.enter(Phase.WAITING)
        broadcast_step(self._communicator, inputs)
        counters.broadcast_s += time.perf_counter() - started
        progress.begin_step(len(inputs.token_ids))
        progress.enter(Phase.COMPUTING)
        own = self._forward(inputs)
        progress.enter(Phase.WAITING)
        num_rows = len(own)
        if num_rows > len(self._logits):
            self._logits = np.empty((num_rows, self._logits.shape[1]), np.float32)
            self._parts = [np.empty((num_rows, span.size), np.float32) for span in self._spans[1:]]
        logits = self._logits[:num_rows]
        parts = [part[:num_rows] for part in self._parts]
        if num_rows:
            self._communicator.receive_logits(parts)
            for span, part in zip(self._spans, [own, *parts], strict=True):
                logits[:, span.begin : span.end] = part
        progress.enter(Phase.IDLE)
        counters.step_s += time.perf_counter() - started
        return logits

    def close(self) -> None:
        """Let the other ranks go. No call may follow."""
        broadcast_stop(self._communicator)


def follow(communicator: Communicator, forward: Forward) -> None:
    """Compute what rank 0 decides, until it says that nothing follows."""
    progress, counters = communicator.progress, communicator.counters
    buffer = np.empty(BLOCK, np.int32)
    while True:
        progress.enter(Phase.IDLE)
        inputs = await_step(communicator, buffer)
        if inputs is None:
            return
        started = time.perf_counter()
        progress.begin_step(len(inputs.token_ids))
        progress.enter(Phase.COMPUTING)
        logits = forward(inputs)
        progress.enter(Phase.WAITING)
        if len(logits):
            communicator.send_logits(logits)
        counters.step_s += time.perf_counter() - started
