"""A Guide that a test writes down: the set of tokens allowed at each position, then the end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from briton.guidance.vocabulary import Vocabulary


class ScriptedGuide:
    """Allows `steps[i]` at position i; after the last step nothing but the stop ids. An empty step is a dead end."""

    vocabulary = Vocabulary([], vocab_size=1 << 16, stop_token_ids=(), encode=lambda text: [])  # no token is text

    def __init__(self, steps: Sequence[Collection[int]], stop_token_ids: Sequence[int]) -> None:
        self._steps = steps
        self._stop_token_ids = stop_token_ids
        self._position = 0
        self._stopped = False

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """See `briton.guidance.guide.Guide`."""
        row[:] = 0
        words = row.view(np.uint32)
        for token_id in self._allowed():
            words[token_id // 32] |= np.uint32(1 << (token_id % 32))

    def advance(self, token_ids: Sequence[int]) -> bool:
        """See `briton.guidance.guide.Guide`."""
        before = (self._position, self._stopped)
        for token_id in token_ids:
            if token_id not in self._allowed():
                self._position, self._stopped = before
                return False
            if self._position == len(self._steps):
                self._stopped = True
            else:
                self._position += 1
        return True

    def rollback(self, n: int) -> None:
        """See `briton.guidance.guide.Guide`."""
        if n and self._stopped:
            self._stopped = False
            n -= 1
        self._position -= n

    def is_terminated(self) -> bool:
        """See `briton.guidance.guide.Guide`."""
        return self._stopped or self._position == len(self._steps)

    def forced_tokens(self) -> list[int]:
        """See `briton.guidance.guide.Guide`."""
        forced: list[int] = []
        for step in self._steps[self._position :]:
            if len(step) != 1:
                break
            forced.extend(step)
        return forced

    def copy(self) -> Self:
        """See `briton.guidance.guide.Guide`."""
        twin = type(self)(self._steps, self._stop_token_ids)
        twin._position, twin._stopped = self._position, self._stopped
        return twin

    def _allowed(self) -> Collection[int]:
        if self._stopped:
            return ()
        return self._steps[self._position] if self._position < len(self._steps) else self._stop_token_ids
