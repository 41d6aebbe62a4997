"""What every program of a benchmark is asked to do, and what it answers.

The same prompts as token ids for all, fresh random ones for each run: no program can answer from a prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ID_RANGE = (1000, 40_000)  # ordinary tokens of every vocabulary that is benchmarked


@dataclass(frozen=True)
class Workload:
    """`num_requests` prompts of `prompt_tokens` tokens, all there at once, `output_tokens` greedy tokens for each."""

    name: str
    num_requests: int
    prompt_tokens: int
    output_tokens: int

    def prompts(self, run: int) -> list[list[int]]:
        """Random prompts of one run."""
        generator = np.random.default_rng([run, self.num_requests, self.prompt_tokens])
        shape = (self.num_requests, self.prompt_tokens)
        prompts: list[list[int]] = generator.integers(*ID_RANGE, shape).tolist()
        return prompts


@dataclass(frozen=True)
class Measured:
    """One run of a workload, in seconds from its start."""

    wall_s: float  # until the last token of the last request
    first_tokens_s: float  # until every request had its first token
    output_tokens: int
    decode_tokens: int  # of them, those that came after first_tokens_s

    @property
    def output_rate(self) -> float:
        """Output tokens a second, end to end."""
        return self.output_tokens / self.wall_s

    @property
    def decode_rate(self) -> float:
        """Output tokens a second while every request was decoding."""
        return self.decode_tokens / (self.wall_s - self.first_tokens_s)

    def prefill_rate(self, prompt_tokens: int) -> float:
        """Prompt tokens a second until the first token."""
        return prompt_tokens / self.first_tokens_s
