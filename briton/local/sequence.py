"""A sequence: the tokens of one output of one request, and how far the model has come with them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from briton.engine.types import (
    FinishReason,
    GenerationRequest,
    RequestTimings,
    SamplingParams,
    Speculation,
)
from briton.guidance.guide import Guide
from briton.local.bad_words import BadWords
from briton.local.penalties import PenaltyState


@dataclass(eq=False, slots=True)
class SequenceState:
    """Invariant: num_computed_tokens <= num_tokens, and the block table covers every computed token."""

    request_state: RequestState
    index: int  # which of the request's n
    token_ids: list[int]  # prompt and output; empty until the sequence may start
    rng: np.random.Generator
    guide: Guide | None
    num_computed_tokens: int = 0  # tokens whose keys and values are in the cache
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # chained hashes of full blocks of tokens, once asked for
    num_committed_blocks: int = 0  # of block_table, from its start: computed, and known for reuse
    num_charged_tokens: int = 0  # of the prompt, to its caller: what is computed anew is charged once
    started_at: float | None = None  # it runs since then, and how much its caller was served till then
    served_at_start: float = 0.0
    finish_reason: FinishReason | None = None
    penalties: PenaltyState | None = None  # the sampler's

    @property
    def request(self) -> GenerationRequest:
        """What was asked for."""
        return self.request_state.request

    @property
    def sampling(self) -> SamplingParams:
        """The request's sampling parameters."""
        return self.request.sampling

    @property
    def num_tokens(self) -> int:
        """Prompt and output."""
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt alone."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output alone."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_num_tokens(self) -> int:
        """The longest this sequence can become."""
        return self.num_prompt_tokens + self.sampling.max_tokens


@dataclass(eq=False, slots=True)
class RequestState:
    """An accepted request and its sequences. The first sequence computes the prompt; the others start when it has,
    and share its blocks."""

    request: GenerationRequest
    bad_words: BadWords
    sequences: list[SequenceState] = field(default_factory=list)
    cancel_first: bool = False  # the first sequence ends when it has computed the prompt for its siblings
    has_ended: bool = False  # before its time or not: nothing is computed for it any more
    cached_tokens: int = 0
    num_steps: int = 0  # of all sequences, those in which they were sampled
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    submitted_at: float = field(default_factory=time.monotonic)
    scheduled_at: float | None = None
    first_token_at: float | None = None

    @classmethod
    def create(cls, request: GenerationRequest) -> RequestState:
        """Make the n sequences. Each has a random stream of its own, from (seed, index): what else is in a batch
        cannot matter."""
        self = cls(request, BadWords(request.sampling.bad_words))
        seed = request.sampling.seed
        entropy = np.random.SeedSequence().entropy if seed is None else seed % 2**64
        for index in range(request.sampling.n):
            stream = np.random.SeedSequence(entropy, spawn_key=(index,))
            self.sequences.append(
                SequenceState(
                    self,
                    index,
                    list(request.prompt_token_ids) if index == 0 else [],  # n copies while it waits would be many
                    np.random.Generator(np.random.Philox(stream)),
                    request.guide.copy() if request.guide is not None else None,
                )
            )
        return self

    @property
    def is_finished(self) -> bool:
        """All sequences have ended."""
        return all(s.finish_reason is not None for s in self.sequences)

    def speculation(self) -> Speculation:
        """What drafting has done for it."""
        return Speculation(self.num_steps, self.num_draft_tokens, self.num_accepted_tokens)

    def timings(self) -> RequestTimings:
        """Where the time went, now that the request has ended."""
        now = time.monotonic()
        scheduled = now if self.scheduled_at is None else self.scheduled_at
        first = now if self.first_token_at is None else self.first_token_at
        return RequestTimings(scheduled - self.submitted_at, max(0.0, first - scheduled), max(0.0, now - first))
