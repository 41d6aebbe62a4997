"""openvino-genai's prompt lookup as a peer: two ContinuousBatchingPipelines, one of them with prompt_lookup.

Runs in the peers' environment:

    python genai_lookup.py MODEL.gguf --threads 2 --precision bf16 --kv-cache bf16
        --batch 16 --max-num-tokens 2048 --kv-cache-tokens 16384

A request is {"prompts": [token ids ...], "max_tokens": [of each], "draft_tokens": of a step, 0 for no lookup,
"max_ngram": n}; so many prompts as --batch says run at a time.
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
    """Answer requests."""
    arguments = parse_arguments()
    serve(lambda: load(arguments))


def load(arguments: argparse.Namespace) -> tuple[str, Run]:
    """Both pipelines, on the same properties."""
    properties, scheduler = configure(arguments)
    pipelines = {
        lookup: genai.ContinuousBatchingPipeline(
            arguments.model, scheduler, "CPU", {**properties, **({"prompt_lookup": True} if lookup else {})}
        )
        for lookup in (False, True)
    }

    stop_token_id = pipelines[False].get_tokenizer().get_eos_token_id()

    def config(max_tokens: int, draft_tokens: int, max_ngram: int) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.do_sample = False
        config.eos_token_id = stop_token_id
        config.stop_token_ids = {stop_token_id}
        if draft_tokens:
            config.num_assistant_tokens = draft_tokens
            config.max_ngram_size = max_ngram
        return config

    def run(prompts: list[list[int]], max_tokens: list[int], draft_tokens: int, max_ngram: int) -> dict[str, Any]:
        configs = [config(limit, draft_tokens, max_ngram) for limit in max_tokens]
        return run_all(pipelines[draft_tokens > 0], prompts, configs)

    return str(genai.__version__), run


def run_all(pipeline: Any, prompts: list[list[int]], configs: list[Any]) -> dict[str, Any]:
    """All requests at once, step by step; of a single one, when its first tokens came."""
    tensors = [ov.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
    output_tokens = num_first = num_steps = 0
    first = 0.0
    started = time.perf_counter()
    handles = [pipeline.add_request(i, tensors[i], configs[i]) for i in range(len(prompts))]
    while pipeline.has_non_finished_requests():
        pipeline.step()
        num_steps += 1
        for handle in handles:
            if handle.can_read():
                output_tokens += sum(len(output.generated_ids) for output in handle.read().values())
        if not num_first:
            num_first, first = output_tokens, time.perf_counter() - started
    wall = time.perf_counter() - started
    return {
        "wall_s": wall,
        "first_tokens_s": first,
        "output_tokens": output_tokens,
        "decode_tokens": output_tokens - num_first,
        "num_steps": num_steps,
    }


if __name__ == "__main__":
    main()
