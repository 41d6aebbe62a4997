"""The parts of `bench_traffic.py` that need no server: the step loop over a made-up model, and the executor alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import machine
import numpy as np
from numpy.typing import NDArray
from random_model import Shape, write_random_model
from traffic_figures import gaps_within, percentile
from traffic_model import example
from workload import ID_RANGE

from briton.config.environment import load_environment
from briton.config.loader import load_config
from briton.engine.executor import Executor
from briton.engine.types import FinishReason, GenerationRequest, ModelInfo, SamplingParams, TokenChunk
from briton.local.plan import StepInputs
from briton.local.sequence import RequestState
from briton.local.settings import SchedulerPolicy
from briton.local.step_loop import StepLoop
from briton.process.executors import create_executor
from briton_engine_builder import build_engine

_TIMEOUT_S = 300.0
_VOCAB, _END = 8, 0  # of the made-up model

# The vocabulary and the width of a small multilingual model.
WIDE = Shape(hidden=640, inner=2048, layers=18, heads=10, key_value_heads=2, head_dim=64, vocab=262_144)


def unset_limit_steps_ratio(num_requests: int = 128, prompt: int = 200, output: int = 200) -> float:
    """Steps of requests without max_tokens under guaranteed_no_evict over those under max_utilization, in a cache of
    32k tokens. Raises RuntimeError when one fails."""
    steps = [_steps(policy, num_requests, prompt, output) for policy in ("guaranteed_no_evict", "max_utilization")]
    return steps[0] / steps[1]


def _steps(policy: SchedulerPolicy, num_requests: int, prompt: int, output: int) -> int:
    info = ModelInfo(
        model_name="made up",
        executor="local",
        architecture="none",
        vocab_size=_VOCAB,
        max_seq_len=8192,
        max_batch_size=64,
        max_num_tokens=2048,
        max_queue_size=num_requests,
        kv_cache_tokens=32_768,
        kv_block_size=32,
        stop_token_ids=(_END,),
    )

    def forward(inputs: StepInputs) -> NDArray[np.float32]:
        logits = np.zeros((len(inputs.sampled_rows), _VOCAB), np.float32)
        ends = inputs.position_ids[inputs.sampled_rows] + 2 == prompt + output
        logits[np.arange(len(ends)), np.where(ends, _END, 1)] = 1
        return logits

    loop = StepLoop(info, policy=policy)
    chunks: list[TokenChunk] = []
    for number in range(num_requests):
        tokens = np.random.default_rng(number).integers(1, _VOCAB, prompt)
        sampling = SamplingParams(max_tokens=8192 - prompt, temperature=0)
        loop.add(RequestState.create(GenerationRequest(number, tuple(tokens.tolist()), sampling, has_limit=False)))
    steps = 0
    while loop.has_work:
        loop.step(forward, chunks)
        steps += 1
    ends = [chunk for chunk in chunks if chunk.is_final]
    if len(ends) != num_requests or any(chunk.finish_reason is not FinishReason.STOP for chunk in ends):
        raise RuntimeError(f"of {num_requests} requests {len(ends)} ended, not all at their end token")
    return steps


@dataclass
class Timed:
    """An executor, and when each of its requests' tokens came."""

    executor: Executor
    token_times: dict[int, list[float]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    _ids: count[int] = field(default_factory=count)

    def submit(self, prompt: Sequence[int], sampling: SamplingParams) -> int:
        """A request; its id."""
        request_id = next(self._ids)
        self.token_times[request_id] = []
        self.executor.submit(GenerationRequest(request_id, tuple(prompt), sampling))
        return request_id

    def wait(self, request_id: int, *, num_tokens: int = 0) -> None:
        """Until a request has ended, or has come by so many chunks."""
        deadline = time.perf_counter() + _TIMEOUT_S
        while request_id not in self.ended and not 0 < num_tokens <= len(self.token_times[request_id]):
            chunks = self.executor.await_chunks(1.0)
            now = time.perf_counter()
            if now > deadline:
                raise TimeoutError(f"request {request_id} did not end")
            for chunk in chunks:
                self._take(chunk, now)

    def _take(self, chunk: TokenChunk, now: float) -> None:
        if chunk.error is not None:
            raise chunk.error
        if chunk.token_ids:
            self.token_times[chunk.request_id].append(now)
        if chunk.is_final:
            self.ended.add(chunk.request_id)


def prefill_beside_a_stream(num_prompts: int, prompt_tokens: int = 6000) -> tuple[float, float]:
    """While one stream runs and prompts are computed one after the other: p99 of the stream's time between tokens in
    milliseconds, and the prompts' tokens a second over those without the stream."""
    config, engine_dir = example()
    executor = create_executor(config, engine_dir)
    try:
        machine.settle()
        timed = Timed(executor)
        one = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        prompts = [_prompt(number, prompt_tokens) for number in range(2 * num_prompts + 1)]

        def prefill(prompts: Sequence[Sequence[int]]) -> float:
            began = time.perf_counter()
            for prompt in prompts:
                timed.wait(timed.submit(prompt, one))
            return time.perf_counter() - began

        prefill(prompts[:1])
        alone_s = prefill(prompts[1 : num_prompts + 1])
        stream = timed.submit(_prompt(-1, 64), replace(one, max_tokens=executor.info.max_seq_len - 64))
        timed.wait(stream, num_tokens=20)
        began = time.perf_counter()
        beside_s = prefill(prompts[num_prompts + 1 :])
        if stream in timed.ended:
            raise RuntimeError("the stream ended before the prompts did")
        gaps = gaps_within(timed.token_times[stream], began, began + beside_s)
        executor.cancel(stream)
        timed.wait(stream)
        alone = percentile(np.diff(timed.token_times[stream][:20]).tolist(), 50)
        print(
            f"prefill: {num_prompts * prompt_tokens / alone_s:.0f} tokens/s alone, "
            f"{num_prompts * prompt_tokens / beside_s:.0f} beside a stream; between its tokens "
            f"p50 {1e3 * percentile(gaps, 50):.0f}, p99 {1e3 * percentile(gaps, 99):.0f} ms ({1e3 * alone:.0f} before)"
        )
        return 1e3 * percentile(gaps, 99), alone_s / beside_s
    finally:
        executor.shutdown()


def host_share_262k(num_steps: int) -> float:
    """The share of a step outside the model, of 16 sequences with top_p and penalties and a vocabulary of 262k."""
    _, tokenizer = example()
    environment = load_environment()
    folder = environment.cache_dir / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = write_random_model(folder, WIDE, tokenizer)
    config_path = folder / f"{WIDE.name}.yaml"
    config_path.write_text(
        f"model_name: wide\ntrt_llm: {{build: {{checkpoint_repository: {{source: LOCAL, repo: {checkpoint}}}, "
        "max_batch_size: 16, max_num_tokens: 2048, quantization_type: weights_int8}}\n"
        "briton: {executor: local, local: {kv_cache_tokens: 16384}}\n",
        encoding="utf-8",
    )
    config = load_config(config_path)
    executor = create_executor(config, build_engine(config, environment))
    try:
        machine.settle()
        timed = Timed(executor)
        sampling = SamplingParams(
            max_tokens=num_steps,
            temperature=1.0,
            top_p=0.9,
            frequency_penalty=0.5,
            presence_penalty=0.5,
            repetition_penalty=1.1,
            ignore_eos=True,
        )
        requests = [timed.submit(_prompt(number, 64), replace(sampling, seed=number)) for number in range(16)]
        for request in requests:
            timed.wait(request, num_tokens=4)
        before = executor.stats()
        for request in requests:
            timed.wait(request)
        after = executor.stats()
        host_s, step_s = after.host_s - before.host_s, after.step_s - before.step_s
        steps = after.num_steps - before.num_steps
        print(f"vocabulary of 262k: {1e3 * host_s / steps:.2f} of {1e3 * step_s / steps:.1f} ms a step on the host")
        return host_s / step_s
    finally:
        executor.shutdown()


def _prompt(seed: int, length: int) -> list[int]:
    tokens: list[int] = np.random.default_rng([seed + 1, length]).integers(*ID_RANGE, length).tolist()
    return tokens
