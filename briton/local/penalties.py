"""Repetition, presence and frequency penalties: the token counts of one sequence, and their effect on its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from briton.engine.types import SamplingParams


class PenaltyState:
    """Which tokens a sequence has seen. Costs 5 bytes a vocabulary entry, so it is made only for sequences with a
    penalty."""

    def __init__(self, token_ids: Sequence[int], num_prompt_tokens: int, vocab_size: int) -> None:
        self._seen = np.zeros(vocab_size, np.bool_)  # prompt and output
        self._seen[np.asarray(token_ids, np.int64)] = True
        output = np.asarray(token_ids[num_prompt_tokens:], np.int64)
        self._output_counts = np.bincount(output, minlength=vocab_size).astype(np.float32)

    @staticmethod
    def wanted(sampling: SamplingParams) -> bool:
        """Whether any penalty is on."""
        return sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0

    def add(self, token_id: int) -> None:
        """Count one output token."""
        self._seen[token_id] = True
        self._output_counts[token_id] += 1

    def apply(self, logits: NDArray[np.float32], sampling: SamplingParams) -> None:
        """Edit a row [vocab] in place. Repetition: Keskar et al. 2019 (CTRL); presence and frequency: as OpenAI
        defines them."""
        if sampling.repetition_penalty != 1:
            factor = np.float32(sampling.repetition_penalty)
            seen = logits[self._seen]
            logits[self._seen] = np.where(seen > 0, seen / factor, seen * factor)
        if sampling.presence_penalty:
            logits -= np.float32(sampling.presence_penalty) * (self._output_counts > 0)
        if sampling.frequency_penalty:
            logits -= np.float32(sampling.frequency_penalty) * self._output_counts
