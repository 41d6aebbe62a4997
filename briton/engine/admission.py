"""May a request enter, and if not, when is it worth another try: asked before any work is done for it.

A pure function of the ledger and the learned cost. Requests that no slot and no cache is left for wait, and of waiting
ones the engine takes as many, and as many tokens of them, as its limits say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from briton.engine.ledger import Ledger, LedgerEntry
from briton.engine.output_lengths import OutputLengths
from briton.engine.step_cost import StepCost, StepShape
from briton.engine.types import ModelInfo
from briton.errors import QUEUE_SIZE, QueueFull

CALLERS_ROOM = 2  # queues: beyond the first, for callers who have less than their share in it
QUEUE_CACHES, LEAST_QUEUE_TOKENS = 4, 262_144
_PROMPT_STEP = 512  # tokens: how prompts are computed where nobody decodes
_UNKNOWN_WAIT_S = 1.0  # what to tell before the first step
_LEAST_RETRY_S, _MOST_RETRY_S = 0.1, 600.0


class Demand(NamedTuple):
    """What a request asks for, as far as it is known before its prompt is tokenized."""

    num_prompt_tokens: int  # and of its prediction: tokens that have to be made
    num_sequences: int = 1
    max_output_tokens: int | None = None  # of one sequence; None: nobody set a limit
    timeout_s: float | None = None
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine has, and how much may wait for it."""

    max_batch_size: int  # sequences
    kv_cache_tokens: int
    max_queue_size: int  # requests
    max_queue_tokens: int  # of their prompts

    @classmethod
    def of(cls, info: ModelInfo) -> Capacity:
        """An engine's. Prompts that wait may have QUEUE_CACHES times the tokens that the cache holds, and
        LEAST_QUEUE_TOKENS in any case."""
        slots = min(info.max_batch_size, info.max_num_tokens)
        tokens = max(LEAST_QUEUE_TOKENS, QUEUE_CACHES * info.kv_cache_tokens)
        return cls(slots, info.kv_cache_tokens, info.max_queue_size, tokens)


@dataclass(slots=True)
class Load:
    """The open requests, as slots and cache can be dealt out to them: what runs, and what has to wait."""

    free_slots: int
    free_tokens: int  # of the cache; below 0 where more runs than was thought
    running: list[LedgerEntry] = field(default_factory=list)
    starting: list[LedgerEntry] = field(default_factory=list)  # have a place, and no token yet
    waiting: list[LedgerEntry] = field(default_factory=list)  # have none
    num_running_sequences: int = 0
    num_prepared: int = 0  # admitted, and not submitted yet

    @classmethod
    def of(cls, ledger: Ledger, capacity: Capacity, lengths: OutputLengths, num_running: int = 0) -> Load:
        """Those that have given a token run. Of the others, in the order of arrival, as many as `num_running` sequences
        in all (the executor's word: what does not stream gives none until its end), then as many as fit."""
        load = cls(capacity.max_batch_size, capacity.kv_cache_tokens)
        others = []
        for entry in ledger:
            if not entry.is_submitted:
                load.num_prepared += 1
            elif entry.first_token_at is not None:
                load._run(entry, lengths)
            elif entry.cancelled_at is None:
                others.append(entry)
        for entry in others:
            needed = _cache_tokens(entry, lengths)
            if load.num_running_sequences < num_running:
                load._run(entry, lengths)
            elif not load.waiting and load.free_slots > 0 and needed <= load.free_tokens:
                load.starting.append(entry)
                load.free_slots -= entry.num_sequences
                load.free_tokens -= needed
            else:
                load.waiting.append(entry)
        return load

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of the prompts that wait."""
        return sum(entry.num_prompt_tokens for entry in self.waiting)

    def _run(self, entry: LedgerEntry, lengths: OutputLengths) -> None:
        self.running.append(entry)
        self.num_running_sequences += entry.num_sequences
        self.free_slots -= entry.num_sequences
        self.free_tokens -= _cache_tokens(entry, lengths)


def admit(
    demand: Demand,
    ledger: Ledger,
    capacity: Capacity,
    cost: StepCost,
    lengths: OutputLengths,
    num_running: int = 0,
) -> None:
    """Raise QueueFull, with the expected wait as its `retry_after_s`, for a request that may not enter now.

    That is one that would be one too many of those that wait, or bring too many tokens to them, or would start after
    its caller has given up. What can run at once always may, and one that comes alone.
    """
    load = Load.of(ledger, capacity, lengths, num_running)
    most_prepared = capacity.max_batch_size + CALLERS_ROOM * capacity.max_queue_size
    if load.num_prepared >= most_prepared:
        raise _full(
            f"{load.num_prepared} requests are being prepared, and the limit is {most_prepared}", _LEAST_RETRY_S
        )
    needed = _needed(demand, lengths)
    if not load.waiting and load.free_slots > 0 and (needed <= load.free_tokens or not load.running):
        return
    wait_s = _wait_s(load, needed, cost, lengths)
    if (told := _too_many(demand, load, capacity)) is not None:
        raise _full(told, wait_s, code=QUEUE_SIZE)
    num_tokens = load.num_waiting_tokens
    if num_tokens and num_tokens + demand.num_prompt_tokens > capacity.max_queue_tokens:
        raise _full(
            f"the prompts of {len(load.waiting)} waiting requests have {num_tokens} tokens, and the limit is "
            f"{capacity.max_queue_tokens}",
            wait_s,
        )
    if demand.timeout_s is not None and wait_s >= demand.timeout_s:
        raise _full(
            f"the request would wait for about {wait_s:.0f} s, longer than its {demand.timeout_s:.3g} s", wait_s
        )


def expected_wait_s(
    ledger: Ledger, capacity: Capacity, cost: StepCost, lengths: OutputLengths, num_running: int = 0
) -> float:
    """Seconds until a request of the usual size that arrives now would start, when all that waits goes before it."""
    load = Load.of(ledger, capacity, lengths, num_running)
    return _wait_s(load, _needed(Demand(0), lengths), cost, lengths)


def _too_many(demand: Demand, load: Load, capacity: Capacity) -> str | None:
    """What to tell a caller for whom there is no room in the queue.

    The first `max_queue_size` places are everybody's; as many more are for callers who have less than their share of
    them: one caller's thousand keep no other out.
    """
    num_waiting, limit = len(load.waiting), capacity.max_queue_size
    if num_waiting < limit:
        return None
    own = sum(entry.caller == demand.caller for entry in load.waiting)
    share = limit / len({entry.caller for entry in load.waiting} | {demand.caller})
    if num_waiting < CALLERS_ROOM * limit and own < share and own < num_waiting:
        return None
    return f"{num_waiting} requests are waiting, and the limit is {limit}"


def _wait_s(load: Load, needed: int, cost: StepCost, lengths: OutputLengths) -> float:
    """Seconds until a request that needs so many tokens of the cache would start, behind all that waits."""
    batch = max(1, load.num_running_sequences)
    context = sum(e.num_sequences * e.num_prompt_tokens + e.num_output_tokens for e in load.running)
    step_s = cost.expected(StepShape(batch, batch, context))
    prompt_s = cost.expected(StepShape(_PROMPT_STEP, 1, _PROMPT_STEP * _PROMPT_STEP // 2))
    if step_s is None or prompt_s is None:
        return _UNKNOWN_WAIT_S
    entries = [*load.running, *load.starting, *load.waiting]
    promised = [min(entry.max_output_tokens, lengths.mean) for entry in entries]
    output = sum(promised) / len(promised) if promised else lengths.mean
    # Sequences that have to end before: for their slots, and for what they hold of the cache.
    ends = max(0.0, sum(entry.num_sequences for entry in load.waiting) + 1.0 - load.free_slots)
    missing = sum(_cache_tokens(entry, lengths) for entry in load.waiting) + needed - load.free_tokens
    held = sum(_cache_tokens(entry, lengths) for entry in load.running)
    if missing > 0 and held > 0:
        ends = max(ends, missing / (held / batch))
    prompts = sum(entry.num_prompt_tokens for entry in [*load.starting, *load.waiting])
    return max(_LEAST_RETRY_S, ends * output / batch * step_s + prompts / _PROMPT_STEP * prompt_s)


def _needed(demand: Demand, lengths: OutputLengths) -> int:
    """Tokens of the cache that a request is likely to need."""
    each = lengths.likely_end(0) if demand.max_output_tokens is None else demand.max_output_tokens
    return demand.num_prompt_tokens + demand.num_sequences * each


def _cache_tokens(entry: LedgerEntry, lengths: OutputLengths) -> int:
    """Tokens of the cache that an open request is likely to need altogether."""
    done = entry.num_output_tokens // entry.num_sequences
    each = entry.max_output_tokens if entry.has_limit else min(entry.max_output_tokens, lengths.likely_end(done))
    return entry.num_prompt_tokens + entry.num_sequences * each


def _full(message: str, wait_s: float, code: str | None = None) -> QueueFull:
    return QueueFull(f"{message}: try again later", retry_after_s=min(_MOST_RETRY_S, wait_s), code=code)
