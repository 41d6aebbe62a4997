"""openvino-genai as a peer: LLMPipeline for one request, ContinuousBatchingPipeline for several.

Runs in the peers' environment:

    python genai.py MODEL.gguf --threads 2 --precision bf16 --kv-cache bf16
        --batch 16 --max-num-tokens 2048 --kv-cache-tokens 16384
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from genai_settings import configure, parse_arguments
from line_protocol import Run, serve


def main() -> None:
    """Answer workloads."""
    arguments = parse_arguments()
    serve(lambda: load(arguments))


def load(arguments: argparse.Namespace) -> tuple[str, Run]:
    """Both pipelines, on the same properties."""
    properties, scheduler = configure(arguments)
    single = genai.LLMPipeline(arguments.model, "CPU", **properties)
    batched = genai.ContinuousBatchingPipeline(arguments.model, scheduler, "CPU", properties)

    def run(prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        config = genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        config.do_sample = False
        if len(prompts) == 1:
            return run_single(single, prompts[0], config)
        return run_batched(batched, prompts, config)

    return str(genai.__version__), run


def run_single(pipeline: Any, prompt: list[int], config: Any) -> dict[str, Any]:
    """One request. Its own metrics say when the first token was there."""
    ids = np.array([prompt], np.int64)
    inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
    started = time.perf_counter()
    result = pipeline.generate(inputs, config)
    wall = time.perf_counter() - started
    output_tokens = len(result.tokens[0])
    return {
        "wall_s": wall,
        "first_tokens_s": result.perf_metrics.get_ttft().mean / 1e3,
        "output_tokens": output_tokens,
        "decode_tokens": output_tokens - 1,
    }


def run_batched(pipeline: Any, prompts: list[list[int]], config: Any) -> dict[str, Any]:
    """Several requests, step by step, which costs less than `generate` with a streamer and says when tokens come."""
    tensors = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
    started = time.perf_counter()
    handles = [pipeline.add_request(i, tensor, config) for i, tensor in enumerate(tensors)]
    waiting = set(range(len(handles)))
    counts = [0] * len(handles)
    first_tokens = 0.0
    output_before = 0
    while pipeline.has_non_finished_requests():
        pipeline.step()
        if waiting:  # only until every request has its first token: reading costs time
            for i in list(waiting):
                if handles[i].can_read():
                    counts[i] += sum(len(output.generated_ids) for output in handles[i].read().values())
                    waiting.discard(i)
            if not waiting:
                first_tokens = time.perf_counter() - started
                output_before = sum(counts)
    wall = time.perf_counter() - started
    output_tokens = len(prompts) * config.max_new_tokens
    return {
        "wall_s": wall,
        "first_tokens_s": first_tokens,
        "output_tokens": output_tokens,
        "decode_tokens": output_tokens - output_before,
    }


if __name__ == "__main__":
    main()
