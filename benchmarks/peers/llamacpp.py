"""llama.cpp as a peer, through its C interface: what llama-batched-bench does. Runs in the peers' environment.

    python llamacpp.py MODEL.gguf --threads 2 --batch 16 --max-num-tokens 2048 --kv-cache-tokens 16384

All prompts are decoded first, then every sequence grows by one greedy token a call, until all are done at once.
That is the best case: it needs no scheduler.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from line_protocol import Run, serve

_ERROR = 4  # ggml_log_level


def _say_errors_only(level: int, text: bytes, _: object) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


_LOG_CALLBACK = llama_cpp.llama_log_callback(_say_errors_only)  # the library calls it for as long as it runs


def main() -> None:
    """Answer workloads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--max-num-tokens", type=int, required=True)
    parser.add_argument("--kv-cache-tokens", type=int, required=True)
    arguments = parser.parse_args()
    serve(lambda: load(arguments))


def load(arguments: argparse.Namespace) -> tuple[str, Run]:
    """The model and one context for all sequences."""
    llama_cpp.llama_log_set(_LOG_CALLBACK, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(arguments.model.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp cannot load {arguments.model}")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = arguments.kv_cache_tokens
    params.n_batch = arguments.max_num_tokens
    params.n_seq_max = arguments.batch
    params.n_threads = params.n_threads_batch = arguments.threads
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp cannot make a context")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(arguments.max_num_tokens, 0, 1)

    def decode(entries: list[tuple[int, int, int, bool]]) -> list[int]:
        """Compute (token, position, sequence, wants logits) entries; the best token of each that wants logits."""
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        batch.n_tokens = len(entries)
        if status := llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode says {status}")
        return [best(i) for i, entry in enumerate(entries) if entry[3]]

    def best(row: int) -> int:
        pointer = llama_cpp.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (vocab_size,)).argmax())

    def run(prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        started = time.perf_counter()
        entries = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens: list[int] = []
        for start in range(0, len(entries), arguments.max_num_tokens):
            tokens += decode(entries[start : start + arguments.max_num_tokens])
        first_tokens = time.perf_counter() - started
        for step in range(max_tokens - 1):
            entries = [(token, len(prompts[i]) + step, i, True) for i, token in enumerate(tokens)]
            tokens = decode(entries)
        return {
            "wall_s": time.perf_counter() - started,
            "first_tokens_s": first_tokens,
            "output_tokens": len(prompts) * max_tokens,
            "decode_tokens": len(prompts) * (max_tokens - 1),
        }

    return str(llama_cpp.__version__), run


if __name__ == "__main__":
    main()
