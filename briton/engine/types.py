"""The nouns of a request, shared by the engine, both executors and the service layer.

Token ids only: nothing here knows text, sockets or asyncio. All types are frozen; a request is described once, at the
edge, and passed down.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from briton.config.lookahead import LookaheadConfig

if TYPE_CHECKING:
    from briton.guidance.guide import Guide


class FinishReason(enum.Enum):
    """Why a sequence ended. The names are those of TensorRT-LLM's executor, END_ID and STOP_WORDS joined as STOP."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. Limits are checked by `briton.engine.validation.check_request`.

    Order of application, as in TensorRT-LLM and vLLM: penalties, logit bias, bad words and min_tokens, guide mask,
    temperature, top_k, top_p, min_p.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    n: int = 1
    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output (Keskar et al. 2019)
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None  # None: drawn by the executor
    logprobs: int | None = None  # None: off; k: the sampled token's and the k most likely tokens'
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own
    ignore_eos: bool = False  # do not stop at the model's own stop ids


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One accepted request: a prompt, and `sampling.n` sequences to grow from it."""

    request_id: int  # the Engine's, unique while the request is open
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    guide: Guide | None = None  # a template in its start state: the executor copies it for each sequence
    priority: int = 0  # higher is admitted first
    cache_salt: str = ""  # prefix reuse happens only between requests of equal salt
    stream: bool = True  # False: chunks may be held back until a sequence ends
    lookahead: LookaheadConfig | None = None  # None: the engine's
    prediction_token_ids: tuple[int, ...] = ()  # what the output may repeat: drafts are taken from it, never tokens
    timeout_s: float | None = None  # its caller gives up then, and cancels: an executor may end it by itself
    lora: str | None = None  # one of ModelInfo.lora_adapters; None: the model itself
    caller: str = ""  # whom it is for: callers are served equally
    has_limit: bool = True  # its caller has set max_tokens; else that is what the context leaves, and no promise


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probabilities at one position, of the model's own distribution (before penalties and temperature)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Where a request's time went, in seconds."""

    queue_s: float = 0.0  # submit to first scheduled
    prefill_s: float = 0.0  # first scheduled to first token
    decode_s: float = 0.0  # first token to last


@dataclass(frozen=True, slots=True)
class Speculation:
    """What drafting did for one request, all its sequences together."""

    num_steps: int = 0  # times that a sequence was sampled; output tokens / steps = tokens per step
    num_draft_tokens: int = 0  # proposed for acceptance and computed
    num_accepted_tokens: int = 0  # of those, part of the output


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """What one engine step gave to one sequence of a request.

    `token_ids` are new tokens only, several when speculation accepted more than one. The token that ended the
    sequence (a stop id) is the last of them, and `stop_token_id` names it: it was generated and counts, but is not part
    of the text. Every accepted request ends in exactly one chunk with `is_final` set.
    """

    request_id: int
    index: int = 0  # which of the n sequences
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each token, when asked for
    finish_reason: FinishReason | None = None  # set on the sequence's last chunk
    stop_token_id: int | None = None
    # With finish_reason ERROR: what to tell the caller, a BritonError if it is the caller's fault.
    error: Exception | None = None
    is_final: bool = False  # the request's last chunk, of all its sequences
    # On the final chunk only:
    cached_tokens: int = 0  # prompt tokens found in the KV cache
    timings: RequestTimings | None = None
    speculation: Speculation | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Limits and features of a running executor, fixed at start. Counts are in tokens unless a name says otherwise."""

    model_name: str
    executor: str  # "local", "trtllm"
    architecture: str
    vocab_size: int  # width of a logits row
    max_seq_len: int  # prompt + output of one sequence; never more than the KV cache holds
    max_batch_size: int  # sequences in one step
    max_num_tokens: int  # tokens in one step
    max_queue_size: int  # requests that may wait
    kv_cache_tokens: int
    kv_block_size: int
    stop_token_ids: tuple[int, ...]  # the model's own
    default_sampling: SamplingParams = field(default_factory=SamplingParams)  # the checkpoint's generation config
    default_max_tokens: int | None = None  # None: up to max_seq_len
    tensor_parallel_size: int = 1
    weights_dtype: str = ""  # "bf16", "int8", "int4", "f32", "int4/int8"
    kv_cache_dtype: str = ""
    tokenizer_hash: str = ""  # sha256 of tokenizer.json, hex
    lookahead: LookaheadConfig | None = None  # None: this engine does not speculate
    enable_b10_lookahead: bool = False  # drafts from the longest matching suffix, of lengths that follow acceptance
    max_draft_tokens: int = 0  # of one sequence in one step
    lookahead_with_guides: bool = True  # False: what has a guide or min_tokens runs without lookahead
    lora_adapters: tuple[str, ...] = ()  # names, each of which a request may ask for as its model


@dataclass(frozen=True, slots=True)
class RankStats:
    """What one of several ranks holds and did, as of its last word. Times are counters, in seconds."""

    rank: int
    host: str = ""
    pid: int = 0
    weights_bytes: int = 0  # of its file
    kv_cache_bytes: int = 0  # when it is full
    pss_bytes: int = 0  # proportional set size of its process, measured within the last seconds
    base_pss_bytes: int = 0  # the same before it loaded anything
    step_s: float = 0.0  # in the model: computing, and waiting for other ranks
    all_reduce_s: float = 0.0  # of those in sums over ranks, the wait for slower ranks included
    broadcast_s: float = 0.0  # of those in packing and sending steps: rank 0's alone
    gather_s: float = 0.0  # of those in passing logits to rank 0


class StepProgress(NamedTuple):
    """Where an executor stands in its work."""

    num_steps: int  # made since start
    expected_s: float | None  # what the step it is in, or its next, should take; None: nobody knows yet
    num_running: int = 0  # sequences


@dataclass(frozen=True, slots=True)
class ExecutorStats:
    """Counters (since start) and gauges (now) of an executor."""

    num_running: int = 0  # gauge, sequences
    num_waiting: int = 0  # gauge, sequences: of requests that wait, siblings, and preempted ones
    kv_blocks_total: int = 0  # gauge
    kv_blocks_used: int = 0  # gauge: held by open requests
    kv_blocks_cached: int = 0  # gauge: free, but their content can still be reused
    num_steps: int = 0
    num_prompt_tokens: int = 0  # computed, without those found in the cache
    num_cached_tokens: int = 0  # prompt tokens found in the cache
    num_output_tokens: int = 0
    num_preemptions: int = 0
    num_requests: int = 0  # accepted
    num_sequence_steps: int = 0  # samplings: sequences that got tokens, summed over steps
    num_draft_tokens: int = 0  # proposed for acceptance and computed
    num_accepted_tokens: int = 0  # of those, part of an output
    step_s: float = 0.0  # counter, seconds spent in steps
    host_s: float = 0.0  # counter, the part of step_s outside the model call
    ranks: tuple[RankStats, ...] = ()  # by rank, where there are several
