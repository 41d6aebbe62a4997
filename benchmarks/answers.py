"""Prompts answered by our executor in-process, to their end: what came, when, and what drafting did for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from prompt_set import Prompt

from briton.config.lookahead import LookaheadConfig
from briton.engine.executor import Executor
from briton.engine.types import GenerationRequest, SamplingParams, Speculation
from briton.guidance.guide import Guide

OFF = LookaheadConfig(1, 1, 0)
_TIMEOUT_S = 120.0


@dataclass
class Answer:
    """The greedy answer to one prompt. Times are in seconds."""

    prompt: Prompt
    submitted: float
    first: float = 0.0  # when the first token came, and with it
    num_first: int = 0  # so many
    last: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    speculation: Speculation = field(default_factory=Speculation)

    @property
    def decode_s(self) -> float:
        """First token to last."""
        return self.last - self.first

    @property
    def decode_tokens(self) -> int:
        """Those that came in that time."""
        return len(self.token_ids) - self.num_first


class Answers(NamedTuple):
    """All answers of one run, in the order of their prompts."""

    answers: list[Answer]
    wall_s: float

    @property
    def output_rate(self) -> float:
        """Output tokens a second, end to end."""
        return sum(len(answer.token_ids) for answer in self.answers) / self.wall_s


class Asker:
    """Sends prompts to an executor, which it owns. No run finds another's prompts in the prefix cache."""

    def __init__(self, executor: Executor, guides: Mapping[str, Guide]) -> None:
        """`guides` by schema."""
        self.executor = executor
        self._guides = guides
        self._ids = count()

    def ask(
        self,
        prompts: Sequence[Prompt],
        *,
        concurrency: int = 1,
        lookahead: LookaheadConfig | None = None,
        guided: bool = False,
        max_tokens: int | None = None,
    ) -> Answers:
        """Keep `concurrency` requests open until all are answered. `lookahead` None: as the engine is configured;
        `guided`: under the prompts' own schemas; `max_tokens`: at most so many, of each."""
        salt = str(next(self._ids))
        waiting = list(reversed(prompts))
        open_requests: dict[int, Answer] = {}
        answers: list[Answer] = []
        started = time.perf_counter()
        while waiting or open_requests:
            while waiting and len(open_requests) < concurrency:
                prompt = waiting.pop()
                request = GenerationRequest(
                    next(self._ids),
                    prompt.token_ids,
                    SamplingParams(max_tokens=min(prompt.max_tokens, max_tokens or prompt.max_tokens), temperature=0.0),
                    guide=self._guides[prompt.schema] if guided and prompt.schema is not None else None,
                    cache_salt=salt,
                    lookahead=lookahead,
                )
                answers.append(Answer(prompt, time.perf_counter()))
                open_requests[request.request_id] = answers[-1]
                self.executor.submit(request)
            chunks = self.executor.await_chunks(_TIMEOUT_S)
            now = time.perf_counter()
            if not chunks:
                raise TimeoutError(f"the executor gave nothing for {_TIMEOUT_S:.0f} s")
            for chunk in chunks:
                if chunk.error is not None:
                    raise chunk.error
                answer = open_requests[chunk.request_id]
                answer.last = now
                if not answer.token_ids:
                    answer.first, answer.num_first = now, len(chunk.token_ids)
                answer.token_ids += chunk.token_ids
                if chunk.is_final:
                    answer.speculation = chunk.speculation or Speculation()
                    del open_requests[chunk.request_id]
        return Answers(answers, time.perf_counter() - started)

    def gap(self, answer: Answer, other: Answer) -> float:
        """Where two answers to a prompt begin to differ: between the log-probabilities of their tokens there."""
        pairs = zip(answer.token_ids, other.token_ids, strict=False)
        position = next(i for i, (a, b) in enumerate(pairs) if a != b)
        prompt = answer.prompt.token_ids + tuple(answer.token_ids[:position])
        return abs(self._logprob(prompt, answer.token_ids[position]) - self._logprob(prompt, other.token_ids[position]))

    def _logprob(self, prompt: tuple[int, ...], token_id: int) -> float:
        """Of a token after a prompt: the token is forced, and its log-probability is the model's own all the same."""
        sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, logit_bias={token_id: 100.0})
        self.executor.submit(GenerationRequest(next(self._ids), prompt, sampling, lookahead=OFF))
        logprob = None
        finished = False
        while not finished:
            for chunk in self.executor.await_chunks(_TIMEOUT_S):
                for each in chunk.logprobs:
                    assert each.token_id == token_id
                    logprob = each.logprob
                finished |= chunk.is_final
        assert logprob is not None
        return logprob
