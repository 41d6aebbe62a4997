"""May a request enter, and if not, when is it worth another try: asked before any work is done for it.

A pure function of the ledger and the learned cost. Requests that no slot and no cache is left for wait, and of waiting
ones the engine takes as many, and as many tokens of them, as its limits say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from briton.engine.ledger import Ledger, LedgerEntry
from briton.engine.output_lengths import OutputLengths
from briton.engine.step_cost import StepCost, StepShape
from briton.engine.types import ModelInfo
from briton.errors import QUEUE_SIZE, QueueFull

QUEUE_CACHES, LEAST_QUEUE_TOKENS = 4, 262_144
_PROMPT_STEP = 512  # tokens: how prompts are computed where nobody decodes
_UNKNOWN_WAIT_S = 1.0  # what to tell before the first step
_LEAST_RETRY_S, _MOST_RETRY_S = 0.1, 600.0


class Demand(NamedTuple):
    """What a request asks for, as far as it is known before its prompt is tokenized."""

    num_prompt_tokens: int
    num_sequences: int = 1
    max_output_tokens: int | None = None  # of one sequence; None: nobody set a limit
    timeout_s: float | None = None


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
        tokens = max(LEAST_QUEUE_TOKENS, QUEUE_CACHES * info.kv_cache_tokens)
        return cls(info.max_batch_size, info.kv_cache_tokens, info.max_queue_size, tokens)


class Waiting(NamedTuple):
    """What of the open requests cannot run yet."""

    num_requests: int
    num_sequences: int
    num_prompt_tokens: int
    free_slots: int
    free_tokens: int


def waiting(ledger: Ledger, capacity: Capacity, lengths: OutputLengths) -> Waiting:
    """Deal slots and cache out to the open requests, those that have begun first, then in the order of arrival."""
    slots, tokens = capacity.max_batch_size, capacity.kv_cache_tokens
    for entry in ledger:
        if entry.first_token_at is not None:
            slots -= entry.num_sequences
            tokens -= _cache_tokens(entry, lengths)
    requests = sequences = prompt_tokens = 0
    for entry in ledger:
        if entry.first_token_at is not None or entry.cancelled_at is not None:
            continue
        needed = _cache_tokens(entry, lengths)
        if requests == 0 and slots > 0 and needed <= tokens:
            slots -= entry.num_sequences
            tokens -= needed
        else:
            requests += 1
            sequences += entry.num_sequences
            prompt_tokens += entry.num_prompt_tokens
    return Waiting(requests, sequences, prompt_tokens, max(0, slots), max(0, tokens))


def admit(demand: Demand, ledger: Ledger, capacity: Capacity, cost: StepCost, lengths: OutputLengths) -> None:
    """Raise QueueFull, with the expected wait as its `retry_after_s`, for a request that may not enter now.

    That is one that would be one too many of those that wait, or bring too many tokens to them, or would start after
    its caller has given up. What can run at once always may.
    """
    others = waiting(ledger, capacity, lengths)
    needed = (
        demand.num_sequences * lengths.likely_end(0)
        if demand.max_output_tokens is None
        else (demand.num_sequences * demand.max_output_tokens)
    )
    needed += demand.num_prompt_tokens
    if others.num_requests == 0 and others.free_slots > 0 and (needed <= others.free_tokens or not ledger):
        return
    wait_s = expected_wait_s(ledger, capacity, cost, lengths, others)
    if others.num_requests >= capacity.max_queue_size:
        raise QueueFull(
            f"{others.num_requests} requests are waiting, and the limit is {capacity.max_queue_size}: try again later",
            retry_after_s=wait_s,
            code=QUEUE_SIZE,
        )
    if others.num_prompt_tokens and others.num_prompt_tokens + demand.num_prompt_tokens > capacity.max_queue_tokens:
        raise QueueFull(
            f"the prompts of {others.num_requests} waiting requests have {others.num_prompt_tokens} tokens, and the "
            f"limit is {capacity.max_queue_tokens}: try again later",
            retry_after_s=wait_s,
        )
    if demand.timeout_s is not None and wait_s > demand.timeout_s:
        raise QueueFull(
            f"the request would wait for about {wait_s:.0f} s, longer than its {demand.timeout_s:.3g} s: "
            "try again later",
            retry_after_s=wait_s,
        )


def expected_wait_s(
    ledger: Ledger, capacity: Capacity, cost: StepCost, lengths: OutputLengths, others: Waiting | None = None
) -> float:
    """Seconds until a request that arrives now would start, when all that waits goes before it."""
    others = waiting(ledger, capacity, lengths) if others is None else others
    running = [entry for entry in ledger if entry.first_token_at is not None]
    batch = max(1, min(capacity.max_batch_size, sum(entry.num_sequences for entry in running)))
    context = sum(entry.num_sequences * entry.num_prompt_tokens + entry.num_output_tokens for entry in running)
    step_s = cost.expected(StepShape(batch, batch, context))
    prompt_s = cost.expected(StepShape(_PROMPT_STEP, 1, _PROMPT_STEP * _PROMPT_STEP // 2))
    if step_s is None or prompt_s is None:
        return _UNKNOWN_WAIT_S
    promised = [min(entry.max_output_tokens, lengths.mean) for entry in ledger]
    output = sum(promised) / len(promised) if promised else lengths.mean
    num_ends = max(0, others.num_sequences + 1 - others.free_slots)  # that have to come before
    starting = sum(entry.num_prompt_tokens for entry in ledger if entry.first_token_at is None)
    wait_s = num_ends * output / batch * step_s + starting / _PROMPT_STEP * prompt_s
    return min(_MOST_RETRY_S, max(_LEAST_RETRY_S, wait_s))


def _cache_tokens(entry: LedgerEntry, lengths: OutputLengths) -> int:
    """Tokens of the cache that a request is likely to need altogether."""
    done = entry.num_output_tokens // entry.num_sequences
    each = min(entry.max_output_tokens, lengths.likely_end(done)) if not entry.has_limit else entry.max_output_tokens
    return entry.num_prompt_tokens + entry.num_sequences * each
