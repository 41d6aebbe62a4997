"""llama-cpp-python's prompt lookup as a peer: two contexts of llama.cpp, one of them with LlamaPromptLookupDecoding.

Runs in the peers' environment:

    python llamacpp_lookup.py MODEL.gguf --threads 2 --batch 16 --max-num-tokens 2048 --kv-cache-tokens 16384

A request is {"prompts": [token ids], "max_tokens": [n], "draft_tokens": of a step, 0 for no lookup, "max_ngram": n},
with one prompt: this is not for batches.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from line_protocol import Run, serve
from llama_cpp import Llama, __version__
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding


class CountingLookup(LlamaPromptLookupDecoding):  # type: ignore[misc]
    """Counts the steps after the first: one for each time that it is asked."""

    num_calls = 0

    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        self.num_calls += 1
        return super().__call__(input_ids, **kwargs)


def main() -> None:
    """Answer requests."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for name in ("threads", "batch", "max-num-tokens", "kv-cache-tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    serve(lambda: load(arguments))


def load(arguments: argparse.Namespace) -> tuple[str, Run]:
    """Both contexts, for one sequence each."""

    def model(draft_model: CountingLookup | None) -> Llama:
        return Llama(
            arguments.model,
            n_ctx=arguments.max_num_tokens,
            n_batch=arguments.max_num_tokens,
            n_threads=arguments.threads,
            n_threads_batch=arguments.threads,
            draft_model=draft_model,
            verbose=False,
        )

    lookup = CountingLookup()
    models = {False: model(None), True: model(lookup)}
    stop_token_id = models[False].token_eos()

    def run(prompts: list[list[int]], max_tokens: list[int], draft_tokens: int, max_ngram: int) -> dict[str, Any]:
        (prompt,), (limit,) = prompts, max_tokens
        lookup.num_pred_tokens, lookup.max_ngram_size, lookup.num_calls = draft_tokens, max_ngram, 0
        llama = models[draft_tokens > 0]
        llama.reset()  # so that no prefix of the last prompt is reused
        output_tokens = 0
        first = 0.0
        started = time.perf_counter()
        for token_id in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            output_tokens += 1
            if output_tokens == 1:
                first = time.perf_counter() - started
            if token_id == stop_token_id or output_tokens == limit:
                break
        return {
            "wall_s": time.perf_counter() - started,
            "first_tokens_s": first,
            "output_tokens": output_tokens,
            "decode_tokens": output_tokens - 1,
            "num_steps": lookup.num_calls if draft_tokens else output_tokens,
        }

    return str(__version__), run


if __name__ == "__main__":
    main()
