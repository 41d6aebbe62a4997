"""Sampling for a whole step: masks of guides while the model computes, sequences side by side on a few threads.

numpy and llguidance leave other threads alone while they compute. What one sequence needs is touched by one thread at a
time, and what it raises ends its own request.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from briton.local.output import OutputProcessor
from briton.local.plan import ScheduledSequence, StepPlan
from briton.local.sampler import Mask, Sampler, StepLogits, is_plain
from briton.local.verification import Verified, verify

_MAX_THREADS = 8
# Rows of so many logits are sampled side by side. Over shorter ones threads spend their time in handing Python to each
# other: measured, two were no sooner than one.
_WIDE = 200_000


class StepSampler:
    """For the thread of the step loop."""

    def __init__(self, vocab_size: int, stop_token_ids: Sequence[int], num_threads: int) -> None:
        self._vocab_size = vocab_size
        self._num_words = (vocab_size + 31) // 32
        self._num_threads = max(1, min(num_threads, _MAX_THREADS))
        self._sampler = Sampler(vocab_size, stop_token_ids)
        self._pool: ThreadPoolExecutor | None = None  # for the first step that pays
        self._masks: dict[int, Mask | Exception] = {}  # by place in the plan
        self._filling: list[Future[None]] = []

    def prepare(self, plan: StepPlan) -> None:
        """Begin to fill the masks of the tokens that this step samples first: guides know them before the logits are
        there. Nothing may touch the guides until `verify`."""
        self.wait()
        self._masks.clear()
        guided = [place for place, entry in enumerate(plan) if entry.samples and entry.sequence.guide is not None]
        count = min(self._num_threads, len(guided))
        self._filling = [self._threads.submit(self._fill, plan, guided[part::count]) for part in range(count)]

    def wait(self) -> None:
        """Until no thread touches a guide any more."""
        for future in self._filling:
            future.result()
        self._filling = []

    def verify(
        self, plan: StepPlan, due: Sequence[bool], logits: StepLogits, output: OutputProcessor
    ) -> list[Verified | Exception]:
        """The tokens of each entry, none for those that are not `due`. An exception is a fault of ours, and stands
        where it came: the entries before it are as they should be."""
        self.wait()
        verified: list[Verified | Exception] = [Verified([], [])] * len(plan)
        first_rows = np.cumsum([0, *(entry.num_rows if is_due else 0 for entry, is_due in zip(plan, due, strict=True))])
        plain: list[int] = []
        costly: list[int] = []
        for place, is_due in enumerate(due):
            if is_due:
                (plain if is_plain(plan[place].sequence) else costly).append(place)

        def sample(these: Sequence[int]) -> None:
            for place in these:
                mask = self._masks.get(place)
                first_row = int(first_rows[place])
                try:
                    verified[place] = verify(plan[place], logits, first_row, self._sampler, output, mask)
                except Exception as error:
                    verified[place] = error

        count = min(self._num_threads, len(costly)) if self._vocab_size >= _WIDE else 1
        others = [self._threads.submit(sample, costly[part::count]) for part in range(1, count)]
        sample(costly[::count] if count > 1 else costly)
        sample(plain)
        for future in others:
            future.result()
        return verified

    def _fill(self, plan: Sequence[ScheduledSequence], places: Sequence[int]) -> None:
        for place in places:
            guide = plan[place].sequence.guide
            assert guide is not None
            try:
                mask = np.empty(self._num_words, np.int32)
                guide.fill_bitmask(mask)
                self._masks[place] = mask
            except Exception as error:
                self._masks[place] = error

    @property
    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, "briton-sampling")
        return self._pool
