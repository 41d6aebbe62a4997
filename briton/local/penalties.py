"""Repetition, presence and frequency penalties: the token counts of one sequence, and their effect on its logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from briton.engine.types import SamplingParams


class PenaltyState:
    """Which tokens a sequence has seen, as a list of them: what it costs follows the text, not the vocabulary."""

    def __init__(self, token_ids: Sequence[int], num_prompt_tokens: int) -> None:
        seen, places = np.unique(np.asarray(token_ids, np.int64), return_inverse=True)
        self._num_seen = len(seen)
        self._seen = seen  # of prompt and output, in no order; longer than it is full
        self._counts = np.bincount(places[num_prompt_tokens:], minlength=len(seen)).astype(np.float32)  # in the output
        self._place = {token_id: place for place, token_id in enumerate(seen.tolist())}

    @staticmethod
    def wanted(sampling: SamplingParams) -> bool:
        """Whether any penalty is on."""
        return sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """Tokens of prompt and output, each once."""
        return self._seen[: self._num_seen]

    def add(self, token_id: int) -> None:
        """Count one output token."""
        place = self._place.setdefault(token_id, self._num_seen)
        if place == self._num_seen:
            if place == len(self._seen):
                room = max(64, place)
                self._seen = np.concatenate([self._seen, np.zeros(room, np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(room, np.float32)])
            self._seen[place] = token_id
            self._num_seen += 1
        self._counts[place] += 1

    def apply(self, logits: NDArray[np.float32], sampling: SamplingParams) -> None:
        """Edit a row [vocab] in place, at `token_ids` alone. Repetition: Keskar et al. 2019 (CTRL); presence and
        frequency: as OpenAI defines them."""
        seen, counts = self.token_ids, self._counts[: self._num_seen]
        values = logits[seen]
        if sampling.repetition_penalty != 1:
            factor = np.float32(sampling.repetition_penalty)
            values = np.where(values > 0, values / factor, values * factor)
        if sampling.presence_penalty:
            values -= np.float32(sampling.presence_penalty) * (counts > 0)
        if sampling.frequency_penalty:
            values -= np.float32(sampling.frequency_penalty) * counts
        logits[seen] = values
