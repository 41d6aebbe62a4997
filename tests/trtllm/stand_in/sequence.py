"""A request inside the stand-in's executor (LlmRequest)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from tests.trtllm.stand_in.model import Decoder, Row

BLOCK = 16  # tokens


@dataclass(eq=False)
class Group:
    """What the n sequences of a request share."""

    request: Any
    library_id: int
    size: int
    arrived: float = field(default_factory=time.monotonic)
    finished: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Sequence:
    """One of them. The first has the request's id, the others ids of their own."""

    group: Group
    own_id: int
    index: int
    max_new_tokens: int
    decoder: Decoder
    num_computed: int = 0  # of the prompt
    num_blocks: int = 0
    reused_blocks: int = 0
    output: list[int] = field(default_factory=list)
    logits: list[Row] = field(default_factory=list)  # of the output's tokens
    num_sent: int = 0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    reason: str = "NOT_FINISHED"
    is_finished: bool = False
    scheduled_at: float = 0.0
    first_token_at: float = 0.0

    @property
    def request(self) -> Any:
        """The library's Request."""
        return self.group.request

    @property
    def prompt(self) -> list[int]:
        """Its tokens."""
        tokens: list[int] = self.request.input_token_ids
        return tokens

    @property
    def in_context(self) -> bool:
        """The prompt is not computed yet."""
        return self.num_computed < len(self.prompt)

    @property
    def blocks_needed(self) -> int:
        """At its longest."""
        return -(-(len(self.prompt) + self.max_new_tokens) // BLOCK)

    def finish(self, reason: str) -> None:
        """No more tokens."""
        self.reason, self.is_finished = reason, True

    def append(self, token_id: int, row: Row) -> None:
        """Add a sampled token, and see whether it is the last. An end_id is no part of the output."""
        if token_id == self.request.end_id:
            self.finish("END_ID")
            return
        self.output.append(token_id)
        self.logits.append(row)
        if any(self.output[-len(word) :] == word for word in self.request.stop_words or []):
            self.finish("STOP_WORDS")
        elif len(self.output) >= self.max_new_tokens:
            self.finish("LENGTH")

    def clear_output(self) -> None:
        """What cancelling and timing out do."""
        self.output, self.logits = [], []

    def metrics(self, api: Any) -> Any:
        """RequestPerfMetrics."""
        now = time.monotonic()
        times = (self.group.arrived, self.scheduled_at, self.first_token_at, now if self.output else 0.0)
        names = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
        return api.RequestPerfMetrics(
            timing_metrics=api.TimingMetrics(
                **{name: timedelta(seconds=t) for name, t in zip(names, times, strict=True)}
            ),
            kv_cache_metrics=api.KvCacheMetrics(num_reused_blocks=self.reused_blocks),
            speculative_decoding=api.SpeculativeDecodingMetrics(
                total_draft_tokens=self.num_draft_tokens, total_accepted_draft_tokens=self.num_accepted_tokens
            ),
        )
