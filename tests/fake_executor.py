"""An Executor without a model: deterministic tokens, one step for each `await_chunks`, and every failure on demand.

It keeps the promises of `tests/conformance.py`. Of distributions it knows little: temperature above 0 picks among the
four best candidates, and penalties, top_p and min_p change nothing.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from briton.config.lookahead import LookaheadConfig
from briton.engine.step_cost import StepCost
from briton.engine.types import (
    ExecutorStats,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    RequestTimings,
    SamplingParams,
    Speculation,
    StepProgress,
    TokenChunk,
    TokenLogprob,
)
from briton.engine.validation import check_request
from briton.errors import EngineDead, QueueFull
from briton.guidance.guide import Guide

# Token id i below 256 is the byte i (see `fake_engine.write_tokenizer`), so a test writes token ids as list(b"hello").
END_OF_TEXT, IM_START, IM_END = 256, 257, 258
LETTERS = tuple(range(ord("a"), ord("z") + 1))

FAKE_INFO = ModelInfo(
    model_name="fake",
    executor="fake",
    architecture="fake",
    vocab_size=264,  # five holes at the end, as real models have
    max_seq_len=2048,
    max_batch_size=16,
    max_num_tokens=4096,
    max_queue_size=64,
    kv_cache_tokens=32768,
    kv_block_size=32,
    stop_token_ids=(END_OF_TEXT, IM_END),
    default_sampling=SamplingParams(temperature=0.0),
    weights_dtype="none",
    kv_cache_dtype="none",
)
SPECULATING_INFO = replace(
    FAKE_INFO, lookahead=LookaheadConfig(4, 3, 2), enable_b10_lookahead=True, max_draft_tokens=11
)

Script = Callable[[GenerationRequest, int], "Sequence[int] | Exception | None"]


@dataclass
class _Sequence:
    """One of a request's n sequences."""

    index: int
    origin: int  # what its tokens are drawn from: prompt, index and seed
    script: Sequence[int] | None
    guide: Guide | None
    output: list[int] = field(default_factory=list)
    held: list[TokenLogprob] = field(default_factory=list)  # of tokens not sent yet
    num_sent: int = 0
    finished: bool = False


@dataclass
class _Open:
    """A request between submit and its final chunk."""

    request: GenerationRequest
    stop_ids: frozenset[int]
    submitted: float
    started: float = 0.0
    first_token: float = 0.0
    blocks: int = 0
    cached_tokens: int = 0
    error: Exception | None = None  # scripted: ends the request at its first step
    sequences: list[_Sequence] = field(default_factory=list)
    speculates: bool = False
    num_steps: int = 0  # as the fields of Speculation
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0


class FakeExecutor:
    """Deterministic and scripted; thread-safe like a real one.

    `script(request, index)` gives the tokens of a sequence, after which it stops with the model's first stop id; an
    Exception ends the request with ERROR; None (or no script) draws letters from a hash of the prompt. `step_s` is the
    time of a step and `tokens_per_step` what it gives to each sequence: where the engine speculates
    (`info.lookahead`), and the request does not turn it off, those after the first are accepted of as many draft tokens
    as `info` and `max_tokens` allow; else each counts as a sampling of its own.
    """

    def __init__(
        self,
        info: ModelInfo = FAKE_INFO,
        *,
        step_s: float = 0.0,
        tokens_per_step: int = 1,
        script: Script | None = None,
        alphabet: Sequence[int] = LETTERS,
    ) -> None:
        self.info = info
        self.cost = StepCost()
        self.step_s = step_s
        self.tokens_per_step = tokens_per_step
        self.script = script
        self.alphabet = tuple(alphabet)
        self.submitted: list[GenerationRequest] = []  # every accepted request, for a test to look at
        self.cancelled: list[int] = []  # every id that `cancel` ended
        self._condition = threading.Condition()
        self._waiting: list[_Open] = []
        self._running: dict[int, _Open] = {}
        self._chunks: list[TokenChunk] = []
        self._prefixes: dict[tuple[str, tuple[int, ...]], None] = {}
        self._blocks_total = info.kv_cache_tokens // info.kv_block_size
        self._counters: Counter[str] = Counter()
        self._step_s = 0.0
        self._seeds = 0
        self._dead: str | None = None
        self._hung = False
        self._unanswered: list[tuple[int, int | None]] = []  # cancels that came while it hung

    # What a test does to it.

    def fail(self, reason: str = "the fake executor was told to fail") -> None:
        """Die: `await_chunks` raises EngineDead, open requests never get a final chunk from here."""
        with self._condition:
            self._dead = reason
            self._waiting.clear()
            self._running.clear()
            self._chunks.clear()
            self._condition.notify_all()

    def hang(self, hung: bool = True) -> None:
        """Make no step until called with False; what is cancelled meanwhile ends then."""
        with self._condition:
            self._hung = hung
            unanswered, self._unanswered = self._unanswered, []
        for request_id, index in () if hung else unanswered:
            self.cancel(request_id, index)
        with self._condition:
            self._condition.notify_all()

    def open_requests(self) -> list[int]:
        """Ids of requests without a final chunk."""
        with self._condition:
            return [*self._running, *(entry.request.request_id for entry in self._waiting)]

    # The protocol.

    def submit(self, request: GenerationRequest) -> None:
        """See `briton.engine.executor.Executor`."""
        request = check_request(request, self.info)
        with self._condition:
            if self._dead is not None:
                raise EngineDead(self._dead)
            if len(self._waiting) >= self.info.max_queue_size:
                raise QueueFull(f"the queue is full: {len(self._waiting)} requests are waiting")
            sampling = request.sampling
            own = () if sampling.ignore_eos else self.info.stop_token_ids
            entry = _Open(request, frozenset((*own, *sampling.stop_token_ids)), time.monotonic())
            turned_off = request.lookahead is not None and request.lookahead.is_off
            entry.speculates = self.info.lookahead is not None and not turned_off
            self._seeds += 1
            seed = sampling.seed if sampling.seed is not None else -self._seeds
            for index in range(sampling.n):
                script = self.script(request, index) if self.script else None
                if isinstance(script, Exception):
                    entry.error, script = script, None
                greedy = sampling.temperature == 0 or sampling.top_k == 1
                origin = hash((request.prompt_token_ids, 0 if greedy else (seed, index)))
                guide = request.guide.copy() if request.guide is not None else None
                entry.sequences.append(_Sequence(index, origin, script, guide))
            self.submitted.append(request)
            self._waiting.append(entry)
            self._waiting.sort(key=lambda waiting: -waiting.request.priority)  # stable: equals stay in order
            self._counters["num_requests"] += 1
            self._admit()
            self._condition.notify_all()

    def cancel(self, request_id: int, index: int | None = None) -> None:
        """See `briton.engine.executor.Executor`."""
        with self._condition:
            entry = self._running.get(request_id)
            if entry is None:
                entry = next((waiting for waiting in self._waiting if waiting.request.request_id == request_id), None)
            if entry is None:
                return
            if self._hung:
                self._unanswered.append((request_id, index))
                return
            left = [sequence for sequence in entry.sequences if not sequence.finished]
            if index is not None and [sequence.index for sequence in left] != [index]:
                self._end_sequence(entry, index)
                return
            self.cancelled.append(request_id)
            self._end(entry, FinishReason.CANCELLED)
            self._condition.notify_all()

    def await_chunks(self, timeout: float) -> list[TokenChunk]:
        """See `briton.engine.executor.Executor`."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while not self._chunks:
                if self._dead is not None:
                    raise EngineDead(self._dead)
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return []
                if self._hung or not (self._running or self._waiting):
                    self._condition.wait(remaining)
                else:
                    self._step()
            chunks, self._chunks = self._chunks, []
            return chunks

    def stats(self) -> ExecutorStats:
        """See `briton.engine.executor.Executor`."""
        with self._condition:
            used = sum(entry.blocks for entry in self._running.values())
            counted: dict[str, Any] = dict(self._counters)
            running = sum(not s.finished for entry in self._running.values() for s in entry.sequences)
            return ExecutorStats(
                num_running=running,
                num_waiting=len(self._waiting),
                kv_blocks_total=self._blocks_total,
                kv_blocks_used=used,
                kv_blocks_cached=min(len(self._prefixes), self._blocks_total - used),
                step_s=self._step_s,
                **counted,
            )

    def progress(self) -> StepProgress:
        """See `briton.engine.executor.Executor`."""
        return StepProgress(self._counters["num_steps"], self.step_s)

    def shutdown(self) -> None:
        """See `briton.engine.executor.Executor`."""
        with self._condition:
            for entry in [*self._running.values(), *self._waiting]:
                self._end(entry, FinishReason.CANCELLED)
            self._dead = self._dead or "the executor was shut down"
            self._condition.notify_all()

    # One step.

    def _step(self) -> None:
        started = time.monotonic()
        end = started + self.step_s
        while (left := end - time.monotonic()) > 0:  # submit, cancel and shutdown stay possible meanwhile
            self._condition.wait(left)
        self._admit()
        for entry in list(self._running.values()):
            self._grow(entry)
        self._admit()
        self._counters["num_steps"] += 1
        self._step_s += time.monotonic() - started

    def _admit(self) -> None:
        """Start waiting requests, in order, while the batch and the cache have room for all their sequences."""
        sequences = sum(len(entry.sequences) for entry in self._running.values())
        used = sum(entry.blocks for entry in self._running.values())
        while self._waiting:
            entry = self._waiting[0]
            sampling = entry.request.sampling
            tokens = len(entry.request.prompt_token_ids) + sampling.max_tokens
            total = self._blocks_total
            entry.blocks = min(total, -(-tokens // self.info.kv_block_size) * sampling.n)
            sequences += sampling.n
            used += entry.blocks
            if sequences > self.info.max_batch_size or used > total:
                return
            del self._waiting[0]
            entry.started = time.monotonic()
            entry.cached_tokens = self._reuse(entry.request)
            self._running[entry.request.request_id] = entry
            num_prompt = len(entry.request.prompt_token_ids)
            self._counters["num_prompt_tokens"] += num_prompt - entry.cached_tokens
            self._counters["num_cached_tokens"] += entry.cached_tokens

    def _reuse(self, request: GenerationRequest) -> int:
        """Whole blocks of the prompt seen before under the same salt, never all of it; remembers them for the next."""
        ids, block = request.prompt_token_ids, self.info.kv_block_size
        cached = 0
        for end in range(block, len(ids) + 1, block):
            key = (request.cache_salt, ids[:end])
            if key in self._prefixes and end < len(ids):
                cached = end
            self._prefixes[key] = None
        while len(self._prefixes) > self._blocks_total:
            del self._prefixes[next(iter(self._prefixes))]
        return cached

    def _grow(self, entry: _Open) -> None:
        """Give each unfinished sequence of a request its tokens of this step."""
        if entry.error is not None:
            self._end(entry, FinishReason.ERROR, entry.error)
            return
        if not entry.first_token:
            entry.first_token = time.monotonic()
        request = entry.request
        unfinished = sum(not sequence.finished for sequence in entry.sequences)
        for sequence in entry.sequences:
            if sequence.finished:
                continue
            reason: FinishReason | None = None
            stop_token_id: int | None = None
            error: Exception | None = None
            before = len(sequence.output)
            for _ in range(self.tokens_per_step):
                token_id = self._next_token(entry, sequence)
                if token_id is None:
                    reason, error = FinishReason.ERROR, RuntimeError("the guide allows no token")
                    break
                sequence.output.append(token_id)
                self._counters["num_output_tokens"] += 1
                if token_id in entry.stop_ids:
                    reason, stop_token_id = FinishReason.STOP, token_id
                elif sequence.guide is not None and sequence.guide.is_terminated():
                    reason = FinishReason.STOP
                elif len(sequence.output) >= request.sampling.max_tokens:
                    reason = FinishReason.LENGTH
                if reason is not None:
                    break
            self._count(entry, before, len(sequence.output) - before)
            if not request.stream and reason is None:
                continue
            new = tuple(sequence.output[sequence.num_sent :])
            sequence.num_sent = len(sequence.output)
            logprobs, sequence.held = tuple(sequence.held), []
            if reason is None:
                self._chunks.append(TokenChunk(request.request_id, sequence.index, new, logprobs))
                continue
            sequence.finished = True
            unfinished -= 1
            chunk = TokenChunk(request.request_id, sequence.index, new, logprobs, reason, stop_token_id, error)
            self._chunks.append(chunk if unfinished else self._final(entry, chunk))

    def _count(self, entry: _Open, num_output: int, num_new: int) -> None:
        """Book what a sequence with `num_output` tokens got in a step."""
        if num_new == 0:
            return
        num_accepted = num_new - 1 if entry.speculates else 0
        room = entry.request.sampling.max_tokens - num_output - 1
        num_drafts = max(num_accepted, min(self.info.max_draft_tokens, room)) if entry.speculates else 0
        entry.num_steps += num_new - num_accepted
        entry.num_draft_tokens += num_drafts
        entry.num_accepted_tokens += num_accepted
        self._counters["num_sequence_steps"] += num_new - num_accepted
        self._counters["num_draft_tokens"] += num_drafts
        self._counters["num_accepted_tokens"] += num_accepted

    def _next_token(self, entry: _Open, sequence: _Sequence) -> int | None:
        """The next token: the script's where it is allowed, else the best that is; None when nothing is allowed."""
        sampling, position = entry.request.sampling, len(sequence.output)
        script = sequence.script
        may_stop = position >= sampling.min_tokens
        wanted: int | None = None
        if script is not None:
            wanted = script[position] if position < len(script) else min(self.info.stop_token_ids)
            stops = wanted in entry.stop_ids
            if (stops and not may_stop) or (position >= len(script) and not stops):  # the latter with ignore_eos
                wanted = None
        candidates = self._candidates(sequence.origin, position)
        if sampling.temperature > 0 and sampling.top_k != 1:
            best = list(candidates)
            drawn = hash((sequence.origin, position, 7)) % 4
            ordered: Iterator[int] = iter((best[drawn], *best[:drawn], *best[drawn + 1 :]))
        else:
            ordered = candidates
        if sequence.guide is not None:
            token_id = self._guided(sequence.guide, wanted, entry.stop_ids, may_stop)
        elif sampling.logit_bias or sampling.bad_words or not may_stop:
            token_id = self._biased(sampling, wanted, ordered, sequence.output, () if may_stop else entry.stop_ids)
        else:
            token_id = wanted if wanted is not None else next(ordered)
        if token_id is not None and sampling.logprobs is not None:
            sequence.held.append(self._logprob(sequence.origin, position, token_id, sampling.logprobs))
        return token_id

    def _candidates(self, origin: int, position: int) -> Iterator[int]:
        """The alphabet, most likely first: the k-th has probability 2^-(k+1)."""
        first = hash((origin, position))
        size = len(self.alphabet)
        return (self.alphabet[(first + k) % size] for k in range(size))

    def _guided(self, guide: Guide, wanted: int | None, stop_ids: frozenset[int], may_stop: bool) -> int | None:
        row = np.zeros(-(-self.info.vocab_size // 32), np.int32)
        guide.fill_bitmask(row)
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")[: self.info.vocab_size]
        allowed = [int(i) for i in np.flatnonzero(bits) if may_stop or i not in stop_ids]
        if not allowed:
            return None
        token_id = wanted if wanted in allowed else next((i for i in allowed if i in stop_ids), allowed[0])
        if not guide.advance([token_id]):
            raise AssertionError(f"the guide refused token {token_id}, which its mask allows")
        return token_id

    @staticmethod
    def _biased(
        sampling: SamplingParams,
        wanted: int | None,
        candidates: Iterator[int],
        output: Sequence[int],
        forbidden: Sequence[int] | frozenset[int],
    ) -> int | None:
        """Bias decides only at its extremes: 100 forces a token, -100 forbids it."""
        bad = {word[-1] for word in sampling.bad_words if tuple(output[len(output) - len(word) + 1 :]) == word[:-1]}
        out = {i for i, bias in sampling.logit_bias.items() if bias <= -100} | bad | set(forbidden)
        forced = [i for i, bias in sampling.logit_bias.items() if bias >= 100 and i not in out]
        ordered = forced or ([wanted] if wanted is not None else [])
        return next((i for i in (*ordered, *candidates) if i not in out), None)

    def _logprob(self, origin: int, position: int, token_id: int, k: int) -> TokenLogprob:
        ranked = list(self._candidates(origin, position))
        rank = ranked.index(token_id) if token_id in ranked else len(ranked)
        half = float(np.log(0.5))
        return TokenLogprob(token_id, half * (rank + 1), tuple((t, half * (r + 1)) for r, t in enumerate(ranked[:k])))

    def _end_sequence(self, entry: _Open, index: int) -> None:
        """End one of several sequences that have not ended."""
        sequence = entry.sequences[index]
        if sequence.finished:
            return
        sequence.finished = True
        new, logprobs = tuple(sequence.output[sequence.num_sent :]), tuple(sequence.held)
        chunk = TokenChunk(entry.request.request_id, index, new, logprobs, FinishReason.CANCELLED)
        self._chunks.append(chunk)
        self._condition.notify_all()

    def _end(self, entry: _Open, reason: FinishReason, error: Exception | None = None) -> None:
        """End every sequence of a request that has not ended."""
        self._running.pop(entry.request.request_id, None)
        if entry in self._waiting:
            self._waiting.remove(entry)
        unfinished = [sequence for sequence in entry.sequences if not sequence.finished]
        for sequence in unfinished:
            sequence.finished = True
            new, logprobs = tuple(sequence.output[sequence.num_sent :]), tuple(sequence.held)
            chunk = TokenChunk(entry.request.request_id, sequence.index, new, logprobs, reason, error=error)
            self._chunks.append(self._final(entry, chunk) if sequence is unfinished[-1] else chunk)

    def _final(self, entry: _Open, chunk: TokenChunk) -> TokenChunk:
        self._running.pop(entry.request.request_id, None)
        now = time.monotonic()
        started, first = entry.started or now, entry.first_token or now
        timings = RequestTimings(started - entry.submitted, first - started, now - first)
        return replace(
            chunk,
            is_final=True,
            cached_tokens=entry.cached_tokens,
            timings=timings,
            speculation=Speculation(entry.num_steps, entry.num_draft_tokens, entry.num_accepted_tokens),
        )
